"""Generated tables inside the chapters, between the lines `<!-- table: NAME -->` and `<!-- end -->`.

A chapter explains figures that the planner or the alerts supply. The text is written by hand, the table is
filled by `python -m tools.manual`, so that both are on one page and the figures cannot go stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from appliance.catalog.processors import find_cpu
from appliance.watch import alerts
from tools.manual.predictions import MODELS, interval, predict, rounded

MARK = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
BATCHES = (1, 8, 32, 64, 128)
CONTEXTS = (1024, 4096, 8192, 16384, 32768)
WATTS = (250, 300, 350, 400, 450, 600)
RESPONSE = 256
"""Tokens of the response in the table of contexts."""

Row = tuple[str, ...]


def filled(text: str, language: str) -> str:
    """Return the page ``text`` with each marked table made anew; raises ``KeyError`` for an unknown name."""
    return MARK.sub(lambda match: match[1] + "\n" + TABLES[match[2]](language) + "\n\n" + match[4], text)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, *rows]
    cells = [
        "| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in line) + " |" for line in lines
    ]
    return "\n".join([cells[0], "|" + "---|" * len(head), *cells[1:]])


def _short(model: str) -> str:
    return model.split("/")[1]


def batch(language: str) -> str:
    """Return the table of batch and throughput."""
    head = {
        "en": ("model", "requests at once", "all together, tok/s", "80 % interval", "each user, tok/s", "TTFT, ms"),
        "ru": ("модель", "запросов сразу", "всего, ток/с", "интервал 80 %", "каждому, ток/с", "TTFT, мс"),
    }
    rows = []
    for model in MODELS:
        for size in BATCHES:
            row = predict(model, concurrency=size)
            each = rounded(1000 / row["tpot_ms"])
            total = rounded(row["output_tok_s"])
            rows.append((_short(model), str(size), total, interval(row), each, rounded(row["ttft_ms"])))
    return markdown(head[language], rows)


def context(language: str) -> str:
    """Return the table of context and latency."""
    head = {
        "en": ("model", "prompt, tokens", "TTFT alone, ms", "TTFT with 80 % cached, ms", "chats in the KV cache"),
        "ru": ("модель", "промпт, токенов", "TTFT в одиночку, мс", "TTFT, 80 % в кэше, мс", "чатов в KV-кэше"),
    }
    rows = []
    for model in MODELS:
        for tokens in CONTEXTS:
            cold = predict(model, input=tokens, output=RESPONSE)
            warm = predict(model, input=tokens, output=RESPONSE, prefix_hit=0.8)
            chats = cold["memory"]["kv_tokens"] // (tokens + RESPONSE)
            first, second = rounded(cold["ttft_ms"]), rounded(warm["ttft_ms"])
            rows.append((_short(model), str(tokens), first, second, rounded(chats)))
    return markdown(head[language], rows)


def power(language: str) -> str:
    """Return the table of power and speed, of the default model."""
    head = {
        "en": ("limit, W", "1 request, tok/s", "32 requests, tok/s", "TTFT of 8,192 tokens, ms"),
        "ru": ("предел, Вт", "1 запрос, ток/с", "32 запроса, ток/с", "TTFT на 8192 токена, мс"),
    }
    rows = []
    for watts in WATTS:
        alone, many = (predict(MODELS[0], concurrency=size, power=watts) for size in (1, 32))
        long = predict(MODELS[0], input=8192, output=RESPONSE, power=watts)
        speeds = (rounded(alone["output_tok_s"]), rounded(many["output_tok_s"]))
        rows.append((str(watts), *speeds, rounded(long["ttft_ms"])))
    return markdown(head[language], rows)


FP8, MTP = f"{MODELS[0]}:fp8", "Qwen/Qwen3.6-35B-A3B:fp8"
LEVERS: Mapping[str, tuple[Mapping[str, str], str, Mapping[str, float | str]]] = {
    "base": ({"en": "bf16, one card, 600 W", "ru": "bf16, одна карта, 600 Вт"}, MODELS[0], {}),
    "fp8": ({"en": "weights in FP8", "ru": "веса в FP8"}, FP8, {}),
    "kv": ({"en": "KV cache in FP8", "ru": "KV-кэш в FP8"}, MODELS[0], {"kv": "fp8"}),
    "memory": ({"en": "0.95 of the memory instead of 0.92", "ru": "0,95 памяти вместо 0,92"}, MODELS[0],
               {"utilization": 0.95}),
    "prefix": ({"en": "80 % of each prompt cached", "ru": "80 % промпта в кэше"}, MODELS[0], {"prefix_hit": 0.8}),
    "400": ({"en": "limit of 400 W", "ru": "предел 400 Вт"}, MODELS[0], {"power": 400}),
    "300": ({"en": "limit of 300 W", "ru": "предел 300 Вт"}, MODELS[0], {"power": 300}),
    "replicas": ({"en": "two cards, two replicas", "ru": "две карты, две реплики"}, MODELS[0], {"replicas": 2}),
    "tp": ({"en": "two cards, tensor parallel", "ru": "две карты, тензорный параллелизм"}, MODELS[0], {"tp": 2}),
    "other": ({"en": "Qwen3.6-35B-A3B in FP8", "ru": "Qwen3.6-35B-A3B в FP8"}, MTP, {}),
    "mtp": ({"en": "the same with MTP, 3 drafts", "ru": "она же с MTP, 3 черновика"}, MTP, {"draft": 3}),
}  # fmt: skip
"""Each lever: its name by language, the model, the options of the prediction."""


def levers(language: str) -> str:
    """Return the table of the levers: what each one gives for one request and for 64."""
    head = {
        "en": ("lever", "1 request, tok/s", "64 requests, tok/s", "each of 64, ms per token", "TTFT of 64, ms",
               "KV cache, thousand tokens"),
        "ru": ("рычаг", "1 запрос, ток/с", "64 запроса, ток/с", "каждый из 64, мс на токен", "TTFT из 64, мс",
               "KV-кэш, тысяч токенов"),
    }  # fmt: skip
    rows = []
    for names, model, options in LEVERS.values():
        alone, many = (predict(model, concurrency=size, **options) for size in (1, 64))
        copies = int(options.get("replicas", 1))
        kept = rounded(many["memory"]["kv_tokens"] * copies / 1000)
        figures = (alone["output_tok_s"], many["output_tok_s"], many["tpot_ms"], many["ttft_ms"])
        rows.append((names[language], *map(rounded, figures), kept))
    return markdown(head[language], rows)


GIANT = "Qwen/Qwen3-235B-A22B:Q4_K_M"
PROCESSORS = ("Ryzen 7950X", "Threadripper PRO 7995WX", "EPYC 9654", "EPYC 9355")
IN_RAM = 0.89
"""The share of the experts that `examples/planner-in-ram.toml` keeps in RAM: 84 of 94 layers."""


def giant(language: str) -> str:
    """Return the table of a model whose experts are in RAM, by the processor."""
    head = {
        "en": ("processor", "memory, GB/s", "tok/s, one request", "80 % interval"),
        "ru": ("процессор", "память, ГБ/с", "ток/с, один запрос", "интервал 80 %"),
    }
    rows = []
    for name in PROCESSORS:
        row = predict(GIANT, engine="llamacpp", cpu=name, cpu_experts=IN_RAM, output=512)
        memory = f"{find_cpu(name).memory_gb_s:g}"
        rows.append((name, memory, rounded(row["output_tok_s"]), interval(row)))
    return markdown(head[language], rows)


def urgent(language: str) -> str:
    """Return the table of the alerts that are sent at once."""
    head = {"en": ("alert", "meaning"), "ru": ("алерт", "значение")}
    rules = [rule for group in alerts.rules()["groups"] for rule in group["rules"]]
    rows = [
        (f"[{rule['alert']}](../../runbook.md#{rule['alert'].lower()})", plain(rule["annotations"]["summary"]))
        for rule in rules
        if rule.get("labels", {}).get("severity") == "page"
    ]
    return markdown(head[language], rows)


def groups(language: str) -> str:
    """Return the table of the groups of alerts, each with its alerts."""
    head = {"en": ("group", "alerts"), "ru": ("группа", "алерты")}
    rows = [
        (
            group["name"].removeprefix("appliance: "),
            ", ".join(f"`{rule['alert']}`" for rule in group["rules"] if "alert" in rule),
        )
        for group in alerts.rules()["groups"]
        if any("alert" in rule for rule in group["rules"])
    ]
    return markdown(head[language], rows)


def plain(text: str) -> str:
    """Return the summary of an alert with the names of its labels in place of their templates."""
    text = re.sub(r"{{\s*\$labels\.(\w+)\s*}}", lambda match: match.group(1).upper(), text)
    return re.sub(r"{{\s*\$value[^}]*}}", "N", text)


TABLES: Mapping[str, Callable[[str], str]] = {
    "batch": batch,
    "context": context,
    "power": power,
    "levers": levers,
    "giant": giant,
    "urgent": urgent,
    "groups": groups,
}
"""The tables by the name in their mark."""
