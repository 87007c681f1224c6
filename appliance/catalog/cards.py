"""Cards: their figures, and the search for a card by any of its names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from appliance.catalog.names import VENDOR_WORDS, normalise
from appliance.catalog.shipped import read_table
from appliance.contract.card_memory import MIB
from appliance.contract.violation import suggest
from appliance.errors import UsageError

Vendor = Literal["nvidia", "amd", "intel"]

GEFORCE = re.compile(r"RTX [2345]0[5-9]0\b")
"""Names of GeForce cards from RTX 20 on; other cards of NVIDIA have other numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """An accelerator. TFLOPS are dense, with fp32 accumulation; 0 if the card lacks the precision."""

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
    """Whether cards of this kind read each other's memory directly."""
    aliases: tuple[str, ...] = ()
    confidence: str = "quoted"
    """Origin of the figures as a whole: quoted, partly estimated, from memory."""

    @property
    def memory_bytes(self) -> float:
        """Memory that the driver shows."""
        return self.memory_mib * MIB

    @property
    def halves_bf16(self) -> bool:
        """Whether its units accumulate products of bf16 in 32 bits at half their rate, as GeForce cards do."""
        return GEFORCE.match(self.name) is not None


@cache
def cards() -> dict[str, Card]:
    """Return the cards of the catalog by name."""
    return {
        name: Card(name=name, **figures | {"aliases": tuple(figures.get("aliases", ()))})
        for name, figures in read_table("gpus.toml", "gpus").items()
    }


@lru_cache(maxsize=1024)
def find_card(name: str) -> Card:
    """Return the card with ``name``: its name in the catalog, an alias, or the name that the driver prints.

    The order of the words does not matter, nor do the vendor's words: ``NVIDIA A100 80GB PCIe`` is
    ``A100 PCIe 80GB``. Raises :class:`UsageError` if the name matches no card, or more than one.
    """
    wanted, words = normalise(name), card_words(name)
    found = [
        card
        for card in cards().values()
        if any(wanted == normalise(known) or words == card_words(known) for known in (card.name, *card.aliases))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"card {name!r} may be {' or '.join(card.name for card in found)}; name one of them")
    raise UsageError(f"card {name!r} is not in the catalog; {suggest(name, list(cards()))}")


def card_words(name: str) -> list[str]:
    """Return the words of a card's name in alphabetical order, without the vendor's; ``SXM5`` is ``SXM``."""
    words = re.findall(r"[a-z0-9]+", name.lower().replace("max-q", "maxq"))
    return sorted(re.sub(r"^sxm\d$", "sxm", word) for word in words if word not in VENDOR_WORDS)
