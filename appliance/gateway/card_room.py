"""The free memory of cards after a sleep, compared with the memory that the next engine takes.

vLLM's sleep returns 200 even if it frees less than it should. Memory can leak, and a second engine on a card was
observed to keep half of it. A wake without room ends the engine, so the free memory is read between the two.
:func:`room_shortage` is pure; :class:`DriverMemory` runs `nvidia-smi`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from appliance.system.nvidia_smi import GpuQuery

FIELDS = ("index", "memory.total", "memory.free")

SLACK_MIB = 1024.0
"""MiB that may be missing: the shares of a site are rounded, and the driver reserves memory of its own."""


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """The memory of one card in MiB, as the driver reports it."""

    total_mib: float
    free_mib: float


class FreeMemoryReader(Protocol):
    """Reads the free memory of this machine's cards; the swap controller calls it in the gateway's event loop."""

    async def read(self) -> Mapping[int, FreeMemory]:
        """Return the memory by the index of the card; raises :class:`NvidiaSmiError` if it cannot be read."""


class DriverMemory:
    """The memory that `nvidia-smi` reports."""

    async def read(self) -> Mapping[int, FreeMemory]:
        """Return the memory of each card that reports it; raises :class:`NvidiaSmiError`."""
        found = {}
        for row in await asyncio.to_thread(GpuQuery(FIELDS).rows):
            index, total, free = row.integer("index"), row.number("memory.total"), row.number("memory.free")
            if index is not None and total is not None and free is not None:
                found[index] = FreeMemory(total, free)
        return found


def room_shortage(needed: Mapping[int, float], memory: Mapping[int, FreeMemory]) -> str:
    """Return why an engine does not fit, with the fullest card; empty if it fits.

    Args:
        needed: Share of each card that the engine takes in addition to what it holds already.
        memory: The cards' memory. A card that is not in it is not compared.

    Example::

        room_shortage({0: 0.9}, {0: FreeMemory(97887, 20000)}) == "card 0 has 19.5 GiB free of the 86.0 GiB …"
    """
    lacking = []
    for index, share in needed.items():
        card = memory.get(index)
        if card is not None and (missing := share * card.total_mib - SLACK_MIB - card.free_mib) > 0:
            lacking.append((missing, index, card.free_mib, share * card.total_mib))
    if not lacking:
        return ""
    _, index, free, wanted = max(lacking)
    return f"card {index} has {free / 1024:.1f} GiB free of the {wanted / 1024:.1f} GiB that it needs"
