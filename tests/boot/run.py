"""``make test-boot``: real boots under QEMU, one machine for each seed, with their evidence and exit code."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.boot import image
from tests.boot.machine import FIRMWARE, VARIABLES, VirtualMachine
from tests.boot.sequence import run_all

TOOLS = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mformat", "mke2fs", "sfdisk", "cpio")


def main() -> int:
    """Build the guest once, run the sequence of each seed, print the evidence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="machines at once (%(default)s)")
    parser.add_argument("--only", nargs="+", default=(), metavar="STEP", help="run only these steps")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep disks and consoles there")
    args = parser.parse_args()
    missing = [tool for tool in TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    missing += [str(file) for file in (FIRMWARE, VARIABLES) if not file.exists()]
    if missing:
        print(f"NOT CHECKED: no machine was booted; {', '.join(missing)} missing;")
        print("  apt-get install $(cat tests/boot/apt.txt)")
        return 0
    folder = args.keep or Path(tempfile.mkdtemp(prefix="appliance-boot-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        try:
            disk = image.build(folder)
        except pytest.skip.Exception as reason:
            print(f"NOT CHECKED: no machine was booted. {reason}")
            return 0
        print(f"guest built in {time.monotonic() - began:.0f} s", flush=True)
        with ThreadPoolExecutor(args.jobs) as pool:
            done = list(pool.map(lambda seed: _run(folder, disk, seed, tuple(args.only)), args.seeds))
    finally:
        if args.keep is None:
            shutil.rmtree(folder)
    print(f"{sum(done)} of {len(done)} seeds passed, {time.monotonic() - began:.0f} s")
    return 0 if all(done) else 1


def _run(folder: Path, disk: Path, seed: int, steps: tuple[str, ...]) -> bool:
    machine = VirtualMachine(folder / f"seed-{seed}", disk, seed)
    began, failure = time.monotonic(), ""
    try:
        boots = run_all(machine, only=steps).boots
    except (AssertionError, OSError, ValueError, KeyError):
        failure = traceback.format_exc()
    finally:
        machine.power_cut()
    lines = [f"  {line}" for line in machine.evidence]
    verdict = f"FAILED\n{failure}" if failure else f"passed: {boots} boots"
    print("\n".join([*lines, f"seed {seed} {verdict}, {time.monotonic() - began:.0f} s", ""]), flush=True)
    return not failure


if __name__ == "__main__":
    sys.exit(main())
