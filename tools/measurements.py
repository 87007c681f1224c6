"""Imports published measurements into the planner's table: ``python -m tools.measurements FILE… --write TABLE``.

A published table has free text in its columns ``notes``, ``gpu`` and ``dtype``. This importer turns that text into
columns once; the planner reads columns only. Doubtful rows get a weight below 1 and its reason. Impossible rows are
reported by line and skipped. Without arguments the tool writes ``appliance/catalog/measurements.csv``.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from appliance.catalog.shipped import MEASUREMENTS
from appliance.errors import ApplianceError, UsageError
from appliance.planner.impossible import reject_impossible
from appliance.planner.row_parser import COLUMNS, number

PUBLISHED = Path(__file__).parents[1] / "benchmarks" / "planner" / "published"

RELEASES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "vllm": (
        ("0.8", "2025-04"),
        ("0.9", "2025-06"),
        ("0.10", "2025-08"),
        ("0.11", "2025-10"),
        ("0.12", "2025-12"),
        ("0.13", "2025-12"),
        ("0.14", "2026-01"),
        ("0.15", "2026-02"),
        ("0.16", "2026-02"),
        ("0.17", "2026-03"),
        ("0.18", "2026-03"),
        ("0.19", "2026-04"),
        ("0.20", "2026-04"),
        ("0.21", "2026-05"),
        ("0.22", "2026-06"),
        ("0.23", "2026-06"),
        ("0.24", "2026-07"),
        ("0.25", "2026-07"),
        ("0.26", "2026-08"),
        ("0.27", "2026-08"),
        ("0.28", "2026-09"),
        ("0.29", "2026-09"),
        ("0.30", "2026-10"),
        ("0.31", "2026-10"),
        ("0.32", "2026-11"),
        ("0.33", "2026-11"),
        ("26.01", "2025-11"),
    ),
    "sglang": (
        ("0.5.2", "2025-09"),
        ("0.5.3", "2025-10"),
        ("0.5.4", "2025-11"),
        ("0.5.5", "2025-11"),
        ("0.5.6", "2025-12"),
        ("0.5.7", "2026-01"),
        ("0.5.8", "2026-01"),
        ("0.5.9", "2026-02"),
        ("0.5.10", "2026-04"),
        ("0.5.11", "2026-05"),
        ("0.5.12", "2026-05"),
        ("0.5.13", "2026-06"),
        ("0.5.14", "2026-06"),
        ("0.5.15", "2026-07"),
        ("0.5.16", "2026-08"),
    ),
    "tensorrt-llm": (("1.0", "2025-09"), ("1.1", "2025-11"), ("1.2", "2025-11")),
}
"""Month of a version's release by the start of the version; the longest start counts. NVIDIA's container 26.01 has
vLLM 0.11.1 (its release notes)."""

LLAMA_BUILDS = ((6000, "2025-07"), (7000, "2025-11"), (8000, "2026-02"), (9000, "2026-05"), (10300, "2026-08"))
"""First build of llama.cpp after which a month began."""

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

FIRST_SEEN: tuple[tuple[str, str], ...] = (
    ("qwen3.8", "2026-09"),
    ("qwen3.6", "2026-05"),
    ("deepseek-v4", "2026-06"),
    ("gemma-4", "2026-04"),
    ("qwen3.5", "2026-03"),
    ("minimax-m2.5", "2026-03"),
    ("glm-5", "2026-03"),
    ("kimi-k2.5", "2026-02"),
    ("glm-4.7", "2026-02"),
    ("nemotron-3", "2025-12"),
    ("qwen3-coder-next", "2026-03"),
    ("qwen3-next", "2025-10"),
    ("glm-4", "2025-11"),
    ("gpt-oss", "2025-10"),
    ("qwen3-vl", "2025-11"),
    ("2507", "2025-10"),
    ("coder", "2025-10"),
)
"""Month to assume for a row without a version or a date, by the start of its model's name."""

SOURCE_DATES: tuple[tuple[str, str], ...] = (
    ("NVIDIA/TensorRT-LLM", "2025-10"),
    ("rtx6kpro", "2026-03"),
    ("millstoneai", "2026-01"),
    ("sglang-rtx-pro-6000", "2026-04"),
    ("blackwell-gpu-shootout", "2026-01"),
    ("silybench", "2026-10"),
)

