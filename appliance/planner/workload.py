"""The input of a prediction: a model in a precision, on cards in a layout, under a load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.catalog.cards import Card
from appliance.catalog.processors import Cpu
from appliance.catalog.shape import Shape
from appliance.contract.card_memory import USUAL_UTILIZATION
from appliance.errors import UsageError
from appliance.planner.bounds import check_range
from appliance.planner.drafts import DraftKind
from appliance.planner.layout import MAX_DEGREE, SINGLE, Layout, check_shards
from appliance.planner.learned import MeasuredPoint
from appliance.planner.precision import Precision

EngineKind = Literal["vllm", "sglang", "tensorrt-llm", "llamacpp"]

Mode = Literal["served", "burst", "offline", "decode", "prefill"]
"""The rate that is predicted. ``served``: a closed loop. ``burst``: requests that arrive at once. ``offline``: an
engine without a server under full load. ``decode``: decoding only. ``prefill``: prompts only."""

MAX_TOKENS = 16_777_216
MAX_CONCURRENCY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A load on a model and its cards. ``input`` and ``output`` are tokens per request, ``concurrency`` requests in
    flight over all replicas."""

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
    """Peer-to-peer between cards; the card's own ability if None."""
    one_shot: bool = False
    """Whether small all-reduces over PCIe use a one-shot kernel instead of NCCL."""
    link_gb_s: float | None = None
    """Link between the machines of one copy, GB/s in one direction."""
    drafts: DraftKind = ""
    draft_tokens: int = 0
    accepted: float | None = 1.0
    """Tokens that one step yields on average with speculation; 1 without, None for the usual acceptance."""
    prefix_hit: float = 0.0
    """Share of the prompt that the prefix cache holds."""
    cpu: Cpu | None = None
    cpu_expert_share: float = 0.0
    """Share of the experts that the processor computes from RAM."""
    cpu_bytes_share: float = 0.0
    """Share of all weights in RAM because the card is too small (llama.cpp with some layers on the card)."""
    mode: Mode = "served"
    requests: float | None = None
    """Requests of the whole run; None for a steady state."""
    uneven: float = 0.0
    """How unequal the responses are: 1 for chats (ShareGPT), 0.4 for lengths drawn evenly, 0 if they are equal.

    The longest responses of a run end alone.
    """
    shared_prompt: bool = False
    """Whether all requests share one long prompt."""
    eager: bool = False
    """Whether the engine runs without CUDA graphs."""
    asynchronous: bool = False
    """Whether asynchronous scheduling is switched on, in a release of vLLM that does not have it by default."""
    years_old: float = 0.0
    """Age of the engine's software in years, against :data:`~appliance.planner.row_parser.TODAY`."""
    utilization: float = USUAL_UTILIZATION
    max_sequences: int | None = None
    assumed: tuple[str, ...] = ()
    """Conditions that the input did not state, each with the assumption used instead."""
    measured: tuple[MeasuredPoint, ...] = ()
    """Measurements of this model on this machine, by which the prediction is corrected."""


def check_workload(workload: Workload) -> Workload:
    """Return ``workload`` if it is possible.

    Otherwise raise :class:`UsageError`, one line with the nearest valid value.
    """
    for name, value, low, high in (
        ("input tokens", workload.input, 0, MAX_TOKENS),
        ("output tokens", workload.output, 1, MAX_TOKENS),
        ("concurrency", workload.concurrency, 1, MAX_CONCURRENCY),
        ("accepted tokens per step", workload.accepted or 1.0, 1, workload.draft_tokens + 1),
        ("prefix hit share", workload.prefix_hit, 0, 1),
        ("gpu memory utilization", workload.utilization, 0.05, 1),
        ("tensor parallel", workload.layout.tp, 1, MAX_DEGREE),
        ("pipeline parallel", workload.layout.pp, 1, MAX_DEGREE),
        ("replicas", workload.layout.replicas, 1, MAX_DEGREE),
    ):
        check_range(name, value, low=low, high=high)
    check_shards(workload.shape, workload.layout, workload.precision)
    limit = workload.shape.max_context
    if workload.input + workload.output > limit * 1.001:
        raise UsageError(
            f"{workload.input + workload.output:.0f} tokens of context are more than the {limit} of "
            f"{workload.shape.name}; "
            f"nearest valid: {limit} in all"
        )
    power = workload.power_w
    if power is not None and not workload.card.min_power_w * 0.5 <= power <= workload.card.max_power_w * 1.02:
        nearest = workload.card.min_power_w if power < workload.card.min_power_w else workload.card.max_power_w
        raise UsageError(
            f"power limit {power:g} W is out of {workload.card.name}'s range; nearest valid: {nearest:g} W"
        )
    return workload
