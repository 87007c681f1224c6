"""Bytes, FLOPs, launches and collectives of a pass over a model at peak rates, before any calibrated constant.

Pure. Every field is a number, so that :mod:`appliance.planner.roofline` computes with one pass, and the calibration
with arrays of thousands. Switches are 0 or 1 and become exponents: ``factor ** switch``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from appliance.catalog.shape import Attention, Mamba2, Mla, Shape
from appliance.planner import precision
from appliance.planner.precision import Units
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

CPU_CHUNK_TOKENS = 2048
"""Tokens of a prompt for which weights in RAM are read once."""

USUAL_BANDWIDTH = 1792.0
"""GB/s to which the shares of the bandwidth refer: RTX PRO 6000 and RTX 5090."""

ASYNCHRONOUS_YEARS = 10 / 12
"""Age of vLLM 0.14 (January 2026), the first release that schedules asynchronously by default."""

OVERLAPPED_DRAFTS_YEARS = 5 / 12
"""Age of the first SGLang releases that schedule drafts asynchronously by default (spec v2, June 2026)."""

LARGEST_GRAPH = 256.0
"""Tokens of the largest CUDA graph with a fine grid; larger batches are padded by less than 7 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTerms:
    """One pass of some tokens over all layers of one replica. Seconds are at the card's peak rates."""

    tokens: float
    """Tokens of the pass, drafts included."""
    sequences: float
    stages: float
    """Pipeline stages that the tokens pass."""
    dense_s: float
    """Seconds to read all dense weights and recurrent states of a stage's card, times the stages."""
    kv_s: float
    experts_s: float
    """Seconds to read every expert of the busiest card, without skew."""
    log_missed: float
    """ln(1 - k/E): the logarithm of the share of experts that one token skips; 0 without experts."""
    gemm_s: float
    attention_s: float
    expert_gemm_s: float
    layers: float
    moe_layers: float
    linear_layers: float
    nvlink_rounds: float
    """Collectives over NVLink, each weighted with the length of its ring."""
    pcie_rounds: float
    fixed_s: float
    """Collectives of a known latency: one-shot kernels, the network between machines."""
    link_s: float
    """Seconds of the collectives' bytes at the link's peak."""
    cpu_dense_s: float
    """Seconds to read the weights in RAM that every pass reads."""
    cpu_experts_s: float
    """Seconds to read all experts in RAM."""
    cpu_layers: float
    log_bandwidth: float
    """ln of the card's bandwidth over :data:`USUAL_BANDWIDTH`."""
    drafts: float
    """Weights that a step's drafts read, the head and one layer for each, against those of the step."""
    draft_layers: float
    """Layers that a step's drafts launch, against those of the step."""
    verified: float
    """Tokens of context times full attention layers that the verification of drafts reads tile after tile."""
    stream_layers: float
    """Layers times further residual streams (hyper-connections)."""
    age: float
    """Age of the software in years."""
    # Switches, 0 or 1.
    bf16: float
    fp8: float
    fp4: float
    w4a16: float
    gguf: float
    four_bit: float
    quantises: float
    """Whether the activations of every GEMM are quantised first (FP8 and FP4 units)."""
    quantised_kv: float
    fp8_experts: float
    shared_kv: float
    """Whether all sequences share their prompt, so that its KV cache is mostly read from the card's L2 cache."""
    sm12: float
    sm10: float
    sm8: float
    offline: float
    """Whether TensorRT-LLM runs without a server, in the configuration that is tuned for the load."""
    tuned: float
    """Whether its kernels are TensorRT-LLM's own: 4-bit weights on cards without FP4 units run on Triton's."""
    llamacpp: float
    overlapped: float
    """Whether the host prepares the next step while the card works (asynchronous scheduling)."""
    skewed: float
    no_p2p: float
    eager: float


def unit_speed(workload: Workload) -> float:
    """Return the speed of the card's units under its power limit, 1 without one."""
    if workload.power_w is None:
        return 1.0
    share = min(1.0, workload.power_w / (POWER_KNEE * workload.card.tdp_w))
    return math.pow(share, POWER_EXPONENT)


def bandwidth(workload: Workload) -> float:
    """Return the bytes per second of the card's memory under its power limit."""
    return workload.card.memory_gb_s * 1e9 * min(1.0, unit_speed(workload) / DECODE_SLACK)


