"""Reads one row of a measurements file as a :class:`~appliance.planner.workload.Workload`.

Pure. :data:`COLUMNS` are the columns of ``catalog/measurements.csv``. ``python -m tools.measurements`` makes them
from a published table with free text; no text is interpreted here. A file needs only ``gpu``, ``model`` and
``output_tok_s``: other conditions are then the usual ones, and ``assumed`` lists them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from appliance.catalog.cards import Card, cards, find_card
from appliance.catalog.models import find_model, shipped_models
from appliance.catalog.names import normalise
from appliance.catalog.processors import Cpu, find_cpu
from appliance.catalog.shape import Attention, Moe, Shape
from appliance.contract.card_memory import GIB, USUAL_UTILIZATION
from appliance.errors import ApplianceError, UsageError
from appliance.planner import precision
from appliance.planner.drafts import DraftKind
from appliance.planner.layout import Layout, check_shards
from appliance.planner.memory import default_sequences
from appliance.planner.precision import Precision
from appliance.planner.workload import EngineKind, Mode, Workload

TODAY = "2026-11"
"""Month to which the calibrated constants refer; software of a later month counts as new."""

USUAL_LENGTHS = (256.0, 512.0)
USUAL_CONCURRENCY = 64.0
USUAL_OUTPUT = 512.0
OFFLINE_CONCURRENCY = 2048.0
"""Requests that TensorRT-LLM's offline benchmark keeps in flight (its default max batch size)."""

SGLANG_UTILIZATION = 0.88
"""Share of the card's memory for weights and KV cache: SGLang keeps more for its graphs and prefill chunks."""

COLUMNS = (
    "gpu",
    "gpu_count",
    "cpu",
    "ram_gb_s",
    "model",
    "dtype",
    "kv",
    "weights_gib",
    "engine",
    "engine_version",
    "date",
    "tp",
    "pp",
    "dp",
    "ep",
    "attention_dp",
    "mode",
    "input_tokens",
    "output_tokens",
    "uneven",
    "shared_prompt",
    "prefix_hit",
    "concurrency",
    "requests",
    "arrivals_s",
    "max_sequences",
    "speculation",
    "draft_tokens",
    "accepted",
    "cpu_layers",
    "gpu_experts",
    "gpu_layers",
    "ngl",
    "cpu_percent",
    "power_limit_w",
    "one_shot",
    "eager",
    "asynchronous",
    "output_tok_s",
    "total_tok_s",
    "ttft_ms",
    "tpot_ms",
    "assumed",
    "weight",
    "reason",
    "source",
    "origin",
)
"""Columns of a table of measurements. ``date`` is the month of the software, ``weight`` that of the row in the fit,
``origin`` the file and line of the published table."""

PREFIX_HIT = "prefix_hit"
"""Column of the share of the prompts in the prefix cache."""

MODES: Mapping[str, Mode] = {
    "served": "served",
    "burst": "burst",
    "offline": "offline",
    "decode": "decode",
    "prefill": "prefill",
}
DRAFTS: Mapping[str, DraftKind] = {"mtp": "mtp", "eagle": "eagle", "dflash": "dflash", "ngram": "ngram", "": ""}

Row = Mapping[str, str]


def parse_row(row: Row, known: dict[str, Shape] | None = None) -> Workload:
    """Return the workload of ``row``; :class:`UsageError`, one line, if the row is not understood.

    ``known`` are the models to search, the shipped ones if absent.
    """
    assumed = [text.strip() for text in (row.get("assumed") or "").split(";") if text.strip()]
    card = _card(row.get("gpu") or "")
    cpu = _cpu(row)
    shape = _shape(row.get("model") or "", known, assumed)
    engine = _engine(row.get("engine") or "", assumed)
    dtype = _precision(row, shape=shape, assumed=assumed)
    layout = _layout(row, engine)
    shape, layout = _fit(shape, layout, dtype)
    expert_share, bytes_share = _offload(row, card, cpu, shape=shape, dtype=dtype, layout=layout)
    mode = _mode(row, engine)
    prompt, response = _lengths(row, mode, assumed)
    if shape.max_context < prompt + response:
        shape = dataclasses.replace(shape, max_context=int(prompt + response) + 1)
    drafts, draft_tokens, accepted = _speculation(row)
    if cpu is None and (bytes_share or expert_share):
        cpu = find_cpu("generic desktop")
    limit = number(row.get("max_sequences"), "max_sequences")
    return Workload(
        card=card,
        shape=shape,
        precision=dtype,
        input=prompt,
        output=response,
        concurrency=_concurrency(row, mode, engine=engine, layout=layout, card=card, assumed=assumed),
        layout=layout,
        engine=engine,
        power_w=_power(row, card),
        one_shot=flag(row, "one_shot"),
        drafts=drafts,
        draft_tokens=draft_tokens,
        accepted=accepted,
        prefix_hit=number(row.get(PREFIX_HIT), PREFIX_HIT) or 0.0,
        cpu=cpu if expert_share or bytes_share else None,
        cpu_expert_share=expert_share,
        cpu_bytes_share=bytes_share,
        mode=mode,
        requests=number(row.get("requests"), "requests"),
        uneven=number(row.get("uneven"), "uneven") or 0.0,
        shared_prompt=flag(row, "shared_prompt"),
        eager=flag(row, "eager"),
        asynchronous=flag(row, "asynchronous"),
        years_old=years_old(row.get("date") or ""),
        utilization=SGLANG_UTILIZATION if engine == "sglang" else USUAL_UTILIZATION,
        max_sequences=int(limit) if limit else None,
        assumed=tuple(assumed),
    )


