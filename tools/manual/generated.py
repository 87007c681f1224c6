"""The generated pages of the manual: commands, errors, checks and alerts, versions, figures; in both languages.

Headings and introductions have a text in each language. Cells that the code supplies (help texts, names, messages)
are the same in both. Two pages of a language therefore have the same tables.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance import cli, errors
from appliance.doctor.runner import CHECKS
from appliance.errors import EngineReportedError, RequestError
from appliance.watch import alerts
from tools.manual import drawings, pages, tables
from tools.manual.predictions import CARD, MODELS, interval, predict, rounded

BATCHES = (1, 8, 32, 64)
CONTEXTS = (1024, 8192, 32768)
WATTS = (250, 300, 350, 400, 450, 500, 600)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of the generated pages in one language."""

    commands: str
    commands_lead: str
    command: str
    option: str
    purpose: str
    errors: str
    errors_lead: str
    meaning: str
    status: str
    code: str
    checks: str
    checks_lead: str
    check: str
    inspects: str
    fix: str
    alerts: str
    alert: str
    severity: str
    means: str
    versions: str
    versions_lead: str
    part: str
    version: str
    programs: str
    figures: str
    figures_lead: str
    batch: str
    context: str
    power: str
    request_rate: str
    interval: str
    ttft: str
    tpot: str
    limit: str
    model: str
    gateway: str
    gateway_lead: str
    proxy: str
    rate: str
    added: str
    memory: str


ENGLISH = Words(
    commands="Commands",
    commands_lead="Each command with its actions and options, from the parsers of the program.",
    command="command",
    option="option",
    purpose="purpose",
    errors="Error codes",
    errors_lead="The codes of the gateway's and the assistant's errors, from `appliance/errors.py`. "
    "[The gateway's page](../../gateway.md) has further codes of single requests.",
    meaning="meaning",
    status="status",
    code="code",
    checks="Checks and alerts",
    checks_lead="From the code of the doctor and of the alerts. "
    "[The doctor's page](../../doctor.md) has fault domains and causes, [the runbook](../../runbook.md) has each "
    "alert with its command and its rule.",
    check="check",
    inspects="inspects",
    fix="fix",
    alerts="Alerts",
    alert="alert",
    severity="severity",
    means="meaning",
    versions="Tested versions",
    versions_lead="From the pins and the locks of the repository.",
    part="part",
    version="version",
    programs="Client programs",
    figures="Predicted figures",
    figures_lead="The planner's predictions for one card, rounded to two digits, each from "
    "`appliance plan predict`. The interval holds 80 % of comparable public measurements. "
    "Your machine differs: measure it.",
    batch="Batch and throughput",
    context="Context and latency",
    power="Power and speed",
    request_rate="output, tok/s",
    interval="80 % interval",
    ttft="TTFT, ms",
    tpot="ms per token",
    limit="limited by",
    model="model",
    gateway="The gateway against other proxies",
    gateway_lead="Measured by `make bench` on two cores with a mock engine; "
    "[the page](../../../benchmarks/gateway/README.md) has the conditions. Medians over the rounds; "
    "TTFT of 100 streams, of LiteLLM with 8 streams.",
    proxy="proxy",
    rate="plain requests/s on one core",
    added="TTFT p50 / p99, ms",
    memory="memory at that load, MB",
)
RUSSIAN = Words(
    commands="Команды",
    commands_lead="Все команды с действиями и параметрами, прямо из парсеров программы. Тексты справки — "
    "английские, как их печатает сама программа.",
    command="команда",
    option="параметр",
    purpose="назначение",
    errors="Коды ошибок",
    errors_lead="Коды ошибок шлюза и ассистента из `appliance/errors.py`; пояснения взяты из кода. "
    "На [странице шлюза](../../gateway.md) есть и коды отдельных запросов.",
    meaning="значение",
    status="статус",
    code="код",
    checks="Проверки и алерты",
    checks_lead="Из кода доктора и таблицы алертов. "
    "На [странице доктора](../../doctor.md) — области отказа и причины, в [ранбуке](../../runbook.md) — "
    "каждый алерт с командой и правилом.",
    check="проверка",
    inspects="что смотрит",
    fix="исправление",
    alerts="Алерты",
    alert="алерт",
    severity="важность",
    means="значение",
    versions="Проверенные версии",
    versions_lead="Из закреплённых версий и lock-файлов репозитория.",
    part="часть",
    version="версия",
    programs="Клиентские программы",
    figures="Расчётные показатели",
    figures_lead="Прогноз планировщика для одной карты, округлённый до двух цифр; каждую строку даёт "
    "`appliance plan predict`. В интервал попадают 80 % сопоставимых публичных измерений. Ваша машина отличается: "
    "измерьте её.",
    batch="Батч и пропускная способность",
    context="Контекст и задержка",
    power="Мощность и скорость",
    request_rate="выход, ток/с",
    interval="интервал 80 %",
    ttft="TTFT, мс",
    tpot="мс на токен",
    limit="чем ограничено",
    model="модель",
    gateway="Шлюз и другие прокси",
    gateway_lead="Измерено `make bench` на двух ядрах с движком-имитацией; условия — на "
    "[странице бенчмарка](../../../benchmarks/gateway/README.md). Медианы по раундам; "
    "TTFT при 100 стримах, у LiteLLM при 8.",
    proxy="прокси",
    rate="простых запросов/с на одном ядре",
    added="TTFT p50 / p99, мс",
    memory="память при этом, МБ",
)
WORDS: Mapping[str, Words] = {"en": ENGLISH, "ru": RUSSIAN}