def decode_terms(workload: Workload, *, batch: float, context: float) -> PassTerms:
    """Return the terms of one step that decodes ``batch`` sequences of ``context`` tokens on one replica."""
    batch = max(batch, 1.0)
    # In a pipeline each stage works on its own part of the batch, and every part passes every stage in turn.
    # So one token for all parts takes as many stage times as there are stages.
    micro = max(1.0, batch / workload.layout.pp)
    return _terms(
        workload,
        tokens=captured_tokens(workload, micro * (1 + workload.draft_tokens)),
        sequences=micro,
        context=context,
        stages=float(workload.layout.pp),
        host_sequences=batch,
        reads_kv=True,
    )


def captured_tokens(workload: Workload, tokens: float) -> float:
    """Return the tokens of a decode step with the padding to the next size of a captured CUDA graph.

    vLLM, SGLang and TensorRT-LLM capture 1, 2, 4 and multiples of 8 up to 256, and pad a batch to the next one.
    """
    if workload.eager or workload.engine == "llamacpp" or tokens <= 1.0 or tokens > LARGEST_GRAPH:
        return tokens
    if tokens <= 4.0:
        return 2.0 if tokens <= 2.0 else 4.0
    return 8.0 * math.ceil(tokens / 8.0)


def prefill_terms(workload: Workload, tokens: float) -> PassTerms:
    """Return the terms of the prefill of one prompt of ``tokens`` tokens."""
    fresh = max(1.0, tokens * (1.0 - workload.prefix_hit))
    mean_context = (tokens - fresh + tokens) / 2.0
    return _terms(
        workload,
        tokens=fresh,
        sequences=1.0,
        context=mean_context,
        stages=1.0,
        host_sequences=1.0,
        reads_kv=False,
    )


def _terms(
    workload: Workload,
    *,
    tokens: float,
    sequences: float,
    context: float,
    stages: float,
    host_sequences: float,
    reads_kv: bool,
) -> PassTerms:
    shape, layout, dtype, card = workload.shape, workload.layout, workload.precision, workload.card
    tp, pp = layout.tp, layout.pp
    rate = bandwidth(workload)
    parts = precision.weights(shape, dtype)
    shards = 1 if layout.attention_dp else tp
    local = tokens / tp if layout.attention_dp else tokens
    on_card = 1.0 - workload.cpu_bytes_share
    state = 2.0 * shape.state_bytes_per_sequence * sequences / pp / tp if reads_kv else 0.0
    kv = read_kv_bytes(shape, context, dtype.kv_bytes) * sequences / pp if reads_kv else 0.0
    kv_shards = tp
    if isinstance(shape.full, Attention) and not layout.attention_dp:
        kv_shards = min(tp, shape.full.kv_heads)
    elif isinstance(shape.full, Mla) and not layout.attention_dp:
        # Every card keeps the whole latent vector.
        kv_shards = 1
    on_card_experts = parts.experts * (1.0 - workload.cpu_expert_share) * on_card
    missed = (
        math.log(1.0 - shape.moe.per_token / shape.moe.experts)
        if shape.moe and shape.moe.experts > shape.moe.per_token
        else 0.0
    )
    peak = peak_flops(workload)
    bf16_peak = card.bf16_tflops * 1e12 * unit_speed(workload)
    dense_flops, expert_flops, pairs = flops_per_token(shape, context)
    nvlink, pcie, fixed, link = _collectives(workload, tokens)
    cpu_dense = cpu_experts = 0.0
    if workload.cpu is not None:
        ram = workload.cpu.memory_gb_s * 1e9
        chunks = 1.0 if reads_kv else max(1.0, tokens / CPU_CHUNK_TOKENS)
        cpu_dense = chunks * (parts.dense + parts.experts) * workload.cpu_bytes_share / ram
        cpu_experts = chunks * parts.experts * workload.cpu_expert_share / ram
    units = effective_units(workload)
    compute = card.compute
    return PassTerms(
        tokens=tokens,
        sequences=host_sequences,
        stages=stages,
        dense_s=stages * (parts.dense / shards / pp * on_card + state) / rate,
        kv_s=stages * kv / kv_shards / rate,
        experts_s=stages * on_card_experts / pp / tp / rate,
        log_missed=missed,
        gemm_s=stages * 2.0 * dense_flops * local / shards / pp / peak / _integer_speed(workload),
        attention_s=stages * 4.0 * pairs * local / shards / pp / bf16_peak,
        expert_gemm_s=stages * 2.0 * expert_flops * tokens / tp / pp / peak,
        layers=shape.layer_pairs,
        moe_layers=float(shape.moe_layers),
        linear_layers=float(shape.linear_layers),
        nvlink_rounds=nvlink,
        pcie_rounds=pcie,
        fixed_s=fixed,
        link_s=link,
        cpu_dense_s=cpu_dense,
        cpu_experts_s=cpu_experts,
        cpu_layers=shape.moe_layers * min(1.0, workload.cpu_expert_share) if workload.cpu is not None else 0.0,
        log_bandwidth=math.log(card.memory_gb_s / USUAL_BANDWIDTH),
        drafts=_draft_share(workload),
        draft_layers=float(_draft_passes(workload)) / shape.layer_pairs,
        verified=shape.full_layers * attended(shape, context) if reads_kv and _verifies_unsplit(workload) else 0.0,
        stream_layers=float(shape.layers * (shape.streams - 1)),
        age=workload.years_old,
        bf16=float(units == "bf16"),
        fp8=float(units == "fp8"),
        fp4=float(units == "fp4"),
        w4a16=float(units == "w4a16"),
        gguf=float(units == "gguf"),
        four_bit=float(units in {"w4a16", "fp4"} and reads_kv),
        quantises=float(units in {"fp8", "fp4"}),
        quantised_kv=float(dtype.kv_bytes < 2 and workload.engine != "tensorrt-llm"),
        fp8_experts=float(units == "fp8" and dtype.units == "fp8" and reads_kv),
        shared_kv=float(workload.shared_prompt),
        sm12=float(compute >= 12),
        sm10=float(10 <= compute < 12),
        sm8=float(0 < compute < 9),
        offline=float(workload.engine == "tensorrt-llm" and workload.mode == "offline"),
        tuned=float(workload.engine == "tensorrt-llm" and workload.mode == "offline" and units != "w4a16"),
        llamacpp=float(workload.engine == "llamacpp"),
        overlapped=float(overlaps(workload)),
        skewed=float((layout.ep or layout.attention_dp) and tp > 1),
        no_p2p=float(not (card.p2p if workload.p2p is None else workload.p2p) and card.link != "nvlink"),
        eager=float(workload.eager),
    )


