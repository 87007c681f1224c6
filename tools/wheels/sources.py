"""One locked wheel, and the two files that hold the set: the lock of pip and the list for Nix. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

TARGET_PYTHON = "3.13"
"""The Python of the GPU host's engine (nixpkgs' python313)."""

NEWER_THAN_TARGET = {"llguidance": "manylinux_2_31_x86_64"}
"""Wheels that exist only for a newer glibc than manylinux_2_28. The host's glibc is newer still (nixos-26.05).
They are named one by one, so that no other is accepted."""

PLATFORMS = tuple(
    f"{tag}_x86_64"
    for tag in (
        *(f"manylinux_2_{minor}" for minor in range(31, 4, -1)),
        "manylinux2014",
        "manylinux2010",
        "manylinux1",
    )
)
"""Platforms for pip: manylinux_2_28 and older, and up to 2_31 for :data:`NEWER_THAN_TARGET`."""

HEADER = (
    "# Written by `python -m tools.wheels.lock_engine` from engine-cuda.in. Names, versions and hashes;\n"
    "# never an address. One wheel per package: the one for Python 3.13 on manylinux_2_28 x86_64.\n"
)


@dataclass(frozen=True, slots=True, order=True)
class Wheel:
    """One file of the set."""

    name: str
    """Normalised name, as PEP 503 writes it."""
    version: str
    file: str
    sha256: str

    @property
    def tags(self) -> tuple[str, str, str]:
        """Return the Python, ABI and platform tag of its file name."""
        python, abi, platform = self.file.removesuffix(".whl").rsplit("-", 3)[1:]
        return python, abi, platform

    @property
    def stem(self) -> str:
        """Return the distribution's name as written in the file name; the index finds a file by it."""
        return self.file.split("-", 1)[0]


def target_options() -> list[str]:
    """Return the options with which pip selects wheels for the GPU host on any machine."""
    options = ["--only-binary=:all:", "--python-version", TARGET_PYTHON, "--implementation", "cp"]
    for abi in ("cp313", "abi3", "none"):
        options += ["--abi", abi]
    for platform in PLATFORMS:
        options += ["--platform", platform]
    return options


def too_new(wheel: Wheel) -> bool:
    """Return whether ``wheel`` needs a newer glibc than manylinux_2_28 and is not a known exception."""
    minors = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", wheel.tags[2])]
    return bool(minors) and min(minors) > 28 and NEWER_THAN_TARGET.get(wheel.name) != wheel.tags[2]


def normalised(name: str) -> str:
    """Return ``name`` as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def from_report(report: dict[str, Any]) -> list[Wheel]:
    """Return the set that ``pip install --dry-run --report`` resolved."""
    wheels = []
    for item in report["install"]:
        file = item["download_info"]["url"].rsplit("/", 1)[1].split("#", 1)[0]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        metadata = item["metadata"]
        wheels.append(
            Wheel(
                name=normalised(metadata["name"]),
                version=metadata["version"],
                file=file.replace("%2B", "+"),
                sha256=digest,
            )
        )
    return sorted(wheels)


def render_lock(wheels: list[Wheel]) -> str:
    """Return the set as pip's requirements, for ``--require-hashes``."""
    return HEADER + "".join(f"{w.name}=={w.version} \\\n    --hash=sha256:{w.sha256}\n" for w in wheels)


def parse_lock(text: str) -> dict[str, tuple[str, str]]:
    """Return the version and the hash of each name of a lock that :func:`render_lock` wrote."""
    found = re.findall(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:([0-9a-f]{64})$", text, re.MULTILINE)
    return {name: (version, digest) for name, version, digest in found}


def render_json(wheels: list[Wheel]) -> str:
    """Return the set as ``modules/wheels.json``: the arguments of Nix's ``fetchPypi``, one object per line."""
    lines = []
    for wheel in wheels:
        python, abi, platform = wheel.tags
        fields = {
            "name": wheel.name,
            "version": wheel.version,
            "pname": wheel.stem,
            "python": python,
            "abi": abi,
        }
        fields |= {"platform": platform, "file": wheel.file, "sha256": wheel.sha256}
        lines.append("  " + json.dumps(fields))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def parse_json(text: str) -> list[Wheel]:
    """Return the set that ``text``, the content of ``modules/wheels.json``, holds."""
    return [
        Wheel(name=row["name"], version=row["version"], file=row["file"], sha256=row["sha256"])
        for row in json.loads(text)
    ]
