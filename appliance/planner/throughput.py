"""Throughput and latency for clients, from step times: output tok/s, TTFT and TPOT of a closed loop of requests.

Pure. ``concurrency`` requests are always in flight. A replica runs as many as its KV cache and its slots hold; the
rest waits. During one request every other running request is prefilled once. So a cycle is the decode steps of one
response plus the prefills of all running requests.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import exp, log

from appliance.catalog.shape import Attention
from appliance.planner.constants import Constants, calibrated, intervals
from appliance.planner.drafts import Drafts
from appliance.planner.learned import RunConditions, correct, log_tokens
from appliance.planner.memory import CardMemory, card_memory, default_batched_tokens, default_sequences
from appliance.planner.roofline import (
    DecodeStep,
    communication_time,
    compute_time,
    first_token_seconds,
    larger,
    prefill_seconds,
    smaller,
    step_time,
)
from appliance.planner.terms import PassTerms, decode_terms, prefill_terms
from appliance.planner.workload import Workload, check_workload

PARTS: tuple[tuple[str, ...], ...] = (
    ("memory_share",),
    ("expert_memory_share",),
    ("kv_memory_share",),
    ("bf16_share", "fp8_share", "fp4_share", "w4a16_share", "attention_share"),
    ("layer_s", "expert_layer_s", "linear_layer_s", "step_s", "cpu_layer_s"),
    ("sequence_s",),
    ("reduce_pcie_s", "reduce_nvlink_s"),
)
"""Constants of each part of the roofline whose error a machine's measurements determine."""
PART_STEP = 1.3

SGLANG_STATE_RATIO = 0.9
"""Memory of recurrent states over that of the KV cache (SGLang's --mamba-full-memory-ratio)."""
SGLANG_STATES_PER_REQUEST = 5.0
"""States that a running request reserves with the prefix cache and asynchronous scheduling: three, and two buffers.

Source: MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO and MAMBA_CACHE_V2_ADDITIONAL_RATIO_OVERLAP of SGLang.
"""
OLD_SGLANG_STATES_PER_REQUEST = 3.0
"""The same before the two buffers."""
BUFFERED_STATES_YEARS = 5.5 / 12
"""Age of the releases before the two buffers."""
SGLANG_DRAFT_SLOTS = 48.0
"""Requests that SGLang runs at once with drafts, unless --max-running-requests is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopTerms:
    """A closed loop of requests, before any calibrated constant. Switches are 0 or 1."""

    decode: PassTerms
    prompt: PassTerms
    alone: PassTerms
    """The decode pass of a single request after its prompt."""
    running: float
    """Requests that decode at once on one replica."""
    offered: float
    """Requests of one replica, those that wait included."""
    busy: float
    """Replicas with work."""
    input: float
    output: float
    stages: float
    accepted: float
    """Stated tokens per step; 0 if they are not stated."""
    draft_tokens: float
    mtp: float
    eagle: float
    dflash: float
    prompt_passes: float
    """Passes of a cycle that hold a part of a prompt."""
    mixed: float
    """Whether the engine decodes and prefills in one pass."""
    staggered: float
    """Whether requests begin at different times, so that prompts are spread over the decode steps."""
    full_waves: float
    """Full waves of requests over all waves: the last wave of even responses is not full."""
    part_waves: float
    """Incomplete waves over all waves; all waves are the requests over those of a full wave."""
    filled: float
    """Requests of the incomplete wave over those of a full one."""
    tail: float
    """Uneven last responses per response of the run: each replica ends with a few that decode almost alone."""
    served: float
    decode_only: float
    prefill_only: float


@dataclass(frozen=True, slots=True)
class LoopTimes:
    """The rate of a closed loop in tok/s, and its parts in seconds."""

    rate: float
    step: DecodeStep
    accepted: float
    prompt_s: float
    first_s: float
    decode_s: float
    cycle_s: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The expected throughput with the ends of its 80 % interval, and the expected latency."""

    output_tok_s: float
    low: float
    high: float
    ttft_ms: float
    tpot_ms: float
    running: float
    """Requests decoding at once, over all replicas."""
    limit: str
    """Limit of the throughput: memory bandwidth, arithmetic, launches, links, host, KV cache."""
    step: DecodeStep
    memory: CardMemory
    assumed: tuple[str, ...]
    rate: float
    """The predicted rate in tok/s: of the prompt in mode ``prefill``, else of the output."""
    shift: float = 0.0
    """Correction by the machine's own measurements: ln of the factor that ``rate`` contains."""


