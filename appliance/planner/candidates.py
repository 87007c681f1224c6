"""The ways in which one model could run on one machine (or across machines), each with what it can carry.

Pure. An option is a unit: the cards of one replica, its layout and its engine. Its capacity is the request
rate at which it still holds the SLO, found by bisection on the number of requests in flight.
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
from appliance.planner.hardware import HardwareSpec
from appliance.planner.layout import Layout, check_shards
from appliance.planner.memory import CardMemory, card_memory
from appliance.planner.models import ModelDemand
from appliance.planner.throughput import Prediction, predict
from appliance.planner.workload import Workload

TP_SIZES = (1, 2, 4, 8)
MIN_CHATS = 1.0
"""An option must hold at least one request of the longest context: vLLM refuses to start otherwise."""
GGUF = "Q4_K_M"
"""Precision of experts in RAM where the model's own is not a GGUF format."""
CPU_GEMM_SHARE = 0.5
"""Share of a processor's GEMM rate that a small model reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run one replica of ``work``."""

    work: ModelDemand
    kind: str
    """``cards``, ``cpu``, ``experts in RAM``, ``vulkan``."""
    card: Card | None
    layout: Layout
    point: Workload | None
    memory: CardMemory | None
    ram_bytes: float
    requests_per_s: float
    """Most requests per second that hold the SLO."""
    in_flight: float
    """Requests in flight at that rate."""
    alone_tok_s: float
    """Speed of a single answer."""
    limit: str

    @property
    def cards(self) -> int:
        """Cards of one replica."""
        return self.layout.cards_per_replica if self.card is not None else 0

    @property
    def writable(self) -> bool:
        """Whether the site's contract can say it (it has tensor parallelism, not pipelines)."""
        return self.layout.pp == 1 and self.layout.hosts == 1 and self.kind != "vulkan"

    @property
    def title(self) -> str:
        """In a word."""
        if self.card is None:
            return "CPU"
        dtype = self.point.precision.name if self.point is not None else ""
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


def options(work: ModelDemand, machine: HardwareSpec, demand: Demand, machines: int = 1) -> list[Candidate]:
    """Every option of ``work`` on ``machine``; ``machines`` equal ones may share a replica."""
    return list(_options(work, machine, demand, machines))


@lru_cache(maxsize=4096)
def _options(work: ModelDemand, machine: HardwareSpec, demand: Demand, machines: int) -> tuple[Candidate, ...]:
    found: list[Candidate] = []
    for card in dict.fromkeys(machine.cards):
        count = machine.cards.count(card)
        if card.vendor == "nvidia":
            found += _on_cards(work, machine, demand, card, count, machines)
            if work.shape.moe is not None and not work.shape.pooling:
                found += _experts_in_ram(work, machine, demand, card)
        elif work.shape.pooling or precision.weights(work.shape, work.precision).total < card.memory_bytes * 0.8:
            found += _vulkan(work, machine, demand, card)
    if work.shape.pooling or precision.weights(work.shape, work.precision).total < 6e9:
        found += _on_cpu(work, machine)
    return tuple(found)


def _on_cards(
    work: ModelDemand, machine: HardwareSpec, demand: Demand, card: Card, count: int, machines: int
) -> list[Candidate]:
    found = []
    layouts = [
        Layout(tp=tp, ep=ep) for tp in TP_SIZES if tp <= count for ep in ((False, True) if tp > 1 else (False,))
    ]
    layouts += [Layout(tp=tp, pp=pp) for tp in (1, 2, 4) for pp in (2, 4, 8) if tp * pp <= count]
    if machines > 1 and count in TP_SIZES:
        layouts += [Layout(tp=count, pp=hosts, hosts=hosts) for hosts in (2, 4, 8) if hosts <= machines]
    for layout in layouts:
        if layout.ep and work.shape.moe is None:
            continue
        try:
            check_shards(work.shape, layout, work.precision)
        except UsageError:
            continue
        sequences = 256
        memory = card_memory(card, work.shape, work.precision, layout, context=work.context, sequences=sequences)
        if not memory.fits or memory.layout.tokens(memory.kv, work.context) < work.context * MIN_CHATS:
            continue
        point = Workload(
            card=card,
            shape=work.shape,
            precision=work.precision,
            input=work.prompt,
            output=work.answer,
            concurrency=1,
            layout=layout,
            power_w=machine.power_w,
            prefix_hit=demand.prefix_hit,
            max_sequences=sequences,
            link_gb_s=machine.link_gb_s if layout.hosts > 1 else None,
        )
        weights = memory.weights * layout.cards_per_replica
        ram = host_ram.EngineRam(cards=layout.cards_per_replica, weights=weights).total
        found.append(_option(work, demand, "cards", card, layout, point, memory, ram))
    return found


