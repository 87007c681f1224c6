"""Reads one row of a measurements file as a :class:`~appliance.planner.workload.Workload`.

Pure. The columns are those of ``catalog/measurements.csv``. General patterns read conditions from the notes
(``pp=4``, ``layout DEP2,PP2``, ``kv fp8``, ``--n-cpu-moe 24``, ``ShareGPT``). Conditions that the row does not
state are the usual ones of the benchmark; ``assumed`` lists them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.catalog.cards import Card, cards, find_card
from appliance.catalog.models import find_model, shipped_models
from appliance.catalog.names import normalise
from appliance.catalog.processors import Cpu, find_cpu
from appliance.catalog.shape import Attention, Moe, Shape
from appliance.contract.card_memory import GIB
from appliance.errors import ApplianceError, UsageError
from appliance.planner import precision
from appliance.planner.layout import Layout, check_shards
from appliance.planner.memory import default_sequences
from appliance.planner.precision import Precision
from appliance.planner.workload import EngineKind, Workload

SHAREGPT = (217.0, 198.0)
"""Mean tokens of prompt and response in vLLM's ShareGPT benchmark over 1000 prompts."""
USUAL_LENGTHS = (256.0, 512.0)
USUAL_CONCURRENCY = 64.0
USUAL_OUTPUT = 512.0
OFFLINE_CONCURRENCY = 2048.0
"""Requests that TensorRT-LLM's offline benchmark keeps in flight (its default max batch size)."""
USUAL_ACCEPTANCE = 0.7
"""Share of drafted tokens accepted, if a row names speculation but no acceptance length."""

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Machine:
    card: Card
    cpu: Cpu | None


def parse_row(row: Row, known: dict[str, Shape] | None = None) -> Workload:
    """Return the workload of ``row``; :class:`UsageError`, one line, if the row is not understood.

    ``known`` are the models to search, the shipped ones if absent.
    """
    assumed: list[str] = []
    notes = row.get("notes") or ""
    machine = _machine(row.get("gpu") or "", assumed)
    shape = _shape(row.get("model") or "", known, assumed)
    engine = _engine(row.get("engine") or "", assumed)
    dtype = _precision(row, notes, shape=shape, engine=engine, assumed=assumed)
    layout = _layout(row, notes, engine)
    shape, layout = _fit(shape, layout, dtype)
    words = f"{row.get('dtype') or ''} {notes}"
    expert_share, bytes_share = _offload(words, machine, shape=shape, dtype=dtype, layout=layout)
    prompt, response = _lengths(row, notes, engine=engine, assumed=assumed)
    if shape.max_context < prompt + response:
        shape = dataclasses.replace(shape, max_context=int(prompt + response) + 1)
    draft, accepted = _speculation(notes)
    generic = bytes_share and machine.cpu is None
    cpu = find_cpu("generic desktop") if generic else machine.cpu
    return Workload(
        card=machine.card,
        shape=shape,
        precision=dtype,
        input=prompt,
        output=response,
        concurrency=_concurrency(row, notes, engine=engine, layout=layout, card=machine.card, assumed=assumed),
        layout=layout,
        engine=engine,
        power_w=_power(row, machine.card),
        one_shot=bool(re.search(r"one-?shot[\w -]* ON", notes)),
        draft_tokens=draft,
        accepted=accepted,
        cpu=cpu if expert_share or bytes_share else None,
        cpu_expert_share=expert_share,
        cpu_bytes_share=bytes_share,
        decode_only=_decode_only(row, notes, engine),
        requests=_requests(notes),
        assumed=tuple(assumed),
    )


def number(text: str | None, name: str) -> float | None:
    """Return a figure of a row, the upper end of a range; None for an empty field.

    Raises :class:`UsageError` for a field without a figure.
    """
    if text is None or not text.strip():
        return None
    figures = re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))
    if not figures:
        raise UsageError(f"{name} = {text!r} is not a number; leave it empty if it is not known")
    return float(figures[-1])


def _machine(text: str, assumed: list[str]) -> _Machine:
    parts = [part.strip() for part in re.sub(r"\([^)]*\)", "", text).split(" + ") if part.strip()]
    if not parts:
        raise UsageError("gpu is empty; name the card")
    card: Card | None = None
    cpu: Cpu | None = None
    for part in parts:
        try:
            found = _card(part)
            # Of unequal cards in one machine the first counts: it holds the weights that are read most.
            card = card or found
            continue
        except UsageError:
            if part.lower().startswith("any "):
                card = find_card("RTX 4060 Ti 16GB")
                assumed.append(f"{part}: taken as {card.name}")
                continue
            if len(parts) == 1:
                raise
        cpu = find_cpu(part)
    if card is None:
        raise UsageError(f"gpu = {text!r} names no card; name one of the catalog")
    return _Machine(card, cpu)


