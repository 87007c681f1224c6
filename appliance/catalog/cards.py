"""A card or a processor, as the planner needs to know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Vendor = Literal["nvidia", "amd", "intel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One accelerator. TFLOPS are dense, with fp32 accumulation; 0 where the card lacks the precision."""

    name: str
    vendor: Vendor
    memory_mib: int
    memory_gb_s: float
    bf16_tflops: float
    fp8_tflops: float
    fp4_tflops: float
    tdp_w: float
    min_power_w: float
    max_power_w: float
    compute: float
    """CUDA compute capability, 12.0 for Blackwell workstations; 0 on other vendors."""
    link: Literal["pcie", "nvlink"]
    link_gb_s: float
    """Bandwidth to another card, GB/s in one direction."""
    p2p: bool
    aliases: tuple[str, ...] = ()
    confidence: str = "quoted"

    @property
    def memory_bytes(self) -> float:
        """Memory the driver shows."""
        return self.memory_mib * 2.0**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """A processor that holds experts or small models in RAM."""

    name: str
    memory_gb_s: float
    bf16_tflops: float
    """What its cores reach in large GEMMs, all together."""
    aliases: tuple[str, ...] = ()