def overlaps(workload: Workload) -> bool:
    """Return whether the engine prepares the next step while the card works.

    SGLang since 0.4 does, with drafts since 2026-06 (spec v2). vLLM does since 0.14, TensorRT-LLM's PyTorch engine
    always.
    """
    if workload.engine == "sglang":
        return not workload.draft_tokens or workload.years_old <= OVERLAPPED_DRAFTS_YEARS + 1e-6
    if workload.engine == "vllm":
        return workload.asynchronous or workload.years_old <= ASYNCHRONOUS_YEARS + 1e-6
    return workload.engine == "tensorrt-llm"


def _verifies_unsplit(workload: Workload) -> bool:
    """Return whether one thread block reads the whole context of a head when drafts are verified.

    FlashAttention 2 splits a context over thread blocks for queries of one token only. Measured runs show it with
    4-bit weights and 16-bit activations, on cards without FlashAttention 3 (compute capability 8 and 12).
    """
    compute = workload.card.compute
    old = compute < 9 or compute >= 12
    drafted = workload.engine == "vllm" and workload.draft_tokens > 0
    return drafted and old and effective_units(workload) == "w4a16" and workload.precision.kv_bytes == 2.0


def effective_units(workload: Workload) -> Units:
    """Return the units that multiply the weights on this card: those of the precision, if the card has them."""
    card, dtype = workload.card, workload.precision
    if dtype.name == "mxfp4" and 10 <= card.compute < 12:
        # Blackwell data centre cards multiply MXFP4 experts with FP8 activations.
        return "fp8"
    if dtype.name == "int8" and card.compute >= 8:
        # Units for 8-bit integers are older than those for FP8 and twice as fast as bf16.
        return "fp8"
    if (dtype.units == "fp4" and card.fp4_tflops <= 0) or (dtype.units == "fp8" and card.fp8_tflops <= 0):
        return "w4a16"
    return dtype.units


def _draft_share(workload: Workload) -> float:
    """Return the weights that a step's drafts read, against those of the step itself."""
    if not workload.draft_tokens:
        return 0.0
    shape = workload.shape
    head = shape.vocab * shape.hidden / max(1, shape.active_params)
    return _draft_passes(workload) * (1.0 / shape.layer_pairs + head)


