"""The dashboards: the rules of Grafana's linter. tests/watch/observe runs their queries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.watch import dashboards

BOARDS = dashboards.dashboards()
PANELS = [
    pytest.param(panel, id=f"{board['uid']}: {panel['title']}")
    for board in BOARDS
    for panel in board["panels"]
    if panel["type"] != "row"
]
UNITS = {"short", "s", "percentunit", "celsius", "watt", "bytes", "reqps"}
COUNTER = re.compile(r"\w_(total|bucket|count|sum)\b")
NOT_RATED = {"appliance_gpu_ecc_uncorrected_total"}
"""Counters whose value has a meaning: any error is one too many."""
FIXED_RANGE = re.compile(r"\[\d+[smhd]\]")


def findings(board: dict[str, Any]) -> Iterator[str]:
    """Yield the violations of a dashboard."""
    panels = board["panels"]
    ids = [panel["id"] for panel in panels]
    if len(set(ids)) != len(ids):
        yield "two panels have one id"
    titles = [panel["title"] for panel in panels if panel["type"] != "row"]
    yield from (f"two panels have the title {title}" for title in {t for t in titles if titles.count(t) > 1})
    if [one["name"] for one in board["templating"]["list"]] != ["datasource"]:
        yield "the data source is not a variable"
    cells = [cell for panel in panels for cell in _cells(panel["gridPos"])]
    if len(set(cells)) != len(cells):
        yield "panels overlap"
    if any(panel["gridPos"]["x"] + panel["gridPos"]["w"] > dashboards.COLUMNS for panel in panels):
        yield "a panel is beyond the grid"


def panel_findings(panel: dict[str, Any]) -> Iterator[str]:
    """Yield the violations of a panel."""
    if not panel["title"] or not panel["description"].endswith("."):
        yield "no title, or no sentence as the description"
    if panel["fieldConfig"]["defaults"]["unit"] not in UNITS:
        yield "unknown unit"
    for target in (panel, *panel["targets"]):
        if target["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
            yield "a data source that is not the variable"
    references = [target["refId"] for target in panel["targets"]]
    if len(set(references)) != len(references):
        yield "two queries have one reference"
    for target in panel["targets"]:
        expr = target["expr"]
        if FIXED_RANGE.search(expr):
            yield f"a fixed range: {expr}"
        if re.search(r"\b(rate|irate)\(", expr) and "$__rate_interval" not in expr:
            yield f"a rate without $__rate_interval: {expr}"
        if (
            COUNTER.search(expr)
            and not re.search(r"\b(rate|increase)\(", expr)
            and NOT_RATED.isdisjoint(re.findall(r"\w+", expr))
        ):
            yield f"a counter without a rate: {expr}"
        if len(panel["targets"]) > 1 and not target["legendFormat"].strip("_"):
            yield f"no legend: {expr}"
        missing = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - set(re.findall(r"\w+", expr))
        if missing:
            yield f"the legend shows labels that the query drops: {missing}"


def _cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: str(board["uid"]))
def test_a_dashboard_has_no_violation(board: dict[str, Any]) -> None:
    assert list(findings(board)) == []


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_no_violation(panel: dict[str, Any]) -> None:
    assert list(panel_findings(panel)) == []


def test_uids_are_fixed_and_unique() -> None:
    """A link to a dashboard holds its uid."""
    assert [board["uid"] for board in BOARDS] == [
        "appliance-overview",
        "appliance-engines",
        "appliance-cards",
        "appliance-users",
    ]


def test_violations_are_found() -> None:
    board = dashboards.dashboards()[0]
    panels = board["panels"]
    panels[1]["id"] = panels[2]["id"]
    panels[3]["title"] = panels[4]["title"]
    panels[5]["gridPos"] = panels[6]["gridPos"]
    board["templating"]["list"] = []
    assert len(list(findings(board))) == 4
    panel = next(panel for panel in panels if panel["title"] == "Requests")
    panel["description"] = ""
    panel["fieldConfig"]["defaults"]["unit"] = "parsecs"
    panel["targets"][0] |= {"expr": "sum(rate(appliance_gateway_requests_total[5m]))", "datasource": "default"}
    assert len(list(panel_findings(panel))) == 6
    panel["targets"] = [{"refId": "A", "expr": "a_total", "legendFormat": "", "datasource": dashboards.SOURCE}] * 2
    assert len(list(panel_findings(panel))) == 7
