"""What is inside a folder of wheels: their requirements and their ELF files."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tools.wheels import elf
from tools.wheels.sources import TARGET_PYTHON, Wheel, normalised

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


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unmet(wheels: list[Wheel], folder: Path) -> tuple[int, list[str]]:
    """How many requirements were looked at, and those that the set does not satisfy.

    Extras count where some wheel of the set asks for them, and for as long as that brings new requirements.
    """
    versions = {wheel.name: wheel.version for wheel in wheels}
    metadata = {wheel.name: _metadata(folder / wheel.file) for wheel in wheels}
    extras: dict[str, set[str]] = {name: set() for name in versions}
    faults, looked, todo = [], 0, [(name, "") for name in versions]
    for name, (wants, _) in metadata.items():
        if wants and not SpecifierSet(wants).contains(f"{TARGET_PYTHON}.0"):
            faults.append(f"{name} {versions[name]} wants Python {wants}")
    while todo:
        name, extra = todo.pop()
        for text in metadata[name][1]:
            needed = Requirement(text)
            if needed.marker is not None and not needed.marker.evaluate({**TARGET, "extra": extra}):
                continue
            if extra and (needed.marker is None or needed.marker.evaluate({**TARGET, "extra": ""})):
                continue  # already seen without the extra
            looked += 1
            other = normalised(needed.name)
            if other not in versions:
                faults.append(f"{name} {versions[name]} needs {text}, which is not in the set")
            elif not needed.specifier.contains(Version(versions[other]), prereleases=True):
                faults.append(f"{name} {versions[name]} needs {text}, the set has {versions[other]}")
            else:
                new = needed.extras - extras[other]
                extras[other] |= new
                todo += [(other, item) for item in new]
    return looked, faults


def libraries(wheels: list[Wheel], folder: Path) -> Iterator[tuple[Wheel, str, elf.Elf]]:
    """Every program and shared library of the set, with its path inside its wheel."""
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
    """The names under which the loader can find ``names``: autoPatchelf goes by file name, and so do we."""
    return {PurePosixPath(name).name for name in names}


def _metadata(path: Path) -> tuple[str, list[str]]:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(name).decode())
    return headers.get("Requires-Python", ""), headers.get_all("Requires-Dist", [])