BAD_ROWS: tuple[tuple[str, str, str, str, float, str], ...] = (
    ("gpustack", "SGLang", "gpt-oss", "A100", 0.02, "gpt-oss did not run properly: vLLM is ten times faster"),
    ("sgl-cookbook", "SGLang", "Kimi-K2.5", "H200", 0.1, "less throughput at 100 requests than at 16"),
)
"""Parts of source, engine, model and card of rows that their neighbours contradict, with weight and reason."""

INFERABLE = ("requests", "prefix_hit", "input_tokens", "output_tokens")
"""Columns that ``inferred.toml`` may fill."""

Raw = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that was not imported, with the reason."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: skipped: {self.reason}"


def import_rows(rows: Sequence[Raw], file: str) -> tuple[list[dict[str, str]], list[SkippedRow]]:
    """Return the normalised rows of a published table, and the rows that are impossible."""
    kept, skipped = [], []
    for line, row in enumerate(rows, 2):
        try:
            found = normalise_row(row)
            reject_impossible(found)
            kept.append({**found, "origin": f"{file}:{line}"})
        except ApplianceError as error:
            skipped.append(SkippedRow(file, line, str(error)))
    return kept, skipped


def normalise_row(row: Raw) -> dict[str, str]:
    """Return the columns of :data:`~appliance.planner.row_parser.COLUMNS` for a published row."""
    notes = row.get("notes") or ""
    text = f"{row.get('dtype') or ''}; {notes}"
    assumed: list[str] = []
    gpu, cpu = _machine(row.get("gpu") or "", text, assumed)
    engine = _engine(row.get("engine") or "", assumed)
    found = {
        "gpu": gpu,
        "cpu": cpu,
        "gpu_count": row.get("gpu_count") or "1",
        "model": re.sub(r"\s*\([^)]*\)", "", row.get("model") or "").strip(),
        "engine": engine,
        "engine_version": row.get("engine_version") or "",
        "power_limit_w": row.get("power_limit_w") or "",
        "ttft_ms": row.get("ttft_ms") or "",
        "tpot_ms": row.get("tpot_ms") or "",
        "output_tok_s": row.get("output_tok_s") or "",
        "total_tok_s": row.get("total_tok_s") or "",
        "source": row.get("source") or "",
        "one_shot": "1" if re.search(r"one-?shot[\w -]* ON|b12x", text) else "",
        "eager": "1" if "enforce-eager" in notes else "",
        "asynchronous": "1" if "--async-scheduling" in notes else "",
    }
    found |= _date(row, engine, notes, assumed)
    found |= _dtype(row, text, assumed)
    found |= _layout(row, notes, engine)
    found |= _offload(text)
    found |= _speculation(notes, assumed)
    found |= _load(row, notes, engine, assumed)
    found |= _weight(row, text, assumed)
    found |= _inferred(row, found)
    if not found["output_tok_s"] and found["mode"] != "prefill":
        found |= _output_of_total(found)
    found["assumed"] = "; ".join(assumed)
    return {name: found.get(name, "") for name in COLUMNS}


def _machine(text: str, words: str, assumed: list[str]) -> tuple[str, str]:
    """Return the card and the processor of the column ``gpu``."""
    parts = [part.strip() for part in re.sub(r"\([^)]*\)", "", text).split(" + ") if part.strip()]
    if not parts:
        raise UsageError("gpu is empty")
    gpu = re.sub(r"^\s*\d+\s*[x*]\s*", "", parts[0])
    if gpu == "A100 80GB" and "300 W limit = PCIe card" in words:
        gpu = "A100 PCIe 80GB"
    if gpu.lower().startswith("any "):
        assumed.append(f"card not stated ({gpu})")
        gpu = "RTX 4060 Ti 16GB"
    if re.search(r"edition not \w+", words) or gpu == "RTX PRO 6000 Blackwell":
        assumed.append("edition of the card")
    cpu = parts[-1] if len(parts) > 1 else ""
    stated = re.search(r"card \+ ([\w-]+) ", words)
    if stated and not cpu:
        cpu = stated.group(1)
    return gpu, re.sub(r" DDR\d(?:-\d+)?$", "", cpu)


