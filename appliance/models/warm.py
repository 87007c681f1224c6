"""Brings weights into RAM before an engine needs them: into the page cache, or into a store on a tmpfs.

The rules for RAM are in :func:`page_cache_excess` and :func:`tmpfs_excess`: warm weights must never take the memory
of the engines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import StoreError, UsageError
from appliance.models.lock import Entry
from appliance.models.progress import size_text
from appliance.models.source import BLOCK
from appliance.system import files

TMPFS_FACTOR = 3
"""RAM for each byte of weights on a tmpfs: the weights, their copy in an engine that sleeps, and the rest."""

PAGE_CACHE_SHARE = 0.8
"""Share of the available RAM that weights may fill: the kernel would drop the first pages for the last ones."""

RECORD = "warmed"
"""Name of the file in a store with the models in the page cache, and the boot in which they were read."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """RAM of this host in bytes: all of it, and the part that programs can still take."""

    total: int
    available: int


def read_memory(meminfo: Path = Path("/proc/meminfo")) -> HostMemory:
    """Return the memory of this host; raises :class:`StoreError` if the kernel does not report it."""
    text = (files.read(meminfo) or b"").decode("ascii", "replace")
    values = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", text, re.MULTILINE))
    if len(values) < 2:
        raise StoreError(f"{meminfo}: has no MemTotal and MemAvailable; is /proc mounted?")
    return HostMemory(int(values["MemTotal"]) * 1024, int(values["MemAvailable"]) * 1024)


def page_cache_excess(weights: int, memory: HostMemory) -> str:
    """Return why ``weights`` bytes do not fit the page cache; empty if they fit."""
    room = int(memory.available * PAGE_CACHE_SHARE)
    if weights <= room:
        return ""
    return (
        f"{size_text(weights)} of weights do not fit the page cache: {size_text(room)} is "
        f"{PAGE_CACHE_SHARE:.0%} of the available RAM; name fewer models"
    )


def tmpfs_excess(weights: int, memory: HostMemory) -> str:
    """Return why ``weights`` bytes do not fit a tmpfs; empty if they fit."""
    if weights * TMPFS_FACTOR <= memory.total:
        return ""
    return (
        f"{size_text(weights)} of weights on a tmpfs need {size_text(weights * TMPFS_FACTOR)} of RAM, this host "
        f"has {size_text(memory.total)}; name fewer models, or keep the store on a disk"
    )


def chosen(entries: Sequence[Entry], models: Sequence[str]) -> list[Entry]:
    """Return the entries of ``models``, each ``ORG/NAME`` or ``ORG/NAME@REVISION``; all of them without models.

    Raises :class:`UsageError` for a model that the lock lacks.
    """
    if not models:
        return list(entries)
    for model in models:
        if not any(_is(one, model) for one in entries):
            known = ", ".join(sorted({one.repository for one in entries}))
            raise UsageError(f"the lock has no model {model!r}; it has {known}")
    return [one for one in entries if any(_is(one, model) for model in models)]


def _is(entry: Entry, model: str) -> bool:
    return model in (entry.repository, f"{entry.repository}@{entry.revision}")


def fill_page_cache(entries: Sequence[Entry], store: Path, advance: Callable[[int], None], threads: int) -> None:
    """Read the files of ``entries``, ``threads`` at once, and record their models as warm.

    Raises :class:`StoreError` if a file cannot be read.
    """

    def read(entry: Entry) -> None:
        path = entry.path(store)
        buffer = memoryview(bytearray(BLOCK))
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    advance(count)
        except OSError as error:
            raise StoreError.unreadable(path, error) from None

    with ThreadPoolExecutor(threads, thread_name_prefix="warm") as pool:
        for _ in pool.map(read, entries):
            pass
    models = sorted({f"{one.repository}@{one.revision}" for one in entries})
    files.replace(store / RECORD, json.dumps({"boot": _boot(), "models": models}) + "\n")


def is_warm(store: Path, repository: str, revision: str | None) -> bool:
    """Return whether a run in this boot read the model into the page cache of ``store``."""
    try:
        record = json.loads(files.read(store / RECORD) or b"{}")
    except ValueError:
        return False
    return (
        isinstance(record, dict)
        and record.get("boot") == _boot()
        and f"{repository}@{revision}" in (record.get("models") or [])
    )


def _boot() -> str:
    return (files.read(BOOT_ID) or b"").decode("ascii").strip()