def files() -> dict[Path, str]:
    """Return every generated file below `docs/manual` with its content."""
    made: dict[Path, str] = {}
    figures = measure()
    for language, words in WORDS.items():
        folder = pages.SOURCE / language
        made[folder / "ref-commands.md"] = commands(words)
        made[folder / "ref-checks.md"] = checks(words)
        made[folder / "ref-errors.md"] = error_codes(words)
        made[folder / "ref-versions.md"] = versions(words)
        made[folder / "ref-figures.md"] = figures_page(words, figures)
        for name in pages.names(language):
            text = (folder / name).read_text(encoding="utf-8")
            if tables.MARK.search(text):
                made[folder / name] = tables.filled(text, language)
        for name, drawing in drawings.load().items():
            made[pages.SOURCE / "img" / f"{name}-{language}.svg"] = drawings.draw(drawing, language)
    return made


def stale() -> list[str]:
    """Return the generated files that differ from their source, as paths in the repository."""
    return [
        str(path.relative_to(pages.ROOT))
        for path, text in files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def commands(words: Words) -> str:
    """Return the page of the commands."""
    lines = [f"# {words.commands}", "", words.commands_lead, ""]
    for group in cli.GROUPS.values():
        for command in group:
            lines += [f"## appliance {command.name}", "", f"{command.help[0].upper()}{command.help[1:]}.", ""]
            rows = [
                row
                for parser, purpose in _parsers(cli.command_parser(command.name), "")
                for row in _rows(parser, purpose)
            ]
            if rows:
                lines += [*_table((words.command, words.option, words.purpose), rows), ""]
    return _ended(lines)


def _parsers(parser: argparse.ArgumentParser, purpose: str) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    yield parser, purpose
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, child in action.choices.items():
                yield from _parsers(child, helps.get(name, ""))


def _rows(parser: argparse.ArgumentParser, purpose: str) -> Iterator[tuple[str, ...]]:
    name = f"`{parser.prog}`"
    if purpose:
        yield name, "", purpose
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        value = _value(action)
        option = " ".join(filter(None, (", ".join(action.option_strings), value))) or action.dest
        help_text = str(action.help or "") % {**vars(action), "prog": parser.prog}
        yield name, f"`{option}`", help_text


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.metavar is not None:
        return " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


def error_codes(words: Words) -> str:
    """Return the page of the error codes."""
    rows = sorted(
        {
            (str(kind.status), f"`{kind.code}`", _first_line(kind))
            for _, kind in inspect.getmembers(errors, inspect.isclass)
            if issubclass(kind, RequestError) and kind not in {RequestError, EngineReportedError}
        }
    )
    return _ended(
        [
            f"# {words.errors}",
            "",
            words.errors_lead,
            "",
            *_table((words.status, words.code, words.meaning), rows),
        ]
    )


def _first_line(kind: type) -> str:
    line = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r"^\d{3}: ", "", line).replace("``", "`")


def checks(words: Words) -> str:
    """Return the page of the doctor's checks and of the alerts."""
    rules = [rule for group in alerts.rules()["groups"] for rule in group["rules"] if "alert" in rule]
    return _ended(
        [
            f"# {words.checks}",
            "",
            words.checks_lead,
            "",
            "## appliance doctor",
            "",
            *_table((words.check, words.inspects, words.fix), [(f"`{c.name}`", c.looks, c.fix) for c in CHECKS]),
            "",
            f"## {words.alerts}",
            "",
            *_table(
                (words.alert, words.severity, words.means),
                [
                    (
                        f"[{rule['alert']}](../../runbook.md#{rule['alert'].lower()})",
                        rule["labels"]["severity"],
                        tables.plain(rule["annotations"]["summary"]),
                    )
                    for rule in rules
                ],
            ),
        ]
    )


