"""Candidates: the possible replicas of one model on one machine or across machines, each with its capacity.

Pure. A candidate is a unit: the cards of one replica, its layout and its engine. Its capacity is the highest
request rate within the SLO, found by bisection on the number of requests in flight.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

from appliance.catalog.cards import Card
from appliance.contract.card_memory import GIB
from appliance.errors import UsageError
from appliance.planner import host_ram, precision
from appliance.planner.constants import calibrated
from appliance.planner.demand import Demand
from appliance.planner.drafts import NO_DRAFTS
from appliance.planner.hardware import HardwareSpec
from appliance.planner.layout import Layout, check_shards
from appliance.planner.memory import CardMemory, card_memory
from appliance.planner.models import ModelDemand
from appliance.planner.throughput import Prediction, predict
from appliance.planner.workload import Workload

TP_SIZES = (1, 2, 4, 8)
MIN_CHATS = 1.0
"""A candidate must hold at least one request of the longest context: otherwise vLLM does not start."""
GGUF = "Q4_K_M"
"""Precision of experts in RAM if the model's own is not a GGUF format."""
CPU_GEMM_SHARE = 0.5
"""Share of a processor's GEMM rate that a small model reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A possible replica of ``model``."""

    model: ModelDemand
    kind: str
    """``cards``, ``cpu``, ``experts in RAM``, ``vulkan``."""
    card: Card | None
    layout: Layout
    workload: Workload | None
    memory: CardMemory | None
    ram_bytes: float
    requests_per_s: float
    """Highest rate of requests per second within the SLO."""
    in_flight: float
    """Requests in flight at that rate."""
    alone_tok_s: float
    """Tokens per second of a single response."""
    limit: str

    @property
    def cards(self) -> int:
        """Cards of one replica."""
        return self.layout.cards_per_replica if self.card is not None else 0

    @property
    def writable(self) -> bool:
        """Whether :mod:`~appliance.planner.engines_section` writes it: not on Vulkan, which needs a GGUF file."""
        return self.kind != "vulkan"

    @property
    def title(self) -> str:
        """Short name of the candidate."""
        if self.card is None:
            return "CPU"
        dtype = self.workload.precision.name if self.workload is not None else ""
        name = {
            "experts in RAM": f"card + experts in RAM ({dtype})",
            "vulkan": f"{self.card.name}, Vulkan",
        }.get(self.kind)
        if name:
            return name
        parts = [f"TP{self.layout.tp}"] if self.layout.tp > 1 else []
        parts += [f"PP{self.layout.pp}"] if self.layout.pp > 1 else []
        parts += ["EP"] if self.layout.ep else []
        parts += [f"over {self.layout.hosts} machines"] if self.layout.hosts > 1 else []
        return " ".join(parts) or "single card"


def find_candidates(
    model: ModelDemand, machine: HardwareSpec, demand: Demand, *, machines: int = 1
) -> list[Candidate]:
    """Return every candidate of ``model`` on ``machine``; ``machines`` equal machines may share a replica."""
    return list(_find_candidates(model, machine, demand, machines=machines))


@lru_cache(maxsize=4096)
def _find_candidates(
    model: ModelDemand, machine: HardwareSpec, demand: Demand, machines: int
) -> tuple[Candidate, ...]:
    found: list[Candidate] = []
    for card in dict.fromkeys(machine.cards):
        if card.vendor == "nvidia":
            found += _on_cards(model, machine, demand, card=card, machines=machines)
            if model.shape.moe is not None and not model.shape.pooling:
                found += _experts_in_ram(model, machine, demand, card=card)
        elif model.shape.pooling or precision.weights(model.shape, model.precision).total < card.memory_bytes * 0.8:
            found += _vulkan(model, machine, demand, card=card)
    if model.shape.pooling or precision.weights(model.shape, model.precision).total < 6e9:
        found += _on_cpu(model, machine)
    return tuple(found)


