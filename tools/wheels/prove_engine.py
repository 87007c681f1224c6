"""Builds the engine's environment without a cache of nixpkgs, and examines it (``make prove-engine``).

Nix evaluates the derivation. Its own phases run under nixpkgs' setup script and autoPatchelf, in a Debian system
whose programs and libraries replace those of the stdenv. Needs root, Linux on x86_64, debootstrap, about 16 GB of
disk, and some minutes. Writes the last part of docs/wheels.md; exits non-zero if a line of it does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from appliance.contract.engine_options import known_flags
from appliance.contract.load import load
from appliance.engines import argv
from appliance.errors import ApplianceError
from tools.wheels import built as examine
from tools.wheels import stand_ins
from tools.wheels.built import Built
from tools.wheels.compiler import HOME
from tools.wheels.contents import LEFTOVERS, claimed_twice
from tools.wheels.debian import SUITE, DebianRoot
from tools.wheels.derivation import Derivation, evaluate
from tools.wheels.lock_engine import ROOT, WHEELS
from tools.wheels.report import BUILT, REPORT, WheelFinding, printed, table, with_last_part
from tools.wheels.sources import Wheel, parse_json
from tools.wheels.verify_wheels import LIBRARIES

BUILD = "phases.json"
"""The result of the last complete build and its line of the report, in the folder ``--work``."""

LOG = "phases.log"
"""The output of the phases, in the folder ``--work``."""


def build(root: DebianRoot, derivation: Derivation, wheels: Path, headers: Path) -> WheelFinding:
    """Run all phases of ``derivation``, the installation check included, without a network."""
    work = root.folder / "build"
    for folder in (work, root.folder / derivation.out.lstrip("/"), root.folder / "homeless-shelter"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (work, root.folder / stand_ins.WHEELS.lstrip("/")):
        folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "PATH": "/path-not-set",
        "HOME": "/homeless-shelter",
        "NIX_STORE": "/nix/store",
        "NIX_BUILD_TOP": "/build",
        "TMPDIR": "/build",
        "TEMPDIR": "/build",
        "TMP": "/build",
        "TEMP": "/build",
        "PWD": "/build",
        "TERM": "xterm-256color",
        "NIX_BUILD_CORES": str(os.cpu_count() or 1),
        "NIX_LOG_FD": "2",
        **derivation.environment,
    }
    start = time.monotonic()
    done = root.run(
        [derivation.builder, *derivation.arguments],
        environment=environment,
        binds={wheels: stand_ins.WHEELS, headers: "/usr/include"},
        folder="/build",
        log=root.folder.parent / LOG,
    )
    seconds = time.monotonic() - start
    title = "all phases pass, the installation check included"
    if done.returncode:
        last = [line for line in done.stdout.splitlines() if line.strip()][-4:]
        return WheelFinding(title, f"exit {done.returncode}; see {root.folder.parent / LOG}", last)
    size = int(
        subprocess.check_output(["du", "-sb", root.folder / derivation.out.lstrip("/")], text=True).split()[0]
    )
    found = f"{size / 1e9:.1f} GB in {seconds:.0f} s, without a network"
    (root.folder.parent / BUILD).write_text(json.dumps({"out": derivation.out, "title": title, "found": found}))
    return WheelFinding(title, found)


def last_build(root: DebianRoot, derivation: Derivation) -> WheelFinding:
    """Return the line of the last build, if it made the result of ``derivation``."""
    record = root.folder.parent / BUILD
    last = json.loads(record.read_text()) if record.exists() else {}
    if last.get("out") != derivation.out:
        raise ApplianceError(f"{root.folder.parent} has no build of {derivation.out}: run without --examine-only")
    return WheelFinding(last["title"], last["found"])


def driver_stub(built: Built) -> None:
    """Put a library with the driver's name where NixOS has the driver. Its functions report a missing card."""
    folder = built.outside(examine.DRIVER)
    folder.mkdir(parents=True, exist_ok=True)
    extensions = [f"{built.site}/vllm/{path.name}" for path in built.outside(f"{built.site}/vllm").glob("*.so")]
    symbols = built.root.output(["nm", "--dynamic", "--undefined-only", "--no-sort", *extensions])
    names = sorted(set(re.findall(r" U (cu[A-Z]\w+)$", symbols, re.MULTILINE)))
    source = built.outside("/build/driver.c")
    source.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in names))
    library = f"{examine.DRIVER}/libcuda.so.1"
    built.root.output(
        ["gcc", "-shared", "-fPIC", "-w", "/build/driver.c", "-Wl,-soname,libcuda.so.1", "-o", library]
    )
    link = folder / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to("libcuda.so.1")


