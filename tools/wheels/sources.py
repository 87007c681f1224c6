"""One locked wheel, and the two files that hold the set: the lock of pip and the list for Nix. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from appliance.errors import ApplianceError

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

ABIS = ("cp313", "abi3", "none")

HEADER = (
    "# Written by `python -m tools.wheels.lock_engine` from engine-cuda.in. Names, versions and hashes;\n"
    "# never an address. One wheel per package: the one for Python 3.13 on manylinux_2_28 x86_64.\n"
)

DIGEST_PATH = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{60}")
"""The permanent folder of a file on the index: the BLAKE2b digest of its content (32 bytes), cut in three."""


@dataclass(frozen=True, slots=True, order=True)
class Wheel:
    """One file of the set."""

    name: str
    """Normalised name, as PEP 503 writes it."""
    version: str
    file: str
    path: str
    """Folder of the file below the index's ``packages``; see :data:`DIGEST_PATH`."""
    sha256: str

    @property
    def tags(self) -> tuple[str, str, str]:
        """Return the Python, ABI and platform tag of its file name; empty ones if the name does not have three."""
        parts = self.file.removesuffix(".whl").split("-")
        return (parts[-3], parts[-2], parts[-1]) if len(parts) >= 5 else ("", "", "")


def target_options() -> list[str]:
    """Return the options with which pip selects wheels for the GPU host on any machine."""
    options = ["--only-binary=:all:", "--python-version", TARGET_PYTHON, "--implementation", "cp"]
    for abi in ABIS:
        options += ["--abi", abi]
    for platform in PLATFORMS:
        options += ["--platform", platform]
    return options


def unfit(wheel: Wheel) -> str | None:
    """Return why the GPU host cannot use ``wheel``, by the tags of its file name; ``None`` if it can."""
    python, abi, platform = wheel.tags
    if not (python and abi and platform):
        return f"{wheel.file} has no Python, ABI and platform tag"
    minors = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_x86_64", platform)]
    if minors and min(minors) > 28 and NEWER_THAN_TARGET.get(wheel.name) != platform:
        return f"{wheel.file} is newer than manylinux_2_28; pin an older one or name it in NEWER_THAN_TARGET"
    if not {*PLATFORMS, "any", "linux_x86_64"} & set(platform.split(".")):
        return f"{wheel.file} is for {platform}, not for Linux on x86_64"
    if not set(ABIS) & set(abi.split(".")):
        return f"{wheel.file} is for the ABI {abi}, not for Python {TARGET_PYTHON}"
    return None


def digest_path(digest: str) -> str:
    """Return the folder of a file on the index.

    Args:
        digest: BLAKE2b of the file, 32 bytes as 64 hexadecimal digits.

    >>> digest_path("ab" * 32)[:9]
    'ab/ab/aba'
    """
    return f"{digest[:2]}/{digest[2:4]}/{digest[4:]}"


def from_report(report: dict[str, Any]) -> list[Wheel]:
    """Return the set that ``pip install --dry-run --report`` resolved.

    Raises:
        ApplianceError: an address does not have the digest of its file, so it is not the index's permanent one.
    """
    wheels = []
    for item in report["install"]:
        folder, _, file = unquote(urlsplit(item["download_info"]["url"]).path).rpartition("/")
        path = "/".join(folder.split("/")[-3:])
        if not DIGEST_PATH.fullmatch(path):
            raise ApplianceError(
                f"pip took {file} from an address without the digest of the file; lock without mirrors and "
                f"local folders of wheels"
            )
        metadata = item["metadata"]
        wheels.append(
            Wheel(
                name=canonicalize_name(metadata["name"]),
                version=metadata["version"],
                file=file,
                path=path,
                sha256=item["download_info"]["archive_info"]["hashes"]["sha256"],
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
    """Return the set as ``modules/wheels.json``, one object per line: what Nix fetches, and the tags to compare."""
    lines = []
    for wheel in wheels:
        python, abi, _ = wheel.tags
        fields = {"name": wheel.name, "version": wheel.version, "python": python, "abi": abi}
        fields |= {"file": wheel.file, "path": wheel.path, "sha256": wheel.sha256}
        lines.append("  " + json.dumps(fields))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def parse_json(text: str) -> list[Wheel]:
    """Return the set that ``text``, the content of ``modules/wheels.json``, holds."""
    fields = ("name", "version", "file", "path", "sha256")
    return [Wheel(**{field: row[field] for field in fields}) for row in json.loads(text)]
