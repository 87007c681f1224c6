"""Verifies the engine's wheel set on the wheels themselves (``make verify-wheels``; 3.7 GB to fetch).

Writes the first part of docs/wheels.md and exits non-zero if a line of it does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

from appliance.models.lock import digest
from tools.wheels import compiler, elf
from tools.wheels.contents import blake2b_path, libraries, provided, unmet
from tools.wheels.lock_engine import LOCK, PLAIN_INDEX, ROOT, WHEELS, faults
from tools.wheels.report import REPORT, WheelFinding, printed, table, with_first_part
from tools.wheels.sources import TARGET_PYTHON, Wheel, parse_json, target_options

LIBRARIES = ROOT / "modules" / "engine-libraries.json"
PINS = ROOT / "modules" / "pins.nix"
KERNELS = {
    "_C": r"vllm/_C(_stable_libtorch)?\.abi3\.so",
    "_moe_C": r"vllm/_moe_C(_stable_libtorch)?\.abi3\.so",
}
"""vLLM's two libraries of kernels by their usual names; with torch's stable ABI their files have a suffix."""

ARCHITECTURE = "sm_120"
DRIVER_FOR_CUDA = {"12": 525, "13": 580}
"""Lowest driver branch of a CUDA major version (NVIDIA's minor-version compatibility table)."""


def download(folder: Path) -> WheelFinding:
    """Fetch the set with ``--require-hashes`` into ``folder``; pip keeps the files that are there already."""
    argv = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps", "--no-cache-dir", "--quiet"]
    argv += [*target_options(), "--progress-bar=off", "-r", str(LOCK), "-d", str(folder)]
    done = subprocess.run(argv, env={**os.environ, **PLAIN_INDEX}, check=False, capture_output=True, text=True)
    return WheelFinding("complete under `pip download --require-hashes --no-deps`", "exit 0",
                   [] if done.returncode == 0 else done.stderr.strip().splitlines()[-3:])  # fmt: skip


def hashes(wheels: list[Wheel], folder: Path) -> WheelFinding:
    """Check that ``folder`` holds the locked files of wheels.json and no other, and their paths on the index."""
    wrong, size = faults(wheels, LOCK.read_text()), 0
    for wheel in wheels:
        file = folder / wheel.file
        if not file.exists():
            wrong.append(f"{wheel.file} is missing")
        elif digest(file) != wheel.sha256:
            wrong.append(f"{wheel.file} has another SHA-256 than the lock")
        elif (path := blake2b_path(file)) != wheel.path:
            wrong.append(f"{wheel.file} has the path {path} by its BLAKE2b, not that of wheels.json; lock again")
        else:
            size += file.stat().st_size
    extra = {path.name for path in folder.glob("*.whl")} - {wheel.file for wheel in wheels}
    wrong += [f"{name} is not in the lock" for name in sorted(extra)]
    return WheelFinding(
        "files equal the lock and modules/wheels.json, paths by BLAKE2b included",
        f"{len(wheels)} wheels, {size / 1e9:.2f} GB",
        wrong,
    )


def dependencies(wheels: list[Wheel], folder: Path) -> WheelFinding:
    """Check that the set satisfies every requirement of every wheel."""
    checked, wrong = unmet(wheels, folder)
    return WheelFinding("dependencies satisfied inside the set", f"{checked} requirements", wrong)


def needed(found: list[tuple[Wheel, str, elf.Elf]], listed: dict[str, dict[str, str]]) -> list[WheelFinding]:
    """Check that every NEEDED name is in the set or listed, and that every listed name is needed."""
    native = [(wheel, path, item) for wheel, path, item in found if item.machine == elf.X86_64]
    have = provided(iter(path for _, path, _ in native))
    users: dict[str, set[str]] = defaultdict(set)
    for wheel, _, item in native:
        for name in item.needed:
            users[name].add(wheel.name)
    outside = {name: needing for name, needing in users.items() if name not in have}
    kinds = {name: _kind(name, listed) for name in outside}
    wrong = [
        f"{name}, needed by {', '.join(sorted(outside[name]))}, is nowhere"
        for name, kind in kinds.items()
        if not kind
    ]
    idle = [
        pattern for names in listed.values() for pattern in names if not any(fnmatch(n, pattern) for n in outside)
    ]
    wrong += [f"{pattern} is listed in engine-libraries.json, but nothing needs it" for pattern in idle]
    per = {kind: sum(1 for value in kinds.values() if value == kind) for kind in listed}
    runtimes = sorted(name for name in users if name.startswith("libcudart.so"))
    foreign = len(found) - len(native)
    return [
        WheelFinding(
            "every ELF NEEDED resolved",
            f"{len(native)} files, {len(users)} names: {len(users) - len(outside)} inside the set, "
            f"{per['nixpkgs']} from nixpkgs, {per['driver']} from the driver, {per['optional']} optional; "
            f"{foreign} files for other machines, not looked at",
            wrong,
        ),
        WheelFinding(
            "one CUDA runtime",
            ", ".join(runtimes),
            [] if len(runtimes) == 1 else [f"{len(runtimes)} runtimes are linked"],
        ),
    ]


def kernels(wheels: list[Wheel], folder: Path) -> list[WheelFinding]:
    """Check that vLLM's kernel libraries hold native code for the GPUs, with the cuobjdump of triton."""
    files = {wheel.name: folder / wheel.file for wheel in wheels}
    findings = []
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(files["triton"]) as triton:
        tool = Path(triton.extract("triton/backends/nvidia/bin/cuobjdump", scratch))
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        with zipfile.ZipFile(files["vllm"]) as vllm:
            for title, pattern in KERNELS.items():
                members = [name for name in vllm.namelist() if re.fullmatch(pattern, name)]
                count = sum(_cubins(tool, Path(vllm.extract(name, scratch))) for name in members)
                wrong = (
                    [] if count else [f"no {ARCHITECTURE} code in {title} ({', '.join(members) or 'no such file'})"]
                )
                findings.append(
                    WheelFinding(
                        f"`{title}` carries {ARCHITECTURE} code",
                        f"{count} cubins in {', '.join(members)}",
                        wrong,
                    )
                )
    return findings


def toolkit(wheels: list[Wheel], folder: Path) -> WheelFinding:
    """Check that the set's own nvcc compiles and links for the GPUs, as FlashInfer does while the engine runs."""
    with tempfile.TemporaryDirectory() as scratch:
        home = compiler.unpack_toolkit(wheels, folder, Path(scratch))
        library, errors = compiler.compile_kernel(home, Path(scratch), ARCHITECTURE)
        version = next(wheel.version for wheel in wheels if wheel.name == "nvidia-cuda-nvcc")
        found = f"nvcc {version} compiled and linked a kernel" if library else "nvcc failed"
        return WheelFinding(f"the set compiles for {ARCHITECTURE} by itself", found, [] if library else [errors])


def driver(wheels: list[Wheel]) -> WheelFinding:
    """Check that each driver of modules/pins.nix runs the CUDA of the wheels."""
    runtime = next(wheel.version for wheel in wheels if wheel.name == "nvidia-cuda-runtime")
    offered = re.findall(r'^ +"(\d{3}\.[\d.]+)" = \{$', PINS.read_text(), re.MULTILINE)
    lowest = DRIVER_FOR_CUDA.get(runtime.split(".", 1)[0])
    wrong = [
        f"CUDA {runtime} needs driver {lowest} or newer; modules/pins.nix offers {version}"
        for version in offered
        if lowest is None or int(version.split(".", 1)[0]) < lowest
    ]
    return WheelFinding(
        "CUDA runtime fits the offered drivers",
        f"CUDA {runtime} (needs ≥ {lowest}), drivers {', '.join(offered)}",
        wrong if offered else ["modules/pins.nix offers no driver"],
    )


def report(findings: list[WheelFinding], wheels: list[Wheel], listed: dict[str, dict[str, str]]) -> str:
    """Return the first part of docs/wheels.md."""
    version = {wheel.name: wheel.version for wheel in wheels}
    names = (
        "vllm",
        "torch",
        "triton",
        "flashinfer-python",
        "transformers",
        "nvidia-nccl-cu13",
        "nvidia-cudnn-cu13",
    )
    lines = [
        "# The engine's wheel set",
        "",
        "Written by `make verify-wheels`, which looked at the wheels themselves.",
        f"Target: Python {TARGET_PYTHON}, manylinux_2_28 x86_64. No kernel was run: that needs a card.",
        "",
        *table(findings),
        "",
        "Versions: " + ", ".join(f"{name} {version[name]}" for name in names if name in version) + ".",
        "",
    ]
    for kind, names_of_kind in listed.items():
        lines += [f"## Libraries: {kind}", "", "| name | |", "|---|---|"]
        lines += [f"| `{name}` | {reason} |" for name, reason in names_of_kind.items()] + [""]
    return "\n".join(lines)


def main() -> int:
    """Verify, write the report, print what does not hold; return 1 if anything does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="a folder that keeps the wheels; missing ones are fetched")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    wheels = parse_json(WHEELS.read_text())
    listed = json.loads(LIBRARIES.read_text())
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.wheels or Path(scratch)
        findings = [download(folder), hashes(wheels, folder)]
        if not findings[-1].wrong:
            findings += [dependencies(wheels, folder), *needed(list(libraries(wheels, folder)), listed)]
            findings += [*kernels(wheels, folder), toolkit(wheels, folder), driver(wheels)]
    before = arguments.report.read_text() if arguments.report.exists() else ""
    arguments.report.write_text(with_first_part(before, report(findings, wheels, listed)))
    sys.stdout.write(printed(findings))
    return 1 if any(item.wrong for item in findings) else 0


def _kind(name: str, listed: dict[str, dict[str, str]]) -> str | None:
    """Return the heading of engine-libraries.json under which ``name`` is listed."""
    return next((kind for kind, names in listed.items() if any(fnmatch(name, item) for item in names)), None)


def _cubins(tool: Path, library: Path) -> int:
    listing = subprocess.run([tool, "--list-elf", library], check=True, capture_output=True, text=True).stdout
    return len(re.findall(rf"\b{ARCHITECTURE}\w?\.cubin", listing))


if __name__ == "__main__":
    sys.exit(main())