def _engine(text: str, assumed: list[str]) -> str:
    name = text.lower()
    for part, engine in (
        ("llama", "llamacpp"),
        ("tensorrt", "tensorrt-llm"),
        ("vllm", "vllm"),
        ("sglang", "sglang"),
    ):
        if part in name:
            return engine
    assumed.append("engine")
    return "vllm"


def _date(row: Raw, engine: str, notes: str, assumed: list[str]) -> dict[str, str]:
    """Return the month of the software: of the version, of the run, or of the model."""
    version = row.get("engine_version") or ""
    for text in (version, notes):
        day = re.search(r"(20\d\d)-(\d\d)", text)
        if day:
            return {"date": f"{day.group(1)}-{day.group(2)}"}
        month = re.search(rf"\b({'|'.join(MONTHS)})[a-z]* (20\d\d)", text, re.IGNORECASE)
        if month:
            return {"date": f"{month.group(2)}-{MONTHS.index(month.group(1).lower()) + 1:02d}"}
    plain = re.match(r"\d+(?:\.\d+)*", version)
    known = [
        (start, date)
        for start, date in RELEASES.get(engine, ())
        if plain and (plain.group(0) == start or plain.group(0).startswith(start + "."))
    ]
    if known:
        return {"date": max(known, key=lambda entry: len(entry[0]))[1]}
    build = re.match(r"b(\d+)$", version)
    if build:
        return {"date": [date for first, date in LLAMA_BUILDS if first <= int(build.group(1))][-1]}
    assumed.append("date of the software")
    for part, date in SOURCE_DATES:
        if part in (row.get("source") or ""):
            return {"date": date}
    model = (row.get("model") or "").lower()
    return {"date": next((date for part, date in FIRST_SEEN if part in model), "2025-09")}


def _dtype(row: Raw, text: str, assumed: list[str]) -> dict[str, str]:
    """Return precision, type of the KV cache and size of the weights file."""
    raw = row.get("dtype") or ""
    kv = re.search(r"\bkv[ _]?(fp8|bf16|int8|nvfp4|turboquant|q4_0|q8_0)", text, re.IGNORECASE)
    kinds = {"turboquant": "nvfp4", "q4_0": "nvfp4", "q8_0": "int8"}
    word = kv.group(1).lower() if kv else ""
    if not kv and "NVIDIA/TensorRT-LLM" in (row.get("source") or "") and re.match(r"(?:fp8|nvfp4)", raw):
        word = "fp8"  # NVIDIA's FP8 and NVFP4 checkpoints set kv_cache_quant_algo = FP8, those of others do not.
    plain = re.sub(r"\bkv[ _].*$", "", re.sub(r"\([^)]*\)", "", raw)).strip(" ,;")
    lower = plain.lower()
    gguf = re.search(r"(?:gguf-)?(?:ud-)?((?:i?q\d|tq\d)\w*)$", lower)
    dtype = plain
    if "mxfp4" in raw:
        dtype = "mxfp4"
    elif lower.startswith("gguf-nvfp4"):
        dtype = "Q4_0"
    elif gguf:
        dtype = gguf.group(1).upper()
    elif re.match(r"int4|4-?bit|w4a", lower):
        dtype = "awq-int4"
    elif re.match(r"w8a8|int8|8-?bit", lower):
        dtype = "int8"
    elif lower.startswith("native"):
        dtype = "fp4-experts"
    elif not lower:
        assumed.append("precision")
    if "marlin" in text.lower() and dtype == "nvfp4":
        dtype = "nvfp4-w4a16"
    if "NVFP4 experts run as W4A16" in text:
        dtype = "nvfp4-w4a16"
    size = re.search(r"(\d+(?:\.\d+)?) ?GiB", f"{raw} " + " ".join(re.findall(r"GGUF [\d.]+ GiB", text)))
    return {"dtype": dtype, "kv": kinds.get(word, word), "weights_gib": size.group(1) if size else ""}


