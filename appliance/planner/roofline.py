"""Time of one decode step and of one prefill: bandwidth, arithmetic, floors, communication.

Pure. A step's time is the larger of reading memory and multiplying, softened if the two are similar. Launches,
collectives and the host are added, because neither hides them. See docs/planner.md for the derivation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from appliance.catalog.shape import Attention
from appliance.planner import precision
from appliance.planner.constants import Constants
from appliance.planner.workload import Workload

POWER_KNEE = 0.8
POWER_EXPONENT = 0.58
DECODE_SLACK = 0.85
"""Speed of the units is ``(P / (knee x TDP)) ^ exponent``; below the slack, bandwidth falls as well. Source:
llama.cpp's power sweep from 200 to 600 W on an RTX PRO 6000 Workstation, prefill and decode."""

ONE_SHOT_S = 20e-6
"""Latency of a one-shot all-reduce over PCIe. Source: community kernels, 6 to 12 us against NCCL's 25."""

NETWORK_LATENCY_S = 15e-6
"""One direction through a switched 25 to 100 Gbit/s network without kernel TCP (RoCE)."""


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """Seconds of one decode step by their cause."""

    memory: float
    compute: float
    floor: float
    communication: float
    host: float

    @property
    def card(self) -> float:
        """Reading and multiplying, overlapped."""
        return math.hypot(self.memory, self.compute)

    @property
    def total(self) -> float:
        """The whole step."""
        return self.card + self.floor + self.communication + self.host


def distinct_experts(experts: int, per_token: int, tokens: float) -> float:
    """Return the expected number of experts that ``tokens`` tokens choose, each ``per_token`` of ``experts``."""
    return experts * (1.0 - math.pow(1.0 - per_token / experts, max(tokens, 0.0)))


def unit_speed(workload: Workload) -> float:
    """Return the speed of the card's units under its power limit, 1 without one."""
    if workload.power_w is None:
        return 1.0
    share = min(1.0, workload.power_w / (POWER_KNEE * workload.card.tdp_w))
    return math.pow(share, POWER_EXPONENT)


def bandwidth(workload: Workload) -> float:
    """Return the bytes per second of the card's memory under its power limit."""
    return workload.card.memory_gb_s * 1e9 * min(1.0, unit_speed(workload) / DECODE_SLACK)


def kernel_share(workload: Workload, k: Constants) -> float:
    """Return how well kernels are tuned for this generation of cards and this engine, as a factor."""
    compute = workload.card.compute
    share = k.sm120_share if compute >= 12 else 1.0
    return share * (k.tuned_factor if workload.engine == "tensorrt-llm" else 1.0)


def expert_rate(workload: Workload, k: Constants) -> float:
    """Return the bytes per second at which grouped GEMMs read experts."""
    share = k.expert_memory_share
    if workload.engine == "tensorrt-llm":
        share *= k.tuned_factor
    return bandwidth(workload) * min(share, 1.0)


def flops(workload: Workload, k: Constants) -> float:
    """Return the FLOP/s that large dense GEMMs reach."""
    card, units = workload.card, workload.precision.units
    bf16 = card.bf16_tflops * k.bf16_share
    rates = {
        "bf16": bf16,
        "fp8": max(card.fp8_tflops * k.fp8_share, bf16),
        "fp4": max(card.fp4_tflops * k.fp4_share, card.bf16_tflops * k.w4a16_share),
        "w4a16": card.bf16_tflops * k.w4a16_share,
        "gguf": card.bf16_tflops * k.w4a16_share,
    }
    return rates[units] * 1e12 * kernel_share(workload, k) * unit_speed(workload)


def decode_step(workload: Workload, k: Constants, *, batch: float, context: float) -> DecodeStep:
    """Return the time of one step that decodes ``batch`` sequences of ``context`` tokens on one replica."""
    shape, layout, dtype = workload.shape, workload.layout, workload.precision
    tp, pp = layout.tp, layout.pp
    batch = max(batch, 1.0)
    # In a pipeline each stage works on its own part of the batch, and every part passes every stage in turn.
    # So one token for all parts takes as many stage times as there are stages.
    micro = max(1.0, batch / pp)
    tokens = micro * (1 + workload.draft_tokens)
    local = tokens / tp if layout.attention_dp else tokens
    parts = precision.weights(shape, dtype)
    shards = 1 if layout.attention_dp else tp
    on_card = 1.0 - workload.cpu_bytes_share
    rate = bandwidth(workload) * k.memory_share
    dense = parts.dense / shards / pp * on_card
    kv = shape.kv_bytes_of(context, dtype.kv_bytes) * micro / pp
    kv_shards = tp
    if isinstance(shape.full, Attention):
        kv_shards = min(tp, shape.full.kv_heads) if not layout.attention_dp else tp
    state = 2.0 * shape.state_bytes_per_sequence * micro / pp / tp
    kv_rate = bandwidth(workload) * k.kv_memory_share
    if dtype.kv_bytes < 2 and workload.engine != "tensorrt-llm":
        # TensorRT-LLM's own attention kernels read FP8 at full speed; the other engines unpack it.
        kv_rate *= k.quantised_kv_factor
    memory = (dense + state) / rate + kv / kv_shards / kv_rate
    skew = k.expert_parallel_skew if (layout.ep or layout.attention_dp) and tp > 1 else 1.0
    cpu = 0.0
    if shape.moe is not None:
        independent = 1.0 + (tokens - 1.0) * k.routing_share
        read = distinct_experts(shape.moe.experts, shape.moe.per_token, independent) / shape.moe.experts
        experts = parts.experts * read / pp
        on_cpu = experts * workload.cpu_expert_share
        memory += (experts - on_cpu) * on_card / tp * skew / expert_rate(workload, k)
        if workload.cpu is not None and workload.cpu_expert_share:
            layers = shape.moe_layers * min(1.0, workload.cpu_expert_share * 1.0)
            cpu += on_cpu * pp / (workload.cpu.memory_gb_s * 1e9 * k.cpu_memory_share) + layers * k.cpu_layer_s
    if workload.cpu is not None and workload.cpu_bytes_share:
        read_bytes = (parts.dense + parts.experts) * workload.cpu_bytes_share
        cpu += read_bytes / (workload.cpu.memory_gb_s * 1e9 * k.cpu_memory_share)
    needed = _token_flops(workload, local=local, tokens=tokens, context=context, k=k)
    compute = needed / (flops(workload, k) * pp)
    floor = _floor(workload, k)
    host_scale = k.offline_factor if workload.engine == "tensorrt-llm" else 1.0
    if workload.engine == "llamacpp":
        # The loop of llama.cpp's server is C++, and one sequence decodes at a time.
        host_scale = 0.2
    host = host_scale * (k.step_s * min(pp, batch) + k.sequence_s * batch)
    draft = 1.0 + k.acceptance_cost * workload.draft_tokens
    return DecodeStep(
        memory=memory * pp * draft,
        compute=compute * pp * draft,
        floor=floor * draft + cpu,
        communication=communication(workload, tokens, k),
        host=host,
    )