def _experts_in_ram(work: ModelDemand, machine: HardwareSpec, demand: Demand, card: Card) -> list[Candidate]:
    dtype = work.precision if work.precision.units == "gguf" else precision.parse(GGUF)
    parts = precision.weights(work.shape, dtype)
    free = 0.8 * card.memory_bytes - parts.dense - work.shape.kv_bytes_of(work.context) - 2e9
    if free < 0 or parts.experts < 8e9:
        return []
    away = max(0.0, 1.0 - free / parts.experts)
    if away == 0.0:
        return []
    ram = host_ram.EngineRam(cards=1, in_ram=parts.experts * away).total
    if ram > machine.ram_gib * GIB * (1 - host_ram.FREE_SHARE):
        return []
    point = Workload(
        card=card,
        shape=work.shape,
        precision=dtype,
        input=work.prompt,
        output=work.answer,
        concurrency=1,
        engine="llamacpp",
        power_w=machine.power_w,
        cpu=machine.cpu,
        cpu_expert_share=away,
        prefix_hit=demand.prefix_hit,
        max_sequences=4,
    )
    # llama.cpp takes the card whole: what weights and working space leave is its KV cache.
    whole = card_memory(card, work.shape, dtype, sequences=4, batched_tokens=2048)
    held = parts.dense + parts.experts * (1.0 - away)
    kv = card.memory_bytes * 0.95 - held - whole.overhead
    tokens = int(kv / work.shape.kv_bytes_per_token(dtype.kv_bytes))
    memory = dataclasses.replace(whole, weights=held, kv=kv, kv_tokens=tokens)
    return [_option(work, demand, "experts in RAM", card, Layout(), point, memory, ram)]


def _vulkan(work: ModelDemand, machine: HardwareSpec, demand: Demand, card: Card) -> list[Candidate]:
    point = Workload(
        card=card,
        shape=work.shape,
        precision=work.precision,
        input=work.prompt,
        output=work.answer,
        concurrency=1,
        engine="llamacpp",
        prefix_hit=0.0 if work.shape.pooling else demand.prefix_hit,
        max_sequences=16,
        power_w=None if machine.power_w is None else min(machine.power_w, card.max_power_w),
    )
    ram = host_ram.EngineRam(cards=1).total
    return [_option(work, demand, "vulkan", card, Layout(), point, None, ram)]


def _on_cpu(work: ModelDemand, machine: HardwareSpec) -> list[Candidate]:
    """A small model on the processor: prompts are bound by arithmetic, answers by RAM bandwidth."""
    parts = precision.weights(work.shape, work.precision)
    used = work.shape.total_params - work.shape.embedding_params
    per_token = 2.0 * used / (machine.cpu.bf16_tflops * 1e12 * CPU_GEMM_SHARE)
    seconds = work.prompt * per_token
    step = parts.dense / (machine.cpu.memory_gb_s * 1e9 * calibrated().cpu_memory_share)
    if not work.shape.pooling:
        seconds += work.answer * step / 4  # a handful decode together
    ram = host_ram.EngineRam(in_ram=parts.total + 4e9).total
    if ram > machine.ram_gib * GIB:
        return []
    option = Candidate(
        work=work,
        kind="cpu",
        card=None,
        layout=Layout(),
        point=None,
        memory=None,
        ram_bytes=ram,
        requests_per_s=0.7 / seconds,
        in_flight=1.0,
        alone_tok_s=1.0 / step,
        limit="processor",
    )
    return [option]


def at(option: Candidate, concurrency: float) -> Prediction | None:
    """The prediction of one replica of ``option`` with ``concurrency`` requests in flight."""
    if option.point is None:
        return None
    return predict(dataclasses.replace(option.point, concurrency=max(1.0, concurrency)))


def _option(
    work: ModelDemand,
    demand: Demand,
    kind: str,
    card: Card,
    layout: Layout,
    point: Workload,
    memory: CardMemory | None,
    ram: float,
) -> Candidate:
    if work.shape.pooling:
        # Nothing is decoded: one forward pass per request.
        once = predict(dataclasses.replace(point, output=1.0, prefix_hit=0.0, decode_only=False))
        rate = 1.0 / max(once.ttft_ms / 1e3 - once.step.total, 1e-4)
        return Candidate(
            work=work,
            kind=kind,
            card=card,
            layout=layout,
            point=point,
            memory=memory or once.memory,
            ram_bytes=ram,
            requests_per_s=0.7 * rate,
            in_flight=1.0,
            alone_tok_s=rate * work.prompt,
            limit="arithmetic",
        )
    alone = predict(point)
    low, high = 1.0, float(point.max_sequences or 256)
    for _ in range(7):
        middle = (low * high) ** 0.5
        answer = predict(dataclasses.replace(point, concurrency=middle))
        held = answer.tpot_ms / 1e3 <= demand.tpot_slo_s and answer.running >= middle * 0.99
        low, high = (middle, high) if held else (low, middle)
    best = predict(dataclasses.replace(point, concurrency=low))
    return Candidate(
        work=work,
        kind=kind,
        card=card,
        layout=layout,
        point=point,
        memory=memory or alone.memory,
        ram_bytes=ram,
        requests_per_s=best.output_tok_s / work.answer,
        in_flight=low,
        alone_tok_s=alone.output_tok_s,
        limit=best.limit,
    )