def _draft_passes(workload: Workload) -> int:
    """Return the passes of the drafting layer per step: DFlash drafts all tokens in one."""
    return min(1, workload.draft_tokens) if workload.drafts == "dflash" else workload.draft_tokens


def peak_flops(workload: Workload) -> float:
    """Return the FLOP/s of the units that multiply the weights, at peak and under the power limit."""
    card = workload.card
    tflops = {
        "bf16": card.bf16_tflops,
        "fp8": card.fp8_tflops or 2.0 * card.bf16_tflops,
        "fp4": card.fp4_tflops or card.bf16_tflops,
        "w4a16": card.bf16_tflops,
        "gguf": card.bf16_tflops,
    }[effective_units(workload)]
    return tflops * 1e12 * unit_speed(workload)


def _integer_speed(workload: Workload) -> float:
    """Return the speed of llama.cpp's dense GEMMs over 8-bit integers, against other cards, at equal bf16 peak.

    The integer units of all cards have their full rate.
    """
    return 2.0 if workload.card.halves_bf16 and effective_units(workload) == "gguf" else 1.0


def read_kv_bytes(shape: Shape, context: float, kv_bytes: float) -> float:
    """Return the bytes of KV cache that a step reads for one sequence of ``context`` tokens."""
    top = shape.full.index_top
    if not top or context <= top:
        return shape.kv_bytes_of(context, kv_bytes)
    # The index of the whole context is read to choose the tokens.
    return shape.kv_bytes_of(float(top), kv_bytes) + shape.index_bytes_per_token * (context - top)


def attended(shape: Shape, context: float) -> float:
    """Return the tokens of ``context`` that a full attention layer reads: an indexer selects some of them."""
    return min(context, float(shape.full.index_top)) if shape.full.index_top else context


def flops_per_token(shape: Shape, context: float) -> tuple[float, float, float]:
    """Return the dense weights, the routed weights and the attention's pairs x width of one token."""
    routed = shape.expert_params * (shape.moe.per_token / shape.moe.experts) if shape.moe else 0.0
    dense = float(shape.total_params - shape.embedding_params - shape.expert_params)
    if shape.tied:
        dense += shape.embedding_params
    seen = attended(shape, context)
    pairs = shape.full_layers * shape.full.core_dim() * seen
    if shape.sliding is not None:
        pairs += shape.sliding_layers * shape.sliding.core_dim() * min(context, shape.sliding.window or context)
    if isinstance(shape.linear, Mamba2):
        # The fitted constants contain the scan of Gated DeltaNet, which the measurements have.
        pairs += shape.linear_layers * shape.linear.scan_dim()
    return dense, routed, pairs


def _collectives(workload: Workload, tokens: float) -> tuple[float, float, float, float]:
    """Return NVLink rounds, PCIe rounds, fixed seconds and seconds of bytes at the link's peak."""
    layout, card = workload.layout, workload.card
    tp = layout.tp
    nvlink = card.link == "nvlink"
    rate = card.link_gb_s * 1e9
    rounds = fixed = link = 0.0
    extra = 0.0
    if layout.hosts > 1 and workload.link_gb_s:
        # Across machines, the slower link and its latency determine every collective.
        rate = min(rate, workload.link_gb_s * 1e9)
        extra = 2 * NETWORK_LATENCY_S
    activation = tokens * workload.shape.hidden * 2.0
    if tp > 1:
        count = 2 * workload.shape.layer_pairs
        # Latency grows with the ring; a switch of NVLink reaches all cards at once.
        rounds += count * (1.0 + (0.05 if nvlink else 0.25) * (tp - 2))
        fixed += count * extra
        volume = activation * 2.0 * (tp - 1) / tp
        if layout.attention_dp and workload.shape.moe:
            # Dispatch and combine: each token is sent to the experts' cards and returned.
            volume = activation * min(workload.shape.moe.per_token, tp - 1) / tp
        link += count * volume / rate
    if layout.pp > 1:
        rounds += layout.pp - 1
        fixed += (layout.pp - 1) * extra
        link += (layout.pp - 1) * activation / rate
    if nvlink:
        return rounds, 0.0, fixed, link
    if workload.one_shot:
        return 0.0, 0.0, fixed + rounds * ONE_SHOT_S, link
    return 0.0, rounds, fixed, link
