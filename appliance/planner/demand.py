"""What is asked of a site: machines, models, and how many people ask what of which.

Pure data, checked once; :mod:`appliance.planner.topology` answers it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.catalog import catalog
from appliance.catalog.cards import Card, Cpu
from appliance.catalog.shape import Shape
from appliance.errors import UsageError
from appliance.planner import precision
from appliance.planner.precision import Precision

MAX_CARDS = 8
MAX_MACHINES = 8
MAX_USERS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareSpec:
    """One host: equal cards side by side, perhaps further cards of another kind."""

    name: str
    cards: tuple[Card, ...]
    ram_gib: float
    cpu: Cpu
    power_w: float | None = None
    link_gb_s: float = 3.0
    """Network to the other machines, GB/s in one direction (25 Gbit/s)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDemand:
    """What one model is asked for: ``share`` of all requests, tokens per request."""

    name: str
    """The name clients use."""
    shape: Shape
    precision: Precision
    share: float
    prompt: float
    answer: float
    context: int
    """Longest prompt plus answer it must take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """People and their pace. Each open chat sends its next message ``think_s`` after the last answer
    ended."""

    users: int
    chats: int
    think_s: float
    work: tuple[ModelDemand, ...]
    prefix_hit: float = 0.5
    """Share of a prompt that earlier turns of the same chat left in the cache."""
    ttft_slo_s: float = 2.0
    tpot_slo_s: float = 0.1

    @property
    def requests_per_s(self) -> float:
        """Requests per second if answers took no time: the most that can arrive."""
        return self.chats / self.think_s


def check(machines: tuple[HardwareSpec, ...], demand: Demand) -> None:
    """One line with the nearest valid value for what cannot be."""
    _within("users", demand.users, 1, MAX_USERS)
    _within("chats", demand.chats, 1, MAX_USERS)
    _within("think time", demand.think_s, 0.1, 86400)
    _within("machines", len(machines), 1, MAX_MACHINES)
    _within("prefix hit share", demand.prefix_hit, 0, 1)
    for machine in machines:
        if len(machine.cards) > MAX_CARDS:
            raise UsageError(
                f"{machine.name} has {len(machine.cards)} cards; nearest valid: {MAX_CARDS} per machine"
            )
        _within(f"RAM of {machine.name}", machine.ram_gib, 1, 65536)
    if not demand.work:
        raise UsageError("no model is asked for; name one with --model")
    total = sum(work.share for work in demand.work)
    if not 0.999 <= total <= 1.001:
        raise UsageError(f"the shares add up to {total:g}; nearest valid: divide each by {total:g}")
    for work in demand.work:
        _within(f"share of {work.name}", work.share, 0, 1)
        _within(f"prompt of {work.name}", work.prompt, 1, 16_777_216)
        _within(f"answer of {work.name}", work.answer, 1, 16_777_216)
        limit = work.shape.max_context
        if work.context > limit:
            raise UsageError(
                f"context {work.context} is more than the {limit} of {work.shape.name}; nearest: {limit}"
            )
        if work.prompt + work.answer > work.context:
            raise UsageError(
                f"prompt and answer of {work.name} come to {work.prompt + work.answer:.0f} tokens, its "
                "context holds "
                f"{work.context}; nearest: context {int(work.prompt + work.answer)}"
            )


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also catches NaN
        nearest = low if not value > low else high
        raise UsageError(f"{name} = {value:g} makes no sense; nearest valid value: {nearest:g}")


SUFFIXES = {
    "fp8": "fp8",
    "awq": "awq-int4",
    "gptq": "awq-int4",
    "int4": "awq-int4",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "int8": "int8",
    "w4a16": "awq-int4",
    "gguf": "Q4_K_M",
}
"""What the end of a repository's name says of its precision."""


def model(text: str, known: dict[str, Shape] | None = None) -> tuple[Shape, Precision]:
    """``Qwen/Qwen3-30B-A3B``, ``Qwen/Qwen3-30B-A3B:fp8``, or a folder that ends like a repository
    (``…-FP8``)."""
    name, _, said = text.partition(":")
    said = said.strip()
    tail = name.rstrip("/").rsplit("/", 1)[-1]
    for suffix, dtype in SUFFIXES.items():
        if re.search(rf"[-_]{suffix}\b.*$", tail, re.IGNORECASE):
            base = re.sub(rf"[-_]{suffix}\b.*$", "", name, flags=re.IGNORECASE)
            shape = catalog.find_model(base, known)
            return shape, precision.parse(said or dtype)
    shape = catalog.find_model(name, known)
    return shape, precision.parse(said or shape.native)


def cards(text: str) -> tuple[Card, ...]:
    """Return the cards of ``2x RTX PRO 6000 Blackwell Workstation``, several kinds separated by commas.

    The sign between number and card is ``x``, ``*`` or the multiplication sign.
    """
    found: list[Card] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(-?\d+)\s*[x*\u00d7]\s*)?(.+?)\s*", part)
        if match is None:
            raise UsageError(f"cards = {text!r} names no card; write '2x RTX PRO 6000 Blackwell Workstation'")
        count = int(match.group(1) or 1)
        if not 1 <= count <= 64:
            raise UsageError(f"{count} cards make no sense; nearest valid: {min(max(count, 1), 64)}")
        found += [catalog.find_card(match.group(2))] * count
    return tuple(found)