def _card(text: str) -> Card:
    """Return the card with whose name ``text`` begins (``H100 80GB HBM3``, ``4x RTX 5090 32GB``)."""
    name = re.sub(r"^\s*(?:NVIDIA\s+)?\d+\s*[x*]\s*", "", text)
    try:
        return find_card(name)
    except UsageError:
        plain = normalise(name)
        starts = {normalise(one): card for card in cards().values() for one in (card.name, *card.aliases)}
        fits = [start for start in starts if len(start) >= 4 and plain.startswith(start)]
        if not fits:
            raise
        return starts[max(fits, key=len)]


def _shape(text: str, known: dict[str, Shape] | None, assumed: list[str]) -> Shape:
    known = shipped_models() if known is None else known
    name = re.sub(r"\([^)]*\)", "", text).strip()
    if not name:
        raise UsageError("model is empty; name it")
    try:
        return find_model(name, known)
    except UsageError as error:
        plain = _plain(name)
        for shape in known.values():
            other = _plain(shape.name)
            if min(len(plain), len(other)) >= 6 and (other.startswith(plain) or plain.startswith(other)):
                return shape
        guessed = guess(name)
        if guessed is None:
            raise error from None
        assumed.append(f"{name} is not in the catalog: its shape is guessed from its name")
        return guessed


