"""Every name of a metric and every panel on a real Prometheus, which scrapes the real gateway and exporters."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.watch import alerts, dashboards, metric_names
from tests.watch.observe.live_site import scraped_site
from tests.watch.observe.stack import Prometheus

NAME = re.compile(r"(?<![\w:\"=~])((?:appliance|node|probe)_\w+|vllm:\w+|up)(?![\w(:])")
OTHER = {
    "appliance_gateway_budget_notice_timestamp_seconds": "a site with plans; tests/gateway has it",
    "appliance_gateway_swap_failures_total": "a site with models on demand; tests/gateway/running has it",
    "probe_ssl_earliest_cert_expiry": "a probe of a certificate; loopback has none",
}
"""Names that this site cannot have, with the reason."""

PANELS = [
    pytest.param(panel, target["expr"], id=f"{board['uid']}: {panel['title']} {target['refId']}")
    for board in dashboards.dashboards()
    for panel in board["panels"]
    for target in panel.get("targets", ())
]
EXPRESSIONS = [alert.expr for alert in alerts.ALERTS] + [str(panel.values[1]) for panel in PANELS]


def names(expr: str) -> set[str]:
    """Return the names of metrics in an expression, without the texts of its matchers."""
    return set(NAME.findall(re.sub(r'"[^"]*"', '""', expr)))


USED = sorted(set().union(*map(names, EXPRESSIONS)))


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with scraped_site(tmp_path_factory.mktemp("live")) as (running, _):
        yield running


def test_the_names_are_found_in_expressions() -> None:
    found = names('sum(rate(node_cpu_seconds_total{mode="idle"}[5m])) / on (up) vllm:x_y > appliance_a{b="node_c"}')
    assert found == {"node_cpu_seconds_total", "up", "vllm:x_y", "appliance_a"}
    assert len(USED) > 60


@pytest.mark.parametrize("name", [name for name in USED if name not in OTHER])
def test_a_metric_of_a_rule_or_panel_is_scraped(prometheus: Prometheus, name: str) -> None:
    assert prometheus.query(f'{{__name__="{name}"}}'), f"no target has {name}"


def test_names_that_are_not_scraped_are_necessary(prometheus: Prometheus) -> None:
    assert set(OTHER) <= set(USED)
    assert not [name for name in OTHER if prometheus.query(name)]


@pytest.mark.parametrize(("panel", "expr"), PANELS)
def test_a_panel_has_data(prometheus: Prometheus, panel: dict[str, Any], expr: str) -> None:
    text = expr.replace("$__rate_interval", "30s").replace("$__range", "5m")
    found = prometheus.query(text)
    assert found, f"{panel['title']}: no data for {text}"
    assert any(not math.isnan(float(one["value"][1])) for one in found), f"{panel['title']}: {text}"


def test_a_healthy_site_has_no_alert(prometheus: Prometheus) -> None:
    """Only the beat fires, and no other alert waits for its time except those that depend on this machine."""
    machine = {"ClockOff", "DiskFull", "DiskFills", "HostMemory"}
    waiting = {one["metric"]["alertname"] for one in prometheus.query("ALERTS")}
    assert waiting - machine == {alerts.BEAT}


def test_the_gateway_and_the_list_have_the_same_metrics(prometheus: Prometheus) -> None:
    """The list names what the gateway adds for operation, with these labels."""
    for metric in metric_names.of("gateway"):
        found = prometheus.query(metric.name)
        assert found, metric.name
        # Prometheus drops labels without a text: a gateway that is not paused has no reason.
        empty = {"reason"} if metric.name == "appliance_gateway_paused" else set()
        assert set(metric.labels) - empty <= set(found[0]["metric"]), metric.name


def test_rules_are_evaluated_without_errors(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert {rule["name"] for rule in rules} == {alert.name for alert in alerts.ALERTS}
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []


def test_the_text_format_of_the_list_is_valid() -> None:
    for source in (*metric_names.TEXT_FILES, "deadman", "gateway"):
        families = text_string_to_metric_families(metric_names.example_text(source, 1e9))
        parsed = {sample.name for family in families for sample in family.samples}
        assert parsed == {metric.name for metric in metric_names.of(source)}


def test_the_generated_dashboards_hold_these_queries() -> None:
    files = (Path(__file__).resolve().parents[3] / "modules/observe/dashboards").glob("*.json")
    written = {
        t["expr"] for file in files for p in json.loads(file.read_text())["panels"] for t in p.get("targets", ())
    }
    assert written == {panel.values[1] for panel in PANELS}
