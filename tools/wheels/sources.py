"""One locked wheel, and the two files that hold the set: the pip lock and the list that Nix reads. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

TARGET_PYTHON = "3.13"
"""The Python of the GPU host's engine (nixpkgs' python313)."""

NEWER_THAN_TARGET = {"llguidance": "manylinux_2_31_x86_64"}
"""Wheels that exist only for a newer glibc than manylinux_2_28. Fine on the host, whose glibc is newer still
(nixos-26.05); named one by one, so that no other slips in."""

PLATFORMS = tuple(
    f"{tag}_x86_64"
    for tag in (
        *(f"manylinux_2_{minor}" for minor in range(31, 4, -1)),
        "manylinux2014",
        "manylinux2010",
        "manylinux1",
    )
)
"""What pip may choose from: manylinux_2_28 and older, and up to 2_31 for :data:`NEWER_THAN_TARGET`."""

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
        """Python, ABI and platform tag of its file name."""
        python, abi, platform = self.file.removesuffix(".whl").rsplit("-", 3)[1:]
        return python, abi, platform

    @property
    def stem(self) -> str:
        """The distribution's name as the file writes it; the index finds a file by it."""
        return self.file.split("-", 1)[0]


def target_options() -> list[str]:
    """The options that make pip choose wheels for the GPU host, on whatever machine it runs."""
    options = ["--only-binary=:all:", "--python-version", TARGET_PYTHON, "--implementation", "cp"]
    for abi in ("cp313", "abi3", "none"):
        options += ["--abi", abi]
    for platform in PLATFORMS:
        options += ["--platform", platform]
    return options


def too_new(wheel: Wheel) -> bool:
    """Whether ``wheel`` asks for a glibc newer than manylinux_2_28's and is no known exception."""
    minors = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", wheel.tags[2])]
    return bool(minors) and min(minors) > 28 and NEWER_THAN_TARGET.get(wheel.name) != wheel.tags[2]


def normalised(name: str) -> str:
    """``name`` as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def from_report(report: dict[str, Any]) -> list[Wheel]:
    """The set that ``pip install --dry-run --report`` resolved."""
    wheels = []
    for item in report["install"]:
        file = item["download_info"]["url"].rsplit("/", 1)[1].split("#", 1)[0]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        metadata = item["metadata"]
        wheels.append(Wheel(normalised(metadata["name"]), metadata["version"], file.replace("%2B", "+"), digest))
    return sorted(wheels)


def render_lock(wheels: list[Wheel]) -> str:
    """The set as pip's requirements, for ``--require-hashes``."""
    return HEADER + "".join(f"{w.name}=={w.version} \\\n    --hash=sha256:{w.sha256}\n" for w in wheels)


def parse_lock(text: str) -> dict[str, tuple[str, str]]:
    """Name to version and hash of a lock that :func:`render_lock` wrote."""
    found = re.findall(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:([0-9a-f]{64})$", text, re.MULTILINE)
    return {name: (version, digest) for name, version, digest in found}


def render_json(wheels: list[Wheel]) -> str:
    """The set as ``modules/wheels.json``: what Nix's ``fetchPypi`` needs, one object per line."""
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
    """The set of ``modules/wheels.json``."""
    return [Wheel(row["name"], row["version"], row["file"], row["sha256"]) for row in json.loads(text)]