def versions(words: Words) -> str:
    """Return the page of the tested versions: pins, wheels, Python packages, client programs."""
    pins = (pages.ROOT / "modules/pins.nix").read_text(encoding="utf-8")
    nixpkgs = json.loads((pages.ROOT / "flake.lock").read_text())["nodes"]["nixpkgs"]
    wheels = {
        wheel["name"]: wheel["version"] for wheel in json.loads((pages.ROOT / "modules/wheels.json").read_text())
    }
    default = re.search(r'default = "([\d.]+)";', pins)
    drivers = re.findall(r'^    "([\d.]+)" = \{', pins, re.MULTILINE)
    rows = [
        ("NixOS", f"{nixpkgs['original'].get('ref', '')} ({nixpkgs['locked']['rev'][:12]})"),
        ("NVIDIA driver", ", ".join(f"{d} (default)" if default and d == default[1] else d for d in drivers)),
        *((name, wheels[name]) for name in ("vllm", "torch", "transformers", "flashinfer-python", "triton")),
        *_locked(("fastapi", "uvicorn", "pydantic", "sqlalchemy", "aiogram")),
    ]
    table = (pages.ROOT / "docs/clients.md").read_text(encoding="utf-8").split("| client | version |")[1]
    programs = [
        (cells[0], cells[1])
        for line in table.splitlines()[2:]
        if line.startswith("|") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) > 4
    ]
    return _ended(
        [
            f"# {words.versions}",
            "",
            words.versions_lead,
            "",
            *_table((words.part, words.version), rows),
            "",
            f"## {words.programs}",
            "",
            *_table((words.part, words.version), programs),
        ]
    )


def _locked(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    lock = (pages.ROOT / "requirements/appliance.lock").read_text(encoding="utf-8")
    for name in names:
        match = re.search(rf"^{name}==(\S+)", lock, re.MULTILINE)
        if match is not None:
            yield name, match.group(1)


def measure() -> dict[str, list[tuple[str, ...]]]:
    """Return the rows of the three tables of figures, from `appliance plan predict`."""
    found: dict[str, list[tuple[str, ...]]] = {"batch": [], "context": [], "power": []}
    for model in MODELS:
        short = model.split("/")[1]
        for batch in BATCHES:
            row = predict(model, concurrency=batch)
            found["batch"].append((short, str(batch), *_rate(row), rounded(row["tpot_ms"]), row["limit"]))
        for context in CONTEXTS:
            row = predict(model, concurrency=1, input=context, output=256)
            found["context"].append((short, str(context), rounded(row["ttft_ms"]), rounded(row["tpot_ms"])))
        for watts in WATTS:
            row = predict(model, concurrency=32, power=watts)
            found["power"].append((short, str(watts), *_rate(row), row["limit"]))
    return found


def _rate(row: dict[str, Any]) -> tuple[str, str]:
    return rounded(row["output_tok_s"]), interval(row)


def figures_page(words: Words, rows: Mapping[str, Sequence[tuple[str, ...]]]) -> str:
    """Return the page of the figures."""
    return _ended(
        [
            f"# {words.figures}",
            "",
            words.figures_lead,
            "",
            f"## {words.batch}",
            "",
            "```console",
            f'$ appliance plan predict --card "{CARD}" --model {MODELS[0]} --concurrency 32',
            "```",
            "",
            *_table(
                (words.model, "--concurrency", words.request_rate, words.interval, words.tpot, words.limit),
                rows["batch"],
            ),
            "",
            f"## {words.context}",
            "",
            "```console",
            f'$ appliance plan predict --card "{CARD}" --model {MODELS[0]} --input 8192 --output 256',
            "```",
            "",
            *_table((words.model, "--input", words.ttft, words.tpot), rows["context"]),
            "",
            f"## {words.power}",
            "",
            "```console",
            f'$ appliance plan predict --card "{CARD}" --model {MODELS[0]} --concurrency 32 --power 450',
            "```",
            "",
            *_table((words.model, "--power", words.request_rate, words.interval, words.limit), rows["power"]),
            "",
            f"## {words.gateway}",
            "",
            words.gateway_lead,
            "",
            *_table((words.proxy, words.version, words.rate, words.added, words.memory), _proxies()),
        ]
    )


def _proxies() -> list[tuple[str, ...]]:
    """Return the rows of the benchmark of the gateway, from its last results."""
    results = json.loads((pages.ROOT / "benchmarks/gateway/results.json").read_text())
    return [
        (
            name,
            subject["version"] or "-",
            _median(subject, "plain", lambda run: run["requests_per_s"], 0),
            f"{_median(subject, 'ttft', _p50, 1)} / {_median(subject, 'ttft', _p99, 1)}",
            _median(subject, "plain", lambda run: run["pss_mb"], 0) if subject["version"] else "-",
        )
        for name, subject in results["subjects"].items()
    ]


def _p50(run: Mapping[str, Any]) -> float:
    return float(run["ttft_ms"]["p50"])


def _p99(run: Mapping[str, Any]) -> float:
    return float(run["ttft_ms"]["p99"])


def _median(subject: Mapping[str, Any], measure: str, value: Callable[[Any], float], digits: int) -> str:
    runs = subject["measures"].get(measure)
    return f"{statistics.median(map(value, runs)):,.{digits}f}" if runs else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return tables.markdown(head, rows).splitlines()


def _ended(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"