def _token_flops(workload: Workload, *, local: float, tokens: float, context: float, k: Constants) -> float:
    """Return the FLOPs on the busiest card for ``tokens`` tokens of a step, each with ``context`` tokens.

    ``local`` is the number of tokens whose attention this card computes under attention data parallelism.
    """
    shape, layout = workload.shape, workload.layout
    shards = 1 if layout.attention_dp else layout.tp
    routed = shape.expert_params * (shape.moe.per_token / shape.moe.experts) if shape.moe else 0.0
    dense = shape.total_params - shape.embedding_params - shape.expert_params
    if shape.tied:
        dense += shape.embedding_params
    pairs = shape.full_layers * shape.full.core_dim() * context
    if shape.sliding is not None:
        pairs += shape.sliding_layers * shape.sliding.core_dim() * min(context, shape.sliding.window or context)
    skew = k.expert_parallel_skew if (layout.ep or layout.attention_dp) and layout.tp > 1 else 1.0
    return (
        2.0 * dense + 4.0 * pairs
    ) * local / shards + 2.0 * routed * tokens / layout.tp * skew / k.expert_flops_share


def _floor(workload: Workload, k: Constants) -> float:
    """Return the launch time of one pass over all layers in seconds."""
    shape = workload.shape
    return shape.layers * k.layer_s + shape.moe_layers * k.expert_layer_s + shape.linear_layers * k.linear_layer_s


def communication(workload: Workload, tokens: float, k: Constants) -> float:
    """Return the seconds of collectives for one pass of ``tokens`` tokens over all layers of one replica."""
    layout, card = workload.layout, workload.card
    tp = layout.tp
    seconds = 0.0
    nvlink = card.link == "nvlink"
    p2p = card.p2p if workload.p2p is None else workload.p2p
    penalty = 1.0 if p2p or nvlink else k.no_p2p_factor
    rate = card.link_gb_s * 1e9 * k.link_share / penalty
    latency = (k.reduce_nvlink_s if nvlink else ONE_SHOT_S if workload.one_shot else k.reduce_pcie_s) * penalty
    if layout.hosts > 1 and workload.link_gb_s:
        # Across machines, the slower link and its latency determine every collective.
        rate = min(rate, workload.link_gb_s * 1e9 * k.link_share)
        latency += 2 * NETWORK_LATENCY_S
    activation = tokens * workload.shape.hidden * 2.0
    if tp > 1:
        rounds = 2 * workload.shape.layers
        # Latency grows with the ring.
        steps = 1.0 + 0.25 * (tp - 2)
        volume = activation * 2.0 * (tp - 1) / tp
        if layout.attention_dp and workload.shape.moe:
            # Dispatch and combine: each token is sent to the experts' cards and returned.
            volume = activation * min(workload.shape.moe.per_token, tp - 1) / tp
        seconds += rounds * (latency * steps + volume / rate)
    if layout.pp > 1:
        seconds += (layout.pp - 1) * (latency + activation / rate)
    return seconds


def prefill_time(workload: Workload, tokens: float, k: Constants) -> float:
    """Return the seconds in which an idle replica's cards prefill one prompt of ``tokens`` tokens."""
    fresh = max(1.0, tokens * (1.0 - workload.prefix_hit))
    start = tokens - fresh
    mean_context = (start + tokens) / 2.0
    local = fresh / workload.layout.tp if workload.layout.attention_dp else fresh
    needed = _token_flops(workload, local=local, tokens=fresh, context=mean_context, k=k)
    arithmetic = needed / (flops(workload, k) * workload.layout.pp)
    link = communication(workload, fresh, k)
    if workload.cpu is not None and (workload.cpu_expert_share or workload.cpu_bytes_share):
        # The weights in RAM are read once per chunk of a large prompt.
        parts = precision.weights(workload.shape, workload.precision)
        away = parts.experts * workload.cpu_expert_share + parts.total * workload.cpu_bytes_share
        arithmetic += max(1.0, fresh / 2048) * away / (workload.cpu.memory_gb_s * 1e9 * k.cpu_memory_share)
    return arithmetic + link


def prefill_latency(workload: Workload, tokens: float, k: Constants) -> float:
    """Return the seconds to the first token of a prompt of ``tokens`` tokens on an idle replica."""
    step = decode_step(workload, k, batch=1.0, context=tokens)
    once = max(prefill_time(workload, tokens, k) * workload.layout.pp, step.card)
    return once + step.floor + step.communication + step.host