def loop_terms(workload: Workload, memory: CardMemory) -> LoopTerms:
    """Return the terms of the closed loop of ``workload`` on cards with the room of ``memory``."""
    layout = workload.layout
    in_flight = min(workload.concurrency, workload.requests or workload.concurrency)
    busy = min(float(layout.replicas), in_flight)
    offered = max(1.0, in_flight / layout.replicas)
    slots = default_slots(workload)
    running = max(1.0, min(offered, slots, kv_capacity(workload, memory)))
    context = workload.input + workload.output / 2.0
    full, part, filled, tail = 1.0, 0.0, 0.0, 0.0
    if workload.requests is not None:
        rounds = max(workload.requests / (running * busy), 1e-9)
        if workload.uneven:
            tail = workload.uneven * min(1.0, max(0.0, running * busy - 1.0) / workload.requests)
        elif rounds >= 1.0:
            full, part, filled = _waves(rounds)
    stated = workload.accepted if workload.accepted is not None else 0.0
    decode_only = workload.mode == "decode"
    prefill_only = workload.mode == "prefill"
    return LoopTerms(
        decode=decode_terms(workload, batch=running, context=context),
        prompt=prefill_terms(workload, workload.input),
        alone=decode_terms(workload, batch=1.0, context=workload.input),
        running=running,
        offered=offered,
        busy=busy,
        input=max(1.0, workload.input),
        output=workload.output,
        stages=float(layout.pp),
        accepted=stated,
        draft_tokens=float(workload.draft_tokens),
        mtp=float(workload.drafts in {"mtp", "ngram"}),
        eagle=float(workload.drafts == "eagle"),
        dflash=float(workload.drafts == "dflash"),
        prompt_passes=(running - 1.0)
        * workload.input
        * (1.0 - workload.prefix_hit)
        / default_batched_tokens(workload.card),
        mixed=float(workload.engine not in {"llamacpp", "sglang"} and layout.pp == 1),
        staggered=float(running > 1 and _staggers(workload)),
        full_waves=full,
        part_waves=part,
        filled=filled,
        tail=tail,
        served=float(not decode_only and not prefill_only),
        decode_only=float(decode_only),
        prefill_only=float(prefill_only),
    )


def _staggers(workload: Workload) -> bool:
    """Return whether unequal responses spread the prompts over the steps of an engine that mixes both."""
    mixes = workload.engine in {"vllm", "tensorrt-llm"} and workload.layout.pp == 1
    return mixes and workload.uneven > 0 and workload.cpu is None


def _waves(rounds: float) -> tuple[float, float, float]:
    """Return full waves and incomplete waves, both over ``rounds``, and how full the incomplete one is.

    A wave that misses less than a thousandth of its requests is full.
    """
    whole = float(int(rounds + 1e-3))
    filled = max(0.0, rounds - whole)
    return whole / rounds, float(filled > 1e-3) / rounds, filled


def default_slots(workload: Workload) -> float:
    """Return the most requests that one replica runs at once: the stated limit, or the engine's default."""
    if workload.max_sequences:
        return float(workload.max_sequences)
    if workload.engine == "sglang":
        return SGLANG_DRAFT_SLOTS if workload.draft_tokens else 2048.0
    if workload.engine == "tensorrt-llm":
        return 2048.0
    return float(default_sequences(workload.card))