def truth_of(row: Row) -> float | None:
    """Return the measured rate of ``row`` in tok/s: of the prompt for a row of prefill, else of the output."""
    name = "total_tok_s" if (row.get("mode") or "") == "prefill" else "output_tok_s"
    return number(row.get(name), name) or None


def number(text: str | None, name: str) -> float | None:
    """Return a figure of a row, the upper end of a range; None for an empty field.

    Raises :class:`UsageError` for a field without a figure, and for a negative one.
    """
    if text is None or not text.strip():
        return None
    if re.match(r"\s*-\s*\d", text):
        raise UsageError(f"{name} = {text.strip()} is negative")
    figures = re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))
    if not figures:
        raise UsageError(f"{name} = {text!r} is not a number; leave it empty if it is not known")
    return float(figures[-1])


def flag(row: Row, name: str) -> bool:
    """Return whether a column is set."""
    return (row.get(name) or "").strip() not in {"", "0"}


def years_old(date: str) -> float:
    """Return the years from the month ``date`` (``2026-03``) to :data:`TODAY`; 0 without a date."""
    if not date.strip():
        return 0.0
    match = re.fullmatch(r"(20\d\d)-(\d\d)", date.strip())
    if match is None:
        raise UsageError(f"date = {date!r} is not a month; write it as 2026-03")
    year, month = (int(part) for part in TODAY.split("-"))
    return max(0.0, (year - int(match.group(1))) + (month - int(match.group(2))) / 12.0)


def _card(text: str) -> Card:
    """Return the card with whose name ``text`` begins (``H100 80GB HBM3``, ``4x RTX 5090 32GB``)."""
    if not text.strip():
        raise UsageError("gpu is empty; name the card")
    name = re.sub(r"^\s*(?:NVIDIA\s+)?\d+\s*[x*]\s*", "", text.split(" + ", maxsplit=1)[0])
    try:
        return find_card(name)
    except UsageError:
        plain = normalise(name)
        starts = {normalise(one): card for card in cards().values() for one in (card.name, *card.aliases)}
        fits = [start for start in starts if len(start) >= 4 and plain.startswith(start)]
        if not fits:
            raise
        return starts[max(fits, key=len)]


def _cpu(row: Row) -> Cpu | None:
    name = (row.get("cpu") or "").strip()
    rate = number(row.get("ram_gb_s"), "ram_gb_s")
    if not name:
        return dataclasses.replace(find_cpu("generic desktop"), memory_gb_s=rate) if rate else None
    cpu = find_cpu(name)
    return dataclasses.replace(cpu, memory_gb_s=rate) if rate else cpu


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
    hidden = max(1024, min(16384, round((base / 20) ** (1 / 3) / 1024) * 1024))
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


def _precision(row: Row, *, shape: Shape, assumed: list[str]) -> Precision:
    text = row.get("dtype") or ""
    if not text.strip() and "precision" not in assumed:
        assumed.append(f"precision not stated: taken as {shape.native}")
    try:
        dtype = precision.parse(text or shape.native, row.get("kv") or None)
    except UsageError:
        bits = re.search(r"(?<!\d)([48])[- ]?bit", text, re.IGNORECASE)
        if bits is None:
            raise
        dtype = precision.parse({"4": "awq-int4", "8": "fp8"}[bits.group(1)], row.get("kv") or None)
        assumed.append(f"{text}: taken as {dtype.name}")
    size = number(row.get("weights_gib"), "weights_gib")
    if size:
        # A file's own size is more exact than the usual bits per weight of its format.
        each = size * GIB / shape.total_params
        dtype = precision.uniform(dtype.name, dtype.units, each=each, kv_bytes=dtype.kv_bytes)
    return dtype


