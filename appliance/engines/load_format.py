"""The loader with which vLLM reads weights, chosen for the place where they are.

On one H200 the default (mmap) loads 1.1 GB/s from a disk and instanttensor 35 GB/s; fastsafetensors has about twice
the default. Those figures are from the pages of the loaders. Each choice has its reason; an option replaces it.

The rules, first match:

1. Not vLLM on a card: the loaders copy to a card.
2. ``options`` of the engine name a loader: the operator's.
3. A tmpfs: instanttensor, which maps the files of RAM by itself.
4. A warm page cache: instanttensor with buffered reads; its direct reads would go to the disk again.
5. XFS or ext4: instanttensor with direct reads.
6. A network file system: the default with eight threads, which hide the latency.
7. Any other file system, whose direct reads are uncertain: fastsafetensors.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from appliance.contract.model import Engine

LOADER_OPTIONS = ("load-format", "model-loader-extra-config", "safetensors-load-strategy")
"""Options of vLLM that choose a loader."""

DIRECT = frozenset({"ext4", "xfs"})
"""File systems with direct I/O on NVMe drives."""

NETWORK = frozenset({"9p", "ceph", "cifs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3", "virtiofs"})
"""File systems of other machines."""

BUFFERED = {"INSTANTTENSOR_BACKEND": "BUFFERED"}
"""Variable with which instanttensor reads through the page cache."""

THREADS: dict[str, JsonValue] = {"enable_multithread_load": True, "num_threads": 8}
"""The default loader's own configuration for files that are read at once."""


@dataclass(frozen=True, slots=True)
class WeightsPlace:
    """Where weights are: the type of the file system, and whether they are in the page cache."""

    filesystem: str
    warm: bool = False


@dataclass(frozen=True, slots=True)
class LoaderChoice:
    """Options and environment of vLLM for a loader, and the reason."""

    reason: str
    options: dict[str, JsonValue] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def weights_store() -> Path:
    """Return the cache folder of the model hub: HF_HOME, or the hub's own default."""
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def choose_loader(engine: Engine, place: WeightsPlace) -> LoaderChoice:
    """Return the loader of ``engine`` for weights at ``place``."""
    if engine.kind != "vllm" or engine.device != "cuda":
        return LoaderChoice("the engine's own loader: the fast ones copy to a card of vLLM")
    named = [flag for flag in LOADER_OPTIONS if flag in engine.options]
    return LoaderChoice(f"options of the engine: {', '.join(named)}") if named else _by_place(place)


def _by_place(place: WeightsPlace) -> LoaderChoice:
    instant: dict[str, JsonValue] = {"load-format": "instanttensor"}
    if place.filesystem in ("tmpfs", "ramfs"):
        return LoaderChoice("instanttensor: the weights are in RAM, which it maps", instant)
    if place.warm:
        return LoaderChoice("instanttensor, buffered: `models warm` filled the page cache", instant, dict(BUFFERED))
    if place.filesystem in DIRECT:
        return LoaderChoice(f"instanttensor: direct reads from {place.filesystem}", instant)
    if place.filesystem in NETWORK:
        threads: dict[str, JsonValue] = {"load-format": "auto", "model-loader-extra-config": dict(THREADS)}
        return LoaderChoice(f"auto with 8 threads: {place.filesystem} is a network file system", threads)
    return LoaderChoice(
        f"fastsafetensors: direct reads from {place.filesystem} are uncertain", {"load-format": "fastsafetensors"}
    )


def filesystem_of(path: Path, mounts: str) -> str:
    """Return the type of the file system of ``path``; ``mounts`` is the text of /proc/self/mounts.

    Example::

        filesystem_of(Path("/srv/models"), "/dev/md0 /srv xfs rw 0 0") == "xfs"
    """
    found, depth = "unknown", -1
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        # The kernel writes blanks of names in octal.
        point = Path(words[1].replace("\\040", " "))
        # The last of several mounts on one folder is the visible one.
        if path.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = words[2], len(point.parts)
    return found