def loop_times(terms: LoopTerms, k: Constants) -> LoopTimes:
    """Return the rate and the times of a closed loop. Formulas are of operators only and accept arrays."""
    step = step_time(terms.decode, k)
    usual = k.mtp_acceptance**terms.mtp * k.eagle_acceptance**terms.eagle * k.dflash_acceptance**terms.dflash
    # Without a method the base is 1 and the drafts are 0: 1.000001 keeps the quotient defined.
    usual = usual * (1.0 - 1e-6)
    geometric = (1.0 - usual ** (terms.draft_tokens + 1.0)) / (1.0 - usual)
    unstated = 1.0 - terms.accepted / (terms.accepted + 1e-12)
    accepted = terms.accepted + unstated * geometric
    prompt = prefill_seconds(terms.prompt, k)
    first = first_token_seconds(terms.alone, terms.prompt, terms.stages, k)
    steps = terms.output / accepted
    decode = steps * step.total
    prefills = terms.running * prompt
    # A pass with a prompt in it also decodes one token of every running sequence.
    passes = smaller(terms.prompt_passes, steps)
    shared = k.mixed_share * passes * step.total * terms.mixed
    together = steps * mixed_step(terms, k, step=step, steps=steps)
    cycle = (decode - shared + larger(prefills, first)) * (1.0 - terms.staggered) + terms.staggered * larger(
        together, decode
    )
    alone = step_time(terms.alone, k).total / accepted
    last = terms.filled * cycle + (1.0 - terms.filled) * terms.output * alone
    cycle = cycle * terms.full_waves + last * terms.part_waves + k.drain * terms.tail * terms.output * alone
    rate = terms.busy * (
        terms.served * terms.running * terms.output / cycle
        + terms.decode_only * terms.running / step.total * accepted
        + terms.prefill_only * terms.input / first
    )
    return LoopTimes(
        rate=rate, step=step, accepted=accepted, prompt_s=prompt, first_s=first, decode_s=decode, cycle_s=cycle
    )


def mixed_step(terms: LoopTerms, k: Constants, *, step: DecodeStep, steps: float) -> float:
    """Return the seconds of the decode ``step`` if prompts join its batch, spread evenly over ``steps`` steps.

    The prompts' multiplications overlap with reading the weights.
    """
    each = terms.running / steps
    return dataclasses.replace(
        step,
        compute=step.compute + each * compute_time(terms.prompt, k),
        communication=step.communication + each * communication_time(terms.prompt, k),
    ).total


def predict(workload: Workload, k: Constants | None = None) -> Prediction:
    """Return the prediction for the closed loop of ``workload``, with the calibrated constants by default.

    Raises :class:`~appliance.errors.UsageError` for an impossible workload.
    """
    check_workload(workload)
    k = k or calibrated()
    memory = workload_memory(workload)
    terms = loop_terms(workload, memory)
    times = loop_times(terms, k)
    step, running, offered = times.step, terms.running, terms.offered
    if workload.mode == "decode" or running <= 1:
        tpot = step.total / times.accepted
    else:
        tpot = (times.cycle_s - times.first_s) / workload.output
    ttft = times.first_s + max(0.0, min(running, offered) - 1) * times.prompt_s / 2
    if offered > running:
        ttft += (offered - running) / running * times.decode_s
    room = kv_capacity(workload, memory)
    if offered > running * 1.01 and room <= running * 1.01:
        limit = "KV cache"
    elif workload.mode == "prefill" or running * times.prompt_s > times.decode_s:
        limit = "prefill arithmetic"
    else:
        limit = _longest_part(step)
    low, high = interval(workload)
    correction = correct(workload.measured, run_conditions(workload, terms, k)) if workload.measured else None
    shift = correction.shift if correction else 0.0
    if correction:
        low, high = low * correction.width, high * correction.width
    rate = times.rate * exp(shift)
    # A machine that is slower than predicted is taken to be slower in each part of a request.
    ttft, tpot = ttft * exp(-shift), tpot * exp(-shift)
    output = rate if workload.mode != "prefill" else running / times.cycle_s * workload.output * exp(shift)
    return Prediction(
        output_tok_s=output,
        low=output * exp(low),
        high=output * exp(high),
        ttft_ms=ttft * 1e3,
        tpot_ms=tpot * 1e3,
        running=running * terms.busy,
        limit=limit,
        step=step,
        memory=memory,
        assumed=workload.assumed,
        rate=rate,
        shift=shift,
    )


