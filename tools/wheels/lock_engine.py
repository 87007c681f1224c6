"""Writes ``requirements/engine-cuda.lock`` and ``modules/wheels.json`` from ``requirements/engine-cuda.in``.

The pip of a Python 3.13 on Linux x86_64 (``--python``) resolves the set: pip evaluates environment markers for the
interpreter that runs it, even with ``--python-version``. The platform is named as well: a newer machine would take
wheels for a newer glibc than manylinux_2_28.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from appliance.errors import ApplianceError, UsageError
from tools.wheels.sources import (
    DIGEST_PATH,
    TARGET_PYTHON,
    Wheel,
    from_report,
    parse_json,
    parse_lock,
    render_json,
    render_lock,
    target_options,
    unfit,
)

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "requirements" / "engine-cuda.in"
LOCK = ROOT / "requirements" / "engine-cuda.lock"
WHEELS = ROOT / "modules" / "wheels.json"

PLAIN_INDEX = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
"""Variables that leave pip the ordinary index alone: extra indexes of a machine often hold CPU builds of torch."""


def resolve(python: str) -> list[Wheel]:
    """Return the set that the pip of ``python`` resolves for :data:`SOURCE`."""
    script = "import sys, platform; print('%d.%d' % sys.version_info[:2], platform.machine(), sys.platform)"
    target = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    if target != [TARGET_PYTHON, "x86_64", "linux"]:
        raise UsageError(f"{python} is {' '.join(target)}; lock with a Python {TARGET_PYTHON} on x86_64 Linux")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        argv = [
            python,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--ignore-installed",
            "--only-binary=:all:",
            "--quiet",
        ]
        argv += ["--progress-bar=off", "--report", str(report), "-r", str(SOURCE), *target_options()]
        if subprocess.run(argv, env={**os.environ, **PLAIN_INDEX}, check=False).returncode:
            raise ApplianceError(f"pip could not resolve {SOURCE.name}; its output above names what is missing")
        return from_report(json.loads(report.read_text()))


def faults(wheels: list[Wheel], lock: str) -> list[str]:
    """Return a line for each difference of ``wheels`` and ``lock``, and for each wheel that is unfit for Nix."""
    locked, found = parse_lock(lock), []
    for wheel in wheels:
        if locked.get(wheel.name) != (wheel.version, wheel.sha256):
            found.append(f"{wheel.name} {wheel.version} is not what engine-cuda.lock names; run lock_engine again")
        reason = unfit(wheel)
        if reason is not None:
            found.append(reason)
        if not DIGEST_PATH.fullmatch(wheel.path):
            found.append(
                f"{wheel.file} has the path {wheel.path!r} in wheels.json, not a digest; run lock_engine again"
            )
    found += [f"{name} is in engine-cuda.lock only; run lock_engine again" for name in
              sorted(locked.keys() - {wheel.name for wheel in wheels})]  # fmt: skip
    return found


def main() -> int:
    """Write both files, or with ``--check`` only compare them with each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default="python3.13", help="a Python 3.13 whose pip resolves")
    parser.add_argument("--check", action="store_true", help="compare the two files and write nothing")
    arguments = parser.parse_args()
    try:
        if not arguments.check:
            wheels = resolve(arguments.python)
            LOCK.write_text(render_lock(wheels))
            WHEELS.write_text(render_json(wheels))
        found = faults(parse_json(WHEELS.read_text()), LOCK.read_text())
    except ApplianceError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stderr.write("".join(f"{fault}\n" for fault in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