def _layout(row: Row, engine: EngineKind) -> Layout:
    cards_of_row = int(number(row.get("gpu_count"), "gpu_count") or 1)
    if not 1 <= cards_of_row <= 4096:
        raise UsageError(
            f"gpu_count = {cards_of_row} is out of range; nearest valid value: {min(max(cards_of_row, 1), 4096)}"
        )
    tp = int(number(row.get("tp"), "tp") or 0)
    replicas = int(number(row.get("dp"), "dp") or 1)
    if not tp:
        tp = 1 if engine == "llamacpp" else max(1, cards_of_row // replicas)
    pp = int(number(row.get("pp"), "pp") or max(1, cards_of_row // (tp * replicas)))
    dep = flag(row, "attention_dp") and tp > 1
    return Layout(tp=tp, pp=pp, replicas=max(1, replicas), ep=(flag(row, "ep") and tp > 1) or dep, attention_dp=dep)


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
    row: Row, card: Card, cpu: Cpu | None, *, shape: Shape, dtype: Precision, layout: Layout
) -> tuple[float, float]:
    """Return the share of experts, and the share of all weights, in RAM."""
    ngl = number(row.get("ngl"), "ngl")
    if ngl is not None:
        return 0.0, max(0.0, 1.0 - ngl / (shape.layers + 1))
    percent = number(row.get("cpu_percent"), "cpu_percent")
    if percent is not None:
        return 0.0, min(1.0, percent / 100)
    count = number(row.get("cpu_layers"), "cpu_layers")
    if shape.moe is None or (cpu is None and count is None):
        return 0.0, 0.0
    share = None
    if count is not None:
        share = count / max(1, shape.moe_layers)
    elif row.get("gpu_experts"):
        part, whole = row["gpu_experts"].split(" of ")
        share = 1.0 - float(part) / float(whole)
    elif row.get("gpu_layers"):
        first, last = row["gpu_layers"].split("-")
        share = 1.0 - (int(last) - int(first) + 1) / shape.layers
    if share is not None:
        return min(1.0, max(0.0, share)), 0.0
    parts = precision.weights(shape, dtype)
    free = 0.85 * card.memory_bytes * layout.cards_per_replica - parts.dense
    return min(1.0, max(0.0, 1.0 - free / parts.experts)), 0.0


def _mode(row: Row, engine: EngineKind) -> Mode:
    text = (row.get("mode") or "").strip()
    if not text:
        stated = bool((row.get("output_tokens") or "").strip())
        decode = engine == "llamacpp" or (bool((row.get("input_tokens") or "").strip()) and not stated)
        return "decode" if decode else "served"
    if text not in MODES:
        raise UsageError(f"mode = {text!r} is not one of {', '.join(MODES)}")
    return MODES[text]


def _lengths(row: Row, mode: Mode, assumed: list[str]) -> tuple[float, float]:
    """Return the tokens of prompt and response."""
    prompt = number(row.get("input_tokens"), "input_tokens")
    response = number(row.get("output_tokens"), "output_tokens")
    if mode == "prefill":
        if prompt is None:
            assumed.append("prompt of 4096 tokens")
        return prompt or 4096.0, 1.0
    if response is None and prompt is not None:
        return prompt, USUAL_OUTPUT
    if prompt is None:
        assumed.append("lengths not stated: 256 in, 512 out")
        prompt = USUAL_LENGTHS[0]
        response = response if response is not None else USUAL_LENGTHS[1]
    return prompt, max(1.0, response or 1.0)


def _concurrency(
    row: Row, mode: Mode, *, engine: EngineKind, layout: Layout, card: Card, assumed: list[str]
) -> float:
    stated = number(row.get("concurrency"), "concurrency")
    if stated is not None:
        return stated
    if engine == "llamacpp":
        return 1.0
    if mode == "offline":
        return OFFLINE_CONCURRENCY * layout.replicas * (layout.tp if layout.attention_dp else 1)
    requests = number(row.get("requests"), "requests")
    if requests is not None:
        assumed.append("all prompts at once")
        return min(requests, float(default_sequences(card) * layout.replicas * layout.cards_per_replica))
    assumed.append(f"concurrency not stated: {USUAL_CONCURRENCY:.0f}")
    return USUAL_CONCURRENCY


def _power(row: Row, card: Card) -> float | None:
    watts = number(row.get("power_limit_w"), "power_limit_w")
    return None if watts is None else min(watts, card.tdp_w)


def _speculation(row: Row) -> tuple[DraftKind, int, float | None]:
    """Return the method, the tokens drafted per step, and the tokens that a step yields (None: as usual)."""
    name = (row.get("speculation") or "").strip()
    if name not in DRAFTS:
        raise UsageError(f"speculation = {name!r} is not one of {', '.join(filter(None, DRAFTS))}")
    count = int(number(row.get("draft_tokens"), "draft_tokens") or 0)
    accepted = number(row.get("accepted"), "accepted")
    if not count:
        return "", 0, 1.0
    return DRAFTS[name] or "mtp", count, accepted


def states_conditions(row: Row) -> bool:
    """Return whether the row states lengths and concurrency."""
    try:
        return all(
            number(row.get(key), key) is not None for key in ("input_tokens", "output_tokens", "concurrency")
        )
    except ApplianceError:
        return False
