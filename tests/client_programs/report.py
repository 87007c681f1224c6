"""The report of the client programs: a row for each step of each client. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "failed", "not run"]

LONGEST_DETAIL = 160
"""Characters of a detail; the rest is cut."""


@dataclass(frozen=True)
class ClientStep:
    """One action of a client, and its result."""

    client: str
    version: str
    step: str
    verdict: Verdict
    detail: str = ""


def report_text(steps: Sequence[ClientStep], engine: str) -> str:
    """Return the report as Markdown; the output depends on its arguments only."""
    counts = ", ".join(
        f"{sum(step.verdict == verdict for step in steps)} {verdict}" for verdict in ("ok", "failed", "not run")
    )
    lines = [
        "# Report of the client programs",
        "",
        "`make test-clients` writes this page. Each client has the settings of its page in this folder and a key",
        "of its own. A step is `ok` if the client reports success and the usage of its key has the request.",
        "",
        f"Engine: {engine}. Steps: {counts}.",
        "",
        "| client | version | step | result | detail |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.client} | {one.version} | {one.step} | {one.verdict} | {_cell(one.detail)} |" for one in steps
    ]
    return "\n".join(lines) + "\n"


def failed(steps: Sequence[ClientStep]) -> bool:
    """Return whether a step failed. A client that cannot run here is not a failure."""
    return any(step.verdict == "failed" for step in steps)


def _cell(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= LONGEST_DETAIL else line[: LONGEST_DETAIL - 1] + "…"
