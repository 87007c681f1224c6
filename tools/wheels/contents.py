"""The contents of a folder of wheels: requirements and ELF files."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.wheels import elf
from tools.wheels.sources import TARGET_PYTHON, Wheel, digest_path

TARGET = {
    "implementation_name": "cpython",
    "implementation_version": f"{TARGET_PYTHON}.0",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_release": "",
    "platform_system": "Linux",
    "platform_version": "",
    "python_full_version": f"{TARGET_PYTHON}.0",
    "python_version": TARGET_PYTHON,
    "sys_platform": "linux",
}
"""The environment in which markers are read."""


def unmet(wheels: list[Wheel], folder: Path) -> tuple[int, list[str]]:
    """Return the number of checked requirements, and a line for each that the set does not satisfy.

    Extras count if a wheel of the set requires them, until that adds no new requirements.
    """
    versions = {wheel.name: wheel.version for wheel in wheels}
    metadata = {wheel.name: _metadata(folder / wheel.file) for wheel in wheels}
    extras: dict[str, set[str]] = {name: set() for name in versions}
    unsatisfied, checked, todo = [], 0, [(name, "") for name in versions]
    for name, (wants, _) in metadata.items():
        if wants and not SpecifierSet(wants).contains(f"{TARGET_PYTHON}.0"):
            unsatisfied.append(f"{name} {versions[name]} wants Python {wants}")
    while todo:
        name, extra = todo.pop()
        for text in metadata[name][1]:
            needed = Requirement(text)
            if needed.marker is not None and not needed.marker.evaluate({**TARGET, "extra": extra}):
                continue
            if extra and (needed.marker is None or needed.marker.evaluate({**TARGET, "extra": ""})):
                continue  # counted without the extra
            checked += 1
            other = canonicalize_name(needed.name)
            if other not in versions:
                unsatisfied.append(f"{name} {versions[name]} needs {text}, which is not in the set")
            elif not needed.specifier.contains(Version(versions[other]), prereleases=True):
                unsatisfied.append(f"{name} {versions[name]} needs {text}, the set has {versions[other]}")
            else:
                new = needed.extras - extras[other]
                extras[other] |= new
                todo += [(other, item) for item in new]
    return checked, unsatisfied


def libraries(wheels: list[Wheel], folder: Path) -> Iterator[tuple[Wheel, str, elf.Elf]]:
    """Yield every program and shared library of the set, with its path inside its wheel."""
    for wheel in wheels:
        with zipfile.ZipFile(folder / wheel.file) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    if file.read(6) != elf.MAGIC:
                        continue
                found = elf.parse(archive.read(entry))
                if found is not None:
                    yield wheel, entry.filename, found


def provided(names: Iterator[str]) -> set[str]:
    """Return the file names of ``names``: autoPatchelf resolves libraries by file name, and so does the check."""
    return {PurePosixPath(name).name for name in names}


LEFTOVERS = {"build_backend.py": "the wheels' own build left it, and nothing imports it"}
"""Files that several wheels have with different contents, to no effect, and why."""


def blake2b_path(file: Path) -> str:
    """Return the folder that the index gives to a file with the content of ``file``."""
    with file.open("rb") as stream:
        return digest_path(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32)).hexdigest())


def claimed_twice(wheels: list[Wheel], folder: Path) -> tuple[int, dict[str, list[str]]]:
    """Compare the files that the wheels install.

    Returns:
        The number of files. Then, by file, the wheels that have it with different contents. The installation would
        keep any one of them.
    """
    claims: dict[str, dict[str, int]] = {}
    for wheel in wheels:
        with zipfile.ZipFile(folder / wheel.file) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    claims.setdefault(_installed(entry.filename), {})[wheel.name] = entry.CRC
    different = {path: list(users) for path, users in claims.items() if len(set(users.values())) > 1}
    return len(claims), different


def _installed(name: str) -> str:
    """Return where a file of a wheel is installed, relative to the modules' folder or the scheme's."""
    match = re.fullmatch(r"[^/]+\.data/(purelib|platlib|[^/]+)/(.+)", name)
    if match is None:
        return name
    return match[2] if match[1] in {"purelib", "platlib"} else f"<{match[1]}>/{match[2]}"


def _metadata(path: Path) -> tuple[str, list[str]]:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(name).decode())
    return headers.get("Requires-Python", ""), headers.get_all("Requires-Dist", [])