def run_conditions(workload: Workload, terms: LoopTerms, k: Constants) -> RunConditions:
    """Return the conditions of ``workload`` on which the error of its prediction depends."""
    layout = workload.layout
    rate = loop_times(terms, k).rate
    parts = []
    for names in PARTS:
        moved = dataclasses.replace(k, **{name: getattr(k, name) * PART_STEP for name in names})
        parts.append(log(loop_times(terms, moved).rate / rate) / log(PART_STEP))
    return RunConditions(
        log_concurrency=log(workload.concurrency / layout.replicas),
        log_input=log_tokens(workload.input, 64.0),
        log_output=log_tokens(workload.output, 16.0),
        log_replicas=log(layout.replicas),
        power_w=workload.power_w or workload.card.tdp_w,
        precision=workload.precision.name,
        kv_bytes=workload.precision.kv_bytes,
        engine=workload.engine,
        tp=layout.tp,
        layout=(layout.pp, layout.ep),
        attention_dp=layout.attention_dp,
        drafts=(workload.drafts, workload.draft_tokens),
        mode=workload.mode,
        parts=tuple(parts),
    )


def workload_memory(workload: Workload) -> CardMemory:
    """Return the memory of one card of ``workload``."""
    return card_memory(
        workload.card,
        workload.shape,
        workload.precision,
        layout=workload.layout,
        utilization=workload.utilization,
        sequences=workload.max_sequences,
        drafts=Drafts(workload.drafts, workload.draft_tokens),
    )


def kv_capacity(workload: Workload, memory: CardMemory) -> float:
    """Return the requests of ``workload`` that the KV cache of one replica holds, on average over their growth.

    A published run is accepted even if the weights do not fit by this calculation: then one request runs.
    """
    if workload.engine == "llamacpp" or workload.mode == "decode":
        return max(1.0, workload.concurrency)
    # TensorRT-LLM reserves the whole response; the others let the cache grow and preempt.
    grown = workload.output if workload.engine == "tensorrt-llm" else workload.output / 2.0
    average = workload.input + grown
    if workload.engine == "sglang" and workload.shape.linear_layers:
        return max(1.0, _pooled_sequences(workload, memory, average))
    return max(1.0, memory.sequences(average)) * (workload.layout.tp if workload.layout.attention_dp else 1)


def _pooled_sequences(workload: Workload, memory: CardMemory, context: float) -> float:
    """Return the requests of a replica under SGLang, which divides the free memory into states and KV cache.

    The states have 0.9 parts, the KV cache one (--mamba-full-memory-ratio).
    """
    shape, tp = workload.shape, workload.layout.tp
    free = max(0.0, memory.kv) / (1.0 + SGLANG_STATE_RATIO)
    each = (
        OLD_SGLANG_STATES_PER_REQUEST if workload.years_old > BUFFERED_STATES_YEARS else SGLANG_STATES_PER_REQUEST
    )
    states = free * SGLANG_STATE_RATIO / (shape.state_bytes_per_sequence / tp) / each
    heads = shape.full.kv_heads if isinstance(shape.full, Attention) else 1
    cached = shape.kv_bytes_of(context, workload.precision.kv_bytes) / min(tp, heads)
    return min(states, free / cached) if cached else states


def interval_class(workload: Workload) -> str:
    """Return the class of the interval of a prediction: the fewer conditions are stated, the wider."""
    if workload.cpu is not None or workload.shape.approximate:
        return "far"
    if workload.draft_tokens:
        return "drafts"
    if workload.mode == "prefill":
        return "prefill"
    if workload.assumed:
        return "assumed"
    return "single" if workload.layout.cards == 1 else "several"


def interval(workload: Workload) -> tuple[float, float]:
    """Return the logarithms to add for the low and the high end."""
    table = intervals()
    return table.get(interval_class(workload)) or table.get("all") or (-0.5, 0.5)


def _longest_part(step: DecodeStep) -> str:
    parts = {
        "memory bandwidth": step.memory,
        "arithmetic": step.compute,
        "kernel launches": step.floor,
        "links between cards": step.communication,
        "host": step.host,
    }
    return max(parts, key=lambda name: parts[name])
