"""The use of a host's RAM: processes of engines, pinned copies of weights, weights and KV cache in RAM, offload.

Pure. Offloaded bytes are counted twice: vLLM was observed to take 1.92 times the size of ``--kv-offloading-size``
and 1.9 times that of ``--cpu-offload-gb`` (vLLM issues 53042 and 56410).
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.contract.card_memory import GIB

SYSTEM_GIB = 4.0
"""The system, the gateway, monitoring."""
ENGINE_GIB = 6.0
"""One engine's API server and scheduler with Python and CUDA libraries. Source: RSS of vLLM processes."""
CPU_ENGINE_GIB = 2.0
"""The same on the processor, without CUDA. Source: vLLM's CPU wheel serves a tiny model within 3 GB in all."""
WORKER_GIB = 3.0
"""Each card's worker process, with its pinned staging buffers."""
ROUNDED_PINS = 78 / 61
"""Bytes of RAM per byte of weights asleep if torch rounds each pinned buffer up to a power of two. Computed for the
expert tensors of Qwen3-30B-A3B in bf16: 805 MB become 1024, 403 MB become 512."""
OFFLOAD_FACTOR = 2.0
"""Bytes of RAM per byte offloaded."""
FREE_SHARE = 0.05
"""Share of RAM that must stay free for the page cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRam:
    """The RAM of one replica, in bytes unless stated otherwise."""

    cards: int = 0
    weights: float = 0.0
    """Weights of the whole replica."""
    sleeps: bool = False
    """Sleep level 1 keeps a copy of the weights in pinned RAM."""
    pins_exactly: bool = True
    """Whether each pinned buffer has the size of its content, see :data:`ROUNDED_PINS`."""
    in_ram: float = 0.0
    """Weights and KV cache that live in RAM: CPU engines, experts on the processor."""
    offload: float = 0.0
    """--cpu-offload-gb and --kv-offloading-size, over all cards."""

    @property
    def total(self) -> float:
        """All bytes of RAM."""
        return self.processes + self.requested

    @property
    def processes(self) -> float:
        """Bytes of the processes: an estimate."""
        return ((ENGINE_GIB if self.cards else CPU_ENGINE_GIB) + WORKER_GIB * self.cards) * GIB

    @property
    def pinned(self) -> float:
        """Bytes of the pinned copy, which stays in RAM also while the engine is awake."""
        if not self.sleeps:
            return 0.0
        return self.weights * (1.0 if self.pins_exactly else ROUNDED_PINS)

    @property
    def requested(self) -> float:
        """Bytes that the configuration requests explicitly: pinned, offloaded, held in RAM."""
        return self.pinned + self.in_ram + OFFLOAD_FACTOR * self.offload


@dataclass(frozen=True, slots=True)
class HostRam:
    """The RAM of a host in bytes: existing, needed, and needed by part."""

    total: float
    needed: float
    parts: tuple[tuple[str, float], ...]

    @property
    def biggest(self) -> str:
        """Name of the largest part."""
        return max(self.parts, key=lambda part: part[1])[0]


def needed_ram(ram_gib: float, engines: list[EngineRam]) -> HostRam:
    """Return the RAM of a host with ``ram_gib`` GiB and ``engines``, one entry per replica."""
    parts = {
        "system": SYSTEM_GIB * GIB,
        "engine processes": sum(engine.processes for engine in engines),
        "pinned copies for sleep": sum(engine.pinned for engine in engines),
        "weights and KV cache in RAM": sum(engine.in_ram for engine in engines),
        "offload, counted twice": sum(OFFLOAD_FACTOR * engine.offload for engine in engines),
    }
    return HostRam(ram_gib * GIB, sum(parts.values()), tuple(parts.items()))