def _on_cards(
    model: ModelDemand, machine: HardwareSpec, demand: Demand, *, card: Card, machines: int
) -> list[Candidate]:
    found = []
    count = machine.cards.count(card)
    layouts = [
        Layout(tp=tp, ep=ep) for tp in TP_SIZES if tp <= count for ep in ((False, True) if tp > 1 else (False,))
    ]
    layouts += [Layout(tp=tp, pp=pp) for tp in (1, 2, 4) for pp in (2, 4, 8) if tp * pp <= count]
    if machines > 1 and count in TP_SIZES:
        layouts += [Layout(tp=count, pp=hosts, hosts=hosts) for hosts in (2, 4, 8) if hosts <= machines]
    for layout in layouts:
        if layout.ep and model.shape.moe is None:
            continue
        try:
            check_shards(model.shape, layout, model.precision)
        except UsageError:
            continue
        sequences = 256
        memory = card_memory(
            card,
            model.shape,
            model.precision,
            layout=layout,
            context=model.context,
            sequences=sequences,
            # vLLM has no drafts with a pipeline (vllm-project/vllm#50098).
            drafts=model.drafts if layout.pp == 1 else NO_DRAFTS,
        )
        if not memory.fits or memory.layout.tokens(memory.kv, model.context) < model.context * MIN_CHATS:
            continue
        workload = Workload(
            card=card,
            shape=model.shape,
            precision=model.precision,
            input=model.prompt,
            output=model.response,
            concurrency=1,
            layout=layout,
            power_w=machine.power_w,
            measured=machine.measured_of(model.shape.name, card),
            prefix_hit=demand.prefix_hit,
            max_sequences=sequences,
            link_gb_s=machine.link_gb_s if layout.hosts > 1 else None,
        )
        weights = memory.weights * layout.cards_per_replica
        ram = host_ram.EngineRam(cards=layout.cards_per_replica, weights=weights).total
        found.append(_candidate(model, demand, workload, kind="cards", memory=memory, ram=ram))
    return found


def _experts_in_ram(model: ModelDemand, machine: HardwareSpec, demand: Demand, *, card: Card) -> list[Candidate]:
    dtype = model.precision if model.precision.units == "gguf" else precision.parse(GGUF)
    parts = precision.weights(model.shape, dtype)
    free = 0.8 * card.memory_bytes - parts.dense - model.shape.kv_bytes_of(model.context) - 2e9
    if free < 0 or parts.experts < 8e9:
        return []
    away = max(0.0, 1.0 - free / parts.experts)
    if away == 0.0:
        return []
    ram = host_ram.EngineRam(cards=1, in_ram=parts.experts * away).total
    if ram > machine.ram_gib * GIB * (1 - host_ram.FREE_SHARE):
        return []
    workload = Workload(
        card=card,
        shape=model.shape,
        precision=dtype,
        input=model.prompt,
        output=model.response,
        concurrency=1,
        engine="llamacpp",
        power_w=machine.power_w,
        measured=machine.measured_of(model.shape.name, card),
        cpu=machine.cpu,
        cpu_expert_share=away,
        prefix_hit=demand.prefix_hit,
        max_sequences=4,
    )
    # llama.cpp takes the whole card: the rest after weights and working space is its KV cache.
    whole = card_memory(card, model.shape, dtype, sequences=4, batched_tokens=2048)
    held = parts.dense + parts.experts * (1.0 - away)
    kv = card.memory_bytes * 0.95 - held - whole.overhead
    tokens = int(kv / model.shape.kv_bytes_per_token(dtype.kv_bytes))
    memory = dataclasses.replace(whole, weights=held, kv=kv, kv_tokens=tokens)
    return [_candidate(model, demand, workload, kind="experts in RAM", memory=memory, ram=ram)]