def _layout(row: Raw, notes: str, engine: str) -> dict[str, str]:
    cards = int(number(row.get("gpu_count"), "gpu_count") or 1)
    stated = re.search(r"layout (D?EP|TE?P)(\d+)(?:, ?PP(\d+))?", notes)
    if stated:
        tp, pp = int(stated.group(2)), int(stated.group(3) or 1)
        dep = stated.group(1) == "DEP"
        return {
            "tp": str(tp),
            "pp": str(pp),
            "dp": str(max(1, cards // (tp * pp))),
            "ep": "1" if dep or stated.group(1) == "TEP" else "",
            "attention_dp": "1" if dep and tp > 1 else "",
        }
    tp = int(number(row.get("tp"), "tp") or 0)
    replicas = int(number(row.get("dp"), "dp") or 1)
    split = re.search(r"tensor split over (\d+)", notes)
    if engine == "llamacpp":
        tp, replicas = (int(split.group(1)) if split else 1), 1
    tp = tp or max(1, cards // replicas)
    pipeline = re.search(r"\b(?:pp ?= ?|PP)(\d+)\b", notes)
    pp = int(pipeline.group(1)) if pipeline else max(1, cards // (tp * replicas))
    if pp > 1 and tp * pp * replicas > cards:
        tp = max(1, cards // (pp * replicas))
    ep = re.search(r"enable-expert-parallel|expert parallel|\+ ?EP\b|\bEP\d", notes) and tp > 1
    dep = re.search(r"\bDEP|dp-attention|attention DP", notes)
    return {
        "tp": str(tp),
        "pp": str(pp),
        "dp": str(replicas),
        "ep": "1" if ep else "",
        "attention_dp": "1" if dep and tp > 1 else "",
    }


def _offload(text: str) -> dict[str, str]:
    """Return the placement of experts and of weights in RAM, as the source states it."""
    found = {}
    for name, pattern in (
        ("cpu_layers", r"n-cpu-moe[ =](\d+)"),
        ("gpu_experts", r"(\d+ of \d+) experts on GPU"),
        ("gpu_layers", r"layers (\d+-\d+) \w+ on GPU"),
        ("ngl", r"\bngl (\d+)"),
        ("cpu_percent", r"(\d+) ?% CPU"),
        ("ram_gb_s", r"~?(?:about )?(\d+) GB/s(?: RAM)?\)?"),
    ):
        match = re.search(pattern, text)
        if match:
            found[name] = match.group(1)
    if re.search(r"exps=CPU|experts on (?:the )?CPU", text) and not found.get("cpu_layers"):
        found["cpu_layers"] = "999"
    return found


def _speculation(notes: str, assumed: list[str]) -> dict[str, str]:
    """Return the method, the drafted tokens and the tokens per step of speculative decoding."""
    text = re.sub(r"\b(?:no|without) (?:MTP|spec\w*)[^;]*|MTP off|spec\w* off", "", notes, flags=re.IGNORECASE)
    kinds = (
        ("eagle", r"EAGLE3?\b(?!/MTP)"),
        ("mtp", r"\bMTP\d?\b|NEXTN"),
        ("dflash", r"DFlash|DSpark"),
        ("ngram", "ngram"),
    )
    method = next((name for name, pattern in kinds if re.search(pattern, text, re.IGNORECASE)), "")
    length = re.search(r"accept(?:ance)? length (\d+(?:\.\d+)?)", text)
    if not method and not length:
        return {}
    count = None
    for pattern in (
        r"num_speculative_tokens ?= ?(\d+)",
        r"(\d+) draft tokens?\b",
        r"(\d+) drafts",
        r"\b(?:n-max|ns=|n=|N=|NST=) ?(\d+)",
        r"\bMTP(\d)\b",
        r"\bMTP (\d)\b",
    ):
        match = re.search(pattern, text)
        if match:
            count = int(match.group(1))
            break
    if re.search(r"steps (\d+) draft tokens", text):
        steps = re.search(r"(\d+) steps", text)
        count = int(steps.group(1)) if steps else 3
    found = {"speculation": method or "mtp"}
    rate = re.search(r"acceptance (?:about )?(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))? ?(%?)", text)
    if length:
        accepted = float(length.group(1))
        drafts = count or max(1, round(accepted))
        return {**found, "draft_tokens": str(max(drafts, -int(-accepted // 1) - 1)), "accepted": f"{accepted:g}"}
    count = count or {"eagle": 3, "dflash": 7}.get(method, 2)
    found["draft_tokens"] = str(count)
    if rate:
        low = float(rate.group(1))
        share = (low + float(rate.group(2) or low)) / 2
        share = share / 100 if rate.group(3) or share > 1 else share
        found["accepted"] = f"{1 + count * share:.3g}"
    else:
        assumed.append("acceptance of drafts")
    return found


def _load(row: Raw, notes: str, engine: str, assumed: list[str]) -> dict[str, str]:
    """Return mode, lengths, concurrency and number of requests."""
    if re.search(r"PREFILL (?:ONLY|ALONE)", notes):
        return _prefill(row, notes)
    sharegpt = "sharegpt" in notes.lower()
    drawn = "draws shorter" in notes or "random range" in notes
    found = {"uneven": "1" if sharegpt else "0.4" if drawn else ""}
    if re.search(r"llm_decode_bench|decode tok/s .*at \d+k context", notes):
        found["shared_prompt"] = "1"
    limit = re.search(r"max-num-seqs (\d+)|max-running (\d+)", notes)
    if limit:
        found["max_sequences"] = limit.group(1) or limit.group(2)
    found |= _arrivals(row, notes, sharegpt=sharegpt, assumed=assumed)
    prompt, response = _stated_lengths(row, notes, engine)
    if found["mode"] == "served" and (_decode_rate(notes) or engine == "llamacpp"):
        found["mode"] = "decode"
    if found["mode"] == "served" and prompt and not response and not sharegpt:
        found["mode"] = "decode"
    if sharegpt and not prompt and not response:
        prompt, response = "217", "198"
        assumed.append("ShareGPT's mean lengths")
    if not prompt and re.search(r"short (?:prompts?|\w+s \(|text prompt|chat)|narrative prompt|probe\.py", notes):
        prompt = "64"
        if found["mode"] != "decode":
            assumed.append("short prompts: 64 tokens")
    if "about 50 output tokens" in notes and not response:
        response = "50"
    return {**found, "input_tokens": prompt, "output_tokens": response}


def _prefill(row: Raw, notes: str) -> dict[str, str]:
    """Return the load of a row that measures prompts only."""
    prompt = row.get("input_tokens") or ""
    at = re.search(r"prompt tok/s at (\d+)[Kk]\b", notes)
    if at and not prompt:
        prompt = str(int(at.group(1)) * 1024)
    running = row.get("concurrency") or "1"
    return {"mode": "prefill", "input_tokens": prompt, "output_tokens": "1", "concurrency": running}


def _arrivals(row: Raw, notes: str, *, sharegpt: bool, assumed: list[str]) -> dict[str, str]:
    """Return mode, concurrency and requests: a closed loop, all at once, at a rate, or offline."""
    running = row.get("concurrency") or ""
    found = {"mode": "served"}
    prompts = re.search(r"\b(\d+) (?:random )?(?:prompts|requests sent)", notes)
    if prompts and not re.search(r"prompts of", notes):
        found["requests"] = prompts.group(1)
    once = running.startswith("max") or re.search(r"request-rate inf|at inf rate|all submitted|sent at once", notes)
    if once or (sharegpt and not running):
        count = float(found.get("requests") or number(running, "concurrency") or 1000)
        found |= {"requests": f"{count:g}", "mode": "burst"}
        running = f"{count:g}" if running.startswith("max") or not running else running
    if "offline max load" in notes:
        found["mode"] = "offline"
        assumed.append("offline: as many requests as fit")
        running = ""
    rate = re.search(r"at (\d+) req/s", notes)
    if not running and rate:
        found["arrivals_s"] = rate.group(1)
        running = found.get("requests", "")
    return {**found, "concurrency": running}


def _decode_rate(notes: str) -> bool:
    """Return whether the rate is that of decoding only, without prompts."""
    words = re.sub(
        r"spec\w* decod\w+|decode steps only|pure decode|decode worker\w*|steady-state decode", "", notes
    )
    pattern = r"\bdecode\b|\b0[ -](?:context|ctx)|context tier|generation at|prefill excluded|\btg\d+"
    return re.search(pattern, words) is not None


def _stated_lengths(row: Raw, notes: str, engine: str) -> tuple[str, str]:
    """Return the tokens of prompt and response, with the depth that the notes state."""
    prompt, response = row.get("input_tokens") or "", row.get("output_tokens") or ""
    deep = re.search(r"N_KV=(\d+)", notes)
    at = re.search(r"@ ?(\d+)[Kk]\b", notes)
    bench = re.search(r"\btg\d+\b", notes) and "EAGLE" not in notes
    if engine == "llamacpp" and deep:
        prompt = deep.group(1)
    elif bench or (not prompt and re.search(r"\b0[ -](?:context|ctx)", notes)):
        prompt = "0"
    elif not prompt and at:
        prompt = str(int(at.group(1)) * 1024)
    for words, share in (("avg ~half", 0.5), ("mean about 0.9", 0.9)):
        if words in notes and prompt and response:
            prompt, response = f"{float(prompt) * share:g}", f"{float(response) * share:g}"
    return prompt, response


def _weight(row: Raw, text: str, assumed: list[str]) -> dict[str, str]:
    """Return the weight of a row in the fit and the reason for a weight below 1."""
    weight, reason = 1.0, ""
    for pattern, value, words in doubts():
        if value < weight and re.search(pattern, text):
            weight, reason = value, words
    for source, engine, model, card, value, words in BAD_ROWS:
        parts = ((source, "source"), (engine, "engine"), (model, "model"), (card, "gpu"))
        if value < weight and all(part in (row.get(column) or "") for part, column in parts):
            weight, reason = value, words
    if assumed and weight > 0.6:
        weight, reason = 0.6, "assumed: " + ", ".join(assumed)
    return {"weight": f"{weight:g}", "reason": reason}


@cache
def doubts() -> tuple[tuple[str, float, str], ...]:
    """Return the patterns of doubtful notes with the weight and the reason of each."""
    table = tomllib.loads((PUBLISHED / "doubts.toml").read_text("utf-8"))["doubts"]
    return tuple((entry["pattern"], float(entry["weight"]), entry["reason"]) for entry in table)


def _inferred(row: Raw, found: Raw) -> dict[str, str]:
    """Return the conditions of a row that its other figures or its sister rows determine."""
    columns: dict[str, str] = {}
    for entry in inferences():
        parts = {name: entry.get(name, "") for name in ("source", "engine", "model")}
        stated = all(found.get(name, "") in {"", entry[name]} for name in ("mode", "requests") if name in entry)
        run = all((row.get(name) or "") == value for name, value in entry.get("run", {}).items())
        if run and stated and all(part in (row.get(name) or "") for name, part in parts.items()):
            columns |= {name: value for name, value in entry.items() if name in INFERABLE}
    return columns


@cache
def inferences() -> tuple[dict[str, Any], ...]:
    """Return the entries of ``inferred.toml``."""
    return tuple(tomllib.loads((PUBLISHED / "inferred.toml").read_text("utf-8"))["inferred"])


def _output_of_total(found: Raw) -> dict[str, str]:
    """Return the output rate that follows from a total rate and the mean lengths."""
    total = number(found.get("total_tok_s"), "total_tok_s")
    prompt = number(found.get("input_tokens"), "input_tokens")
    response = number(found.get("output_tokens"), "output_tokens")
    if not total or prompt is None or not response:
        return {}
    return {"output_tok_s": f"{total * response / (prompt + response):.2f}"}


def read_published(path: Path) -> list[dict[str, str]]:
    """Return the rows of a published CSV."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]


def dump(rows: Sequence[Raw]) -> str:
    """Return the normalised table as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Import the given tables, or the published ones, and write one normalised table."""
    parser = argparse.ArgumentParser(prog="python -m tools.measurements", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, default=sorted(PUBLISHED.glob("*.csv")), metavar="FILE")
    parser.add_argument("--write", type=Path, default=MEASUREMENTS, metavar="TABLE", help="table to write")
    args = parser.parse_args(argv)
    kept: list[dict[str, str]] = []
    for path in args.files:
        rows, skipped = import_rows(read_published(path), path.stem)
        kept += rows
        for row in skipped:
            sys.stderr.write(f"{row}\n")
    args.write.write_text(dump(kept), "utf-8")
    sys.stdout.write(f"{len(kept)} rows in {args.write}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
