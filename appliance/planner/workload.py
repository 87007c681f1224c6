"""One question to the roofline: this model, in this precision, on these cards, under this load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.catalog.cards import Card
from appliance.catalog.processors import Cpu
from appliance.catalog.shape import Shape
from appliance.errors import UsageError
from appliance.planner.bounds import check_range
from appliance.planner.layout import MAX_DEGREE, SINGLE, Layout, check_shards
from appliance.planner.precision import Precision

EngineKind = Literal["vllm", "sglang", "tensorrt-llm", "llamacpp"]

MAX_TOKENS = 16_777_216
MAX_CONCURRENCY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """``input`` and ``output`` are tokens per request, ``concurrency`` requests in flight over all
    replicas."""

    card: Card
    shape: Shape
    precision: Precision
    input: float
    output: float
    concurrency: float
    layout: Layout = SINGLE
    engine: EngineKind = "vllm"
    power_w: float | None = None
    p2p: bool | None = None
    """Peer-to-peer between cards; the card's own ability where None."""
    one_shot: bool = False
    """Whether small all-reduces over PCIe use a one-shot kernel instead of NCCL."""
    link_gb_s: float | None = None
    """Link between the machines of one copy, GB/s in one direction."""
    draft_tokens: int = 0
    accepted: float = 1.0
    """Tokens that one step yields on average, with speculation; 1 without."""
    prefix_hit: float = 0.0
    """Share of the prompt that the prefix cache holds."""
    cpu: Cpu | None = None
    cpu_expert_share: float = 0.0
    """Share of the experts that the processor computes from RAM."""
    cpu_bytes_share: float = 0.0
    """Share of all weights in RAM because the card is too small (llama.cpp without all layers on the
    card)."""
    decode_only: bool = False
    """Whether the figure wanted is the rate while decoding, prompts left out (as llama-bench reports it)."""
    requests: float | None = None
    """Requests of unequal length that arrive at once and are the whole run; None for a steady state."""
    utilization: float = 0.92
    max_sequences: int | None = None
    assumed: tuple[str, ...] = ()
    """What the question left open and what was taken instead."""


def check_workload(point: Workload) -> Workload:
    """``point`` if it can be: one :class:`UsageError` line with the nearest valid value otherwise."""
    for name, value, low, high in (
        ("input tokens", point.input, 0, MAX_TOKENS),
        ("output tokens", point.output, 1, MAX_TOKENS),
        ("concurrency", point.concurrency, 1, MAX_CONCURRENCY),
        ("accepted tokens per step", point.accepted, 1, point.draft_tokens + 1),
        ("prefix hit share", point.prefix_hit, 0, 1),
        ("gpu memory utilization", point.utilization, 0.05, 1),
        ("tensor parallel", point.layout.tp, 1, MAX_DEGREE),
        ("pipeline parallel", point.layout.pp, 1, MAX_DEGREE),
        ("replicas", point.layout.replicas, 1, MAX_DEGREE),
    ):
        check_range(name, value, low, high)
    check_shards(point.shape, point.layout, point.precision)
    limit = point.shape.max_context
    if point.input + point.output > limit * 1.001:
        raise UsageError(
            f"{point.input + point.output:.0f} tokens of context are more than the {limit} of "
            f"{point.shape.name}; "
            f"nearest valid: {limit} in all"
        )
    power = point.power_w
    if power is not None and not point.card.min_power_w * 0.5 <= power <= point.card.max_power_w * 1.02:
        nearest = point.card.min_power_w if power < point.card.min_power_w else point.card.max_power_w
        raise UsageError(
            f"power limit {power:g} W is out of {point.card.name}'s range; nearest valid: {nearest:g} W"
        )
    return point
