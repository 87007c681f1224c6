"""Where a host's RAM goes: engines' processes, pinned copies of weights, offload, models in tmpfs, huge
pages.

Pure. What vLLM offloads is budgeted twice: ``--kv-offloading-size`` was seen to take 1.92 times its size and
``--cpu-offload-gb`` 1.9 times (vLLM issues 53042 and 56410).
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.contract.card_memory import GIB

SYSTEM_GIB = 4.0
"""The system, the gateway, monitoring."""
ENGINE_GIB = 6.0
"""One engine's API server and scheduler, Python and CUDA libraries mapped. Source: RSS of vLLM processes."""
CPU_ENGINE_GIB = 2.0
"""The same on the processor, without CUDA. Source: a tiny model on vLLM's CPU wheel serves within 3 GB in
all."""
WORKER_GIB = 3.0
"""Each card's worker process, with its pinned staging buffers."""
OFFLOAD_FACTOR = 2.0
"""Bytes of RAM per byte offloaded."""
FREE_SHARE = 0.05
"""Part of RAM that must stay free for the page cache to turn over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRam:
    """What one replica asks of its host, in bytes unless named otherwise."""

    cards: int = 0
    weights: float = 0.0
    """Weights of the whole replica."""
    sleeps: bool = False
    """Sleep level 1 keeps a copy of the weights in pinned RAM."""
    in_ram: float = 0.0
    """Weights and KV cache that live in RAM: CPU engines, experts on the processor."""
    offload: float = 0.0
    """--cpu-offload-gb and --kv-offloading-size, over all cards."""

    @property
    def total(self) -> float:
        """Bytes of RAM."""
        return self.processes + self.requested

    @property
    def processes(self) -> float:
        """Bytes of the processes themselves: an estimate."""
        return ((ENGINE_GIB if self.cards else CPU_ENGINE_GIB) + WORKER_GIB * self.cards) * GIB

    @property
    def requested(self) -> float:
        """Bytes that the configuration asks for by the gigabyte: pinned, offloaded, held in RAM."""
        return (self.weights if self.sleeps else 0.0) + self.in_ram + OFFLOAD_FACTOR * self.offload


@dataclass(frozen=True, slots=True)
class HostRam:
    """A host's account."""

    total: float
    needed: float
    parts: tuple[tuple[str, float], ...]

    @property
    def fits(self) -> bool:
        """Whether everything has room, a little free space included."""
        return self.needed <= self.total * (1 - FREE_SHARE)

    @property
    def biggest(self) -> str:
        """The part that takes most."""
        return max(self.parts, key=lambda part: part[1])[0]


def account(
    ram_gib: float, engines: list[EngineRam], *, tmpfs_gib: float = 0.0, hugepages_gib: float = 0.0
) -> HostRam:
    """The account of a host with ``ram_gib`` of RAM."""
    parts = {
        "system": SYSTEM_GIB * GIB,
        "engine processes": sum(engine.processes for engine in engines),
        "pinned copies for sleep": sum(engine.weights for engine in engines if engine.sleeps),
        "weights and KV cache in RAM": sum(engine.in_ram for engine in engines),
        "offload, counted twice": sum(OFFLOAD_FACTOR * engine.offload for engine in engines),
        "models in tmpfs": tmpfs_gib * GIB,
        "huge pages": hugepages_gib * GIB,
    }
    return HostRam(ram_gib * GIB, sum(parts.values()), tuple(parts.items()))