def guess(name: str) -> Shape | None:
    """Return a rough shape of usual proportions from the sizes in a name (``Foo-30B-A3B``), None without sizes."""
    total = re.search(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[Bb](?![A-Za-z\d])", name)
    active = re.search(r"[Aa](\d+(?:\.\d+)?)[Bb](?![A-Za-z\d])", name)
    if total is None:
        return None
    size, used = float(total.group(1)) * 1e9, float(active.group(1)) * 1e9 if active else None
    base = used * 4 if used else size
    hidden = max(1024, min(16384, round((base / 20) ** (1 / 3) / 128) * 128))
    attention = Attention(heads=max(8, hidden // 128), kv_heads=8, head_dim=128)
    vocab = 150_000
    moe: Moe | None = None
    width = int(3.5 * hidden)
    if used is None:
        layers = max(8, round((size - 2 * vocab * hidden) / (attention.params(hidden) + 3 * hidden * width)))
    else:
        layers = max(16, min(96, hidden // 64))
        spare = max(used - 2 * vocab * hidden - layers * attention.params(hidden), used * 0.3)
        each = max(128, int(spare / layers / 8 / (3 * hidden) / 64) * 64)
        experts = max(16, round((size - used) / layers / (3 * hidden * each) + 8))
        moe = Moe(experts=experts, per_token=8, width=each)
    return Shape(
        name=name,
        hidden=hidden,
        layers=layers,
        vocab=vocab,
        max_context=1 << 20,
        tied=False,
        full=attention,
        moe=moe,
        approximate=True,
        dense_width=width if moe is None else 0,
        dense_layers=layers if moe is None else 0,
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.rsplit("/", 1)[-1].lower() if letter.isalnum())


def _engine(text: str, assumed: list[str]) -> EngineKind:
    name = text.lower()
    if "llama" in name:
        return "llamacpp"
    if "tensorrt" in name or "trt" in name:
        return "tensorrt-llm"
    if "sglang" in name:
        return "sglang"
    if not name:
        assumed.append("engine not stated: taken as vLLM")
    return "vllm"


def _precision(row: Row, notes: str, *, shape: Shape, engine: EngineKind, assumed: list[str]) -> Precision:
    text = row.get("dtype") or ""
    if not text.strip():
        assumed.append(f"precision not stated: taken as {shape.native}")
    stated_kv = re.search(r"\bkv (fp8|bf16|int8|nvfp4)", f"{text}, {notes}", re.IGNORECASE)
    kv = stated_kv.group(1).lower() if stated_kv else None
    try:
        dtype = precision.parse(text or shape.native, kv)
    except UsageError:
        bits = re.search(r"(?<!\d)([48])[- ]?bit", text, re.IGNORECASE)
        if bits is None:
            raise
        dtype = precision.parse({"4": "awq-int4", "8": "fp8"}[bits.group(1)], kv)
        assumed.append(f"{text}: taken as {dtype.name}")
    if engine == "tensorrt-llm" and not stated_kv and dtype.name in {"fp8", "nvfp4"}:
        # NVIDIA's FP8 and NVFP4 checkpoints set kv_cache_quant_algo = FP8.
        dtype = dataclasses.replace(dtype, kv_bytes=1.0)
    size = re.search(r"(\d+(?:\.\d+)?) ?GiB", f"{text} " + " ".join(re.findall(r"GGUF [\d.]+ GiB", notes)))
    if size:
        # A file's own size is more exact than the usual bits per weight of its format.
        each = float(size.group(1)) * GIB / shape.total_params
        dtype = precision.uniform(dtype.name, dtype.units, each=each, kv_bytes=dtype.kv_bytes)
    if "marlin" in notes.lower() and dtype.units == "fp4":
        dtype = dataclasses.replace(dtype, units="w4a16")
    return dtype


def _layout(row: Row, notes: str, engine: EngineKind) -> Layout:
    cards = int(number(row.get("gpu_count"), "gpu_count") or 1)
    if not 1 <= cards <= 4096:
        raise UsageError(f"gpu_count = {cards} is out of range; nearest valid value: {min(max(cards, 1), 4096)}")
    stated = re.search(r"layout (?:D?EP|TP)(\d+)(?:, ?PP(\d+))?", notes)
    if stated:
        tp, pp = int(stated.group(1)), int(stated.group(2) or 1)
        dep = "layout DEP" in notes
        return Layout(tp=tp, pp=pp, replicas=max(1, cards // (tp * pp)), ep=dep, attention_dp=dep and tp > 1)
    tp = int(number(row.get("tp"), "tp") or 0)
    replicas = int(number(row.get("dp"), "dp") or 1)
    if not tp:
        tp = 1 if engine == "llamacpp" else max(1, cards // replicas)
    pp = int((re.search(r"\bpp ?= ?(\d+)", notes, re.IGNORECASE) or [0, 0])[1])
    pp = pp or max(1, cards // (tp * replicas))
    ep = bool(re.search(r"enable-expert-parallel|\+ ?EP\b", notes)) and tp > 1
    return Layout(tp=tp, pp=pp, replicas=max(1, replicas), ep=ep)


def _fit(shape: Shape, layout: Layout, dtype: Precision) -> tuple[Shape, Layout]:
    """Return shape and layout as the engine must have run them: expert parallelism if shards would cut experts."""
    if layout.ep and shape.moe is None:
        layout = dataclasses.replace(layout, ep=False)
    if layout.attention_dp and shape.moe is None:
        layout = dataclasses.replace(layout, attention_dp=False)
    try:
        check_shards(shape, layout, dtype)
    except UsageError:
        if shape.moe is not None and not layout.ep:
            other = dataclasses.replace(layout, ep=True)
            check_shards(shape, other, dtype)
            return shape, other
        raise
    return shape, layout


def _offload(
    words: str, machine: _Machine, *, shape: Shape, dtype: Precision, layout: Layout
) -> tuple[float, float]:
    """Return the share of experts, and the share of all weights, in RAM."""
    ngl = re.search(r"\bngl (\d+)", words)
    if ngl:
        return 0.0, max(0.0, 1.0 - int(ngl.group(1)) / (shape.layers + 1))
    if machine.cpu is None or shape.moe is None:
        return 0.0, 0.0
    count = re.search(r"n-cpu-moe[ =](\d+)", words)
    part = re.search(r"(\d+) of (\d+) experts on GPU", words)
    layers = re.search(r"layers (\d+)-(\d+) \w+ on GPU", words)
    share = None
    if count:
        share = int(count.group(1)) / max(1, shape.moe_layers)
    elif part:
        share = 1.0 - int(part.group(1)) / int(part.group(2))
    elif layers:
        share = 1.0 - (int(layers.group(2)) - int(layers.group(1)) + 1) / shape.layers
    elif re.search(r"exps=CPU|experts on (?:the )?CPU", words):
        share = 1.0
    if share is not None:
        return min(1.0, max(0.0, share)), 0.0
    parts = precision.weights(shape, dtype)
    free = 0.85 * machine.card.memory_bytes * layout.cards_per_replica - parts.dense
    return min(1.0, max(0.0, 1.0 - free / parts.experts)), 0.0


def _lengths(row: Row, notes: str, *, engine: EngineKind, assumed: list[str]) -> tuple[float, float]:
    """Return the tokens of prompt and response."""
    prompt = number(row.get("input_tokens"), "input_tokens")
    response = number(row.get("output_tokens"), "output_tokens")
    deep = re.search(r"N_KV=(\d+)", notes)
    at = re.search(r"@ ?(\d+)[Kk]\b", notes)
    if engine == "llamacpp" and deep:
        prompt = float(deep.group(1))
    elif re.search(r"\btg\d+\b", notes):
        # llama-bench measures generation from an empty context.
        prompt = 0.0
    elif prompt is None and re.search(r"\b0[ -](?:context|ctx)", notes):
        prompt = 0.0
    elif prompt is None and at:
        prompt = float(at.group(1)) * 1024
    if "avg ~half" in notes and prompt is not None and response is not None:
        prompt, response = prompt / 2, response / 2
    if prompt is None and response is None and "sharegpt" in notes.lower():
        assumed.append("ShareGPT's mean lengths")
        return SHAREGPT
    if response is None and prompt is not None:
        return prompt, USUAL_OUTPUT
    if prompt is None:
        assumed.append("lengths not stated: 256 in, 512 out")
        prompt = USUAL_LENGTHS[0]
        response = response if response is not None else USUAL_LENGTHS[1]
    return prompt, max(1.0, response or 1.0)


def _concurrency(
    row: Row, notes: str, *, engine: EngineKind, layout: Layout, card: Card, assumed: list[str]
) -> float:
    stated = number(row.get("concurrency"), "concurrency")
    if stated is not None:
        return stated
    if engine == "llamacpp":
        return 1.0
    prompts = re.search(r"(\d+) prompts", notes)
    if "offline max load" in notes:
        assumed.append("offline: as many requests as fit")
        return OFFLINE_CONCURRENCY * layout.replicas * (layout.tp if layout.attention_dp else 1)
    if prompts or re.search(r"\binf(?:inite)?\b|max(?:imal)? load|ShareGPT", notes):
        prompts_sent = float(prompts.group(1)) if prompts else 1000.0
        assumed.append("all prompts at once")
        return min(prompts_sent, float(default_sequences(card) * layout.replicas * layout.cards_per_replica))
    assumed.append(f"concurrency not stated: {USUAL_CONCURRENCY:.0f}")
    return USUAL_CONCURRENCY


def _power(row: Row, card: Card) -> float | None:
    watts = number(row.get("power_limit_w"), "power_limit_w")
    return None if watts is None else min(watts, card.tdp_w)


def _speculation(notes: str) -> tuple[int, float]:
    """Return the tokens drafted per step, and the tokens that a step yields."""
    length = re.search(r"accept(?:ance)? length (\d+(?:\.\d+)?)", notes)
    if length:
        accepted = float(length.group(1))
        return max(1, round(accepted * 1.5)), accepted
    if re.search(r"\bno (?:MTP|spec)", notes, re.IGNORECASE):
        return 0, 1.0
    drafted = re.search(r"num_speculative_tokens=(\d+)", notes)
    if drafted or re.search(r"\b(?:MTP|EAGLE)", notes):
        count = int(drafted.group(1)) if drafted else 1
        return count, sum(USUAL_ACCEPTANCE**i for i in range(count + 1))
    return 0, 1.0


def _decode_only(row: Row, notes: str, engine: EngineKind) -> bool:
    if engine == "llamacpp" or re.search(r"\bdecode tok/s|\b0[ -](?:context|ctx)", notes):
        return True
    return (
        not (row.get("output_tokens") or "").strip() and "ShareGPT" not in notes and bool(row.get("input_tokens"))
    )


def _requests(notes: str) -> float | None:
    """Return the requests of a ShareGPT run, which are sent at once and have unequal lengths; None for others."""
    if "sharegpt" not in notes.lower() or "max concurrency" in notes:
        return None
    prompts = re.search(r"(\d+) prompts", notes)
    return float(prompts.group(1)) if prompts else 1000.0


def states_conditions(row: Row) -> bool:
    """Return whether the row states lengths and concurrency."""
    try:
        return all(
            number(row.get(key), key) is not None for key in ("input_tokens", "output_tokens", "concurrency")
        )
    except ApplianceError:
        return False