def original_header(wheels: list[Wheel], folder: Path, target: Path) -> Path:
    """Return a copy of the mathematics header as NVIDIA's wheel has it."""
    (wheel,) = (wheel for wheel in wheels if wheel.name == "nvidia-cuda-crt")
    with zipfile.ZipFile(folder / wheel.file) as archive:
        target.write_bytes(archive.read(f"{HOME}/include/crt/math_functions.h"))
    return target


def example_commands() -> list[list[str]]:
    """Return the arguments of vLLM's server for each replica of each example."""
    return [
        list(argv.command(site, replica, ROOT).argv[3:])
        for path in sorted((ROOT / "examples").glob("*.toml"))
        for site in [load(path)]
        for replica in argv.replicas(site)
        if replica.engine.kind == "vllm"
    ]


def collisions(wheels: list[Wheel], folder: Path) -> WheelFinding:
    """Check that no file of the environment is in two wheels with different contents."""
    count, twice = claimed_twice(wheels, folder)
    known = [
        f"`{path}` in {', '.join(twice[path])} ({reason})" for path, reason in LEFTOVERS.items() if path in twice
    ]
    wrong = [f"{path} is in {', '.join(users)}" for path, users in twice.items() if path not in LEFTOVERS]
    wrong += [f"{path} is listed in LEFTOVERS, but not in two wheels" for path in LEFTOVERS.keys() - twice.keys()]
    return WheelFinding("no two wheels claim one file", "; but ".join([f"{count} files", *known]), wrong)


def report(findings: list[WheelFinding], wheels: list[Wheel]) -> str:
    """Return the last part of docs/wheels.md."""
    version = {wheel.name: wheel.version for wheel in wheels}
    lines = [
        BUILT,
        "",
        "Written by `make prove-engine`. The phases are those of the evaluated derivation. They ran under nixpkgs'",
        f"setup script and autoPatchelf, with programs and libraries of Debian ({SUITE}) in place of the stdenv's.",
        f"vllm {version['vllm']}, torch {version['torch']}.",
        "",
        *table(findings),
    ]
    return "\n".join(lines)


def main() -> int:
    """Build, examine, write the report; return 1 if a line does not hold, 2 if the build cannot begin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nix", default="nix", help="the program nix")
    parser.add_argument("--nixpkgs", type=Path, required=True, help="a folder with a whole nixpkgs")
    parser.add_argument("--wheels", type=Path, required=True, help="the folder that verify_wheels filled")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the Debian system and the result")
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--examine-only", action="store_true", help="use the result of the last build")
    arguments = parser.parse_args()
    try:
        findings, wheels = prove(arguments)
    except ApplianceError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    arguments.report.write_text(with_last_part(arguments.report.read_text(), report(findings, wheels)))
    sys.stdout.write(printed(findings))
    return 1 if any(item.wrong for item in findings) else 0


def prove(arguments: argparse.Namespace) -> tuple[list[WheelFinding], list[Wheel]]:
    """Return the lines of the report, and the set that was built."""
    if os.geteuid() != 0:
        raise ApplianceError("prove_engine mounts folders in a Debian system: run it as root")
    if not (arguments.nixpkgs / stand_ins.AUTO_PATCHELF).exists():
        raise ApplianceError(f"{arguments.nixpkgs} is not a whole nixpkgs: it has no {stand_ins.AUTO_PATCHELF}")
    wheels = parse_json(WHEELS.read_text())
    listed = json.loads(LIBRARIES.read_text())
    derivation = evaluate(arguments.nix, arguments.nixpkgs)
    root = DebianRoot(arguments.work.resolve() / "debian")
    root.make()
    headers, glibc = root.newer_headers()
    built = Built(root, derivation.out, headers)
    findings = [collisions(wheels, arguments.wheels)]
    if arguments.examine_only:
        findings.append(last_build(root, derivation))
    else:
        stand_ins.lay(root, derivation, arguments.nixpkgs, arguments.wheels)
        findings.append(build(root, derivation, arguments.wheels.resolve(), headers))
        if findings[-1].wrong:
            return findings, wheels
    driver_stub(built)
    original = original_header(wheels, arguments.wheels, root.folder / "build/math_functions.h")
    findings += [
        examine.needed(built, listed, {path.name for path in root.files_of("libc6")}),
        examine.bytecode(built),
        examine.imports(built),
        examine.flags(built, known_flags(), example_commands()),
        examine.kernel(built, glibc, original),
        examine.sampling(built, glibc),
        examine.cudnn(built),
    ]
    return findings, wheels


if __name__ == "__main__":
    sys.exit(main())