def _vulkan(model: ModelDemand, machine: HardwareSpec, demand: Demand, *, card: Card) -> list[Candidate]:
    workload = Workload(
        card=card,
        shape=model.shape,
        precision=model.precision,
        input=model.prompt,
        output=model.response,
        concurrency=1,
        engine="llamacpp",
        measured=machine.measured_of(model.shape.name, card),
        prefix_hit=0.0 if model.shape.pooling else demand.prefix_hit,
        max_sequences=16,
        power_w=None if machine.power_w is None else min(machine.power_w, card.max_power_w),
    )
    ram = host_ram.EngineRam(cards=1).total
    return [_candidate(model, demand, workload, kind="vulkan", memory=None, ram=ram)]


def _on_cpu(model: ModelDemand, machine: HardwareSpec) -> list[Candidate]:
    """Return a small model on the processor: arithmetic limits prompts, RAM bandwidth limits responses."""
    parts = precision.weights(model.shape, model.precision)
    used = model.shape.total_params - model.shape.embedding_params
    per_token = 2.0 * used / (machine.cpu.bf16_tflops * 1e12 * CPU_GEMM_SHARE)
    seconds = model.prompt * per_token
    step = parts.dense / (machine.cpu.memory_gb_s * 1e9 * calibrated().cpu_memory_share)
    if not model.shape.pooling:
        # A few sequences decode together.
        seconds += model.response * step / 4
    ram = host_ram.EngineRam(in_ram=parts.total + 4e9).total
    if ram > machine.ram_gib * GIB:
        return []
    candidate = Candidate(
        model=model,
        kind="cpu",
        card=None,
        layout=Layout(),
        workload=None,
        memory=None,
        ram_bytes=ram,
        requests_per_s=0.7 / seconds,
        in_flight=1.0,
        alone_tok_s=1.0 / step,
        limit="processor",
    )
    return [candidate]


def predict_at(candidate: Candidate, concurrency: float) -> Prediction | None:
    """Return the prediction for one replica of ``candidate`` with ``concurrency`` requests in flight.

    None if it runs on the processor.
    """
    if candidate.workload is None:
        return None
    return predict(dataclasses.replace(candidate.workload, concurrency=max(1.0, concurrency)))


def _candidate(
    model: ModelDemand, demand: Demand, workload: Workload, *, kind: str, memory: CardMemory | None, ram: float
) -> Candidate:
    """Return the candidate that serves ``model`` as ``workload``, with its capacity; ``ram`` in bytes."""
    if model.shape.pooling:
        # An embedding model does not decode: one forward pass per request.
        alone = predict(dataclasses.replace(workload, output=1.0, prefix_hit=0.0, mode="served"))
        rate = 1.0 / max(alone.ttft_ms / 1e3 - alone.step.total, 1e-4)
        requests_per_s, in_flight, alone_tok_s, limit = 0.7 * rate, 1.0, rate * model.prompt, "arithmetic"
    else:
        alone = predict(workload)
        best, in_flight = _most_in_flight(workload, demand)
        requests_per_s, alone_tok_s, limit = best.output_tok_s / model.response, alone.output_tok_s, best.limit
    return Candidate(
        model=model,
        kind=kind,
        card=workload.card,
        layout=workload.layout,
        workload=workload,
        memory=memory or alone.memory,
        ram_bytes=ram,
        requests_per_s=requests_per_s,
        in_flight=in_flight,
        alone_tok_s=alone_tok_s,
        limit=limit,
    )


def _most_in_flight(workload: Workload, demand: Demand) -> tuple[Prediction, float]:
    """Return the prediction at the highest concurrency within the TPOT SLO, and that concurrency."""
    low, high = 1.0, float(workload.max_sequences or 256)
    for _ in range(7):
        middle = (low * high) ** 0.5
        prediction = predict(dataclasses.replace(workload, concurrency=middle))
        held = prediction.tpot_ms / 1e3 <= demand.tpot_slo_s and prediction.running >= middle * 0.99
        low, high = (middle, high) if held else (low, middle)
    return predict(dataclasses.replace(workload, concurrency=low)), low
