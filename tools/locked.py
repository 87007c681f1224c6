"""Reads locks: which packages a platform installs from one, and whether each has a wheel for it.

A lock holds digests, not file names. ``requirements/files.txt`` names the file of each digest that our
platforms may install, as the index listed it when the lock was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from tools.platforms import ALL, PYTHONS, Platform

PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)(?:\s*;\s*([^\\]+?))?\s*\\?$")
VERSIONS = tuple(f"{major}.{minor}" for major, minor in PYTHONS)
DIGEST = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class LockedPackage:
    """One entry of a lock: name, version, the platforms that install it (all without ``marker``), its digests."""

    name: str
    version: str
    marker: Marker | None
    digests: frozenset[str]

    def applies(self, platform: Platform) -> bool:
        """Return whether ``platform`` installs it."""
        return self.marker is None or self.marker.evaluate(environment(platform))


def simplify(line: str) -> str:
    """Return the first line of an entry with a marker that is as short as our platforms allow.

    uv repeats in each marker the limits of all platforms.
    """
    head = PIN.match(line)
    if head is None or not head[3]:
        return line
    installing = {one for one in ALL if Marker(head[3]).evaluate(environment(one))}
    for marker in ("", *(f"python_version {sign} '{version}'" for version in VERSIONS for sign in ("<", ">="))):
        if installing == {one for one in ALL if not marker or Marker(marker).evaluate(environment(one))}:
            return line.replace(f" ; {head[3].strip()}", f" ; {marker}" if marker else "")
    return line


def entries(lock: str) -> list[str]:
    """Return the entries of ``lock``: each a package with its digests, over several lines."""
    return [entry for entry in re.split(r"^(?=\S)", lock, flags=re.MULTILINE) if re.match(r"[^#\s].*==", entry)]


def pin(entry: str) -> str:
    """Return the first line of ``entry``, without its hashes."""
    return entry.splitlines()[0].removesuffix("\\").rstrip()


def packages(lock: str) -> list[LockedPackage]:
    """Return the packages of ``lock``; raises ``ValueError`` for an entry that is not of our form."""
    found = []
    for entry in entries(lock):
        head = PIN.match(entry.splitlines()[0])
        if head is None:
            raise ValueError(f"not an entry of a lock: {entry.splitlines()[0]}")
        marker = Marker(head[3]) if head[3] else None
        found.append(LockedPackage(canonicalize_name(head[1]), head[2], marker, frozenset(DIGEST.findall(entry))))
    return found


def environment(platform: Platform) -> dict[str, str]:
    """Return the values of environment markers on ``platform`` (PEP 508)."""
    version = f"{platform.python[0]}.{platform.python[1]}"
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{version}.0",
        "os_name": "posix",
        "platform_machine": platform.machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{version}.0",
        "python_version": version,
        "sys_platform": "linux",
    }


@cache
def tags(platform: Platform) -> frozenset[Tag]:
    """Return the tags of the wheels that ``platform`` can install."""
    own = cpython_tags(platform.python, abis=[platform.abi], platforms=platform.wheels)
    return frozenset([*own, *compatible_tags(platform.python, platform.abi, platform.wheels)])


def fits(file: str, name: str, version: str, platform: Platform) -> bool:
    """Return whether ``file`` is a wheel of this package that ``platform`` can install."""
    try:
        project, its_version, _, its_tags = parse_wheel_filename(file)
    except InvalidWheelFilename:
        return False
    return project == name and its_version == Version(version) and not its_tags.isdisjoint(tags(platform))


def missing(lock: str, files: Mapping[str, str], platforms: Iterable[Platform] = ALL) -> list[str]:
    """Return a line for each package of ``lock`` that a platform cannot install.

    ``files`` maps digests to file names.
    """
    found = []
    locked = packages(lock)
    for platform in platforms:
        seen: set[str] = set()
        for package in locked:
            if not package.applies(platform):
                continue
            if package.name in seen:
                found.append(f"{platform}: {package.name} is locked twice")
            seen.add(package.name)
            names = [files[digest] for digest in package.digests if digest in files]
            if not any(fits(name, package.name, package.version, platform) for name in names):
                found.append(f"{platform}: no wheel of {package.name} {package.version} is locked")
    return found


def read_files(text: str) -> dict[str, str]:
    """Return the file names by digest from the text of files.txt."""
    rows = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return dict(rows)
