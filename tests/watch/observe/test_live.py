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
from tests.conftest import RunningService, chat, serving, wait_until
from tests.watch.observe import stack
from tests.watch.observe.stack import Pages, Prometheus

NAME = re.compile(r"(?<![\w:\"=~])((?:appliance|node|probe)_\w+|vllm:\w+|up)(?![\w(:])")
OTHER = {
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


def load(service: RunningService) -> None:
    """Send requests with every kind of outcome that a panel shows."""
    for _ in range(3):
        assert service.post("/v1/chat/completions", chat("fake: tokens=4", stream=True)).status == 200
        assert service.post("/v1/chat/completions", chat("fake: tokens=4")).status == 200
    service.post("/v1/chat/completions", chat("fake: fault=status:500"))
    service.post("/v1/chat/completions", chat(), key="sk-unknown")
    service.post("/v1/chat/completions", {"model": "unknown", "messages": []})


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("live")
    texts = folder / "texts"
    texts.mkdir()
    stack.write_text_files(texts)
    pages = Pages()
    node = None
    try:
        pages.pages["/vllm"] = stack.growing(stack.RECORDED.read_text())
        pages.pages["/switch"] = stack.fresh("deadman")
        pages.pages["/probe"] = lambda: "probe_success 1\n"
        node = stack.start_node_exporter(folder, texts)
        with serving(folder / "site") as service:
            targets = [
                stack.scrape("gateway", service.gateway.port),
                stack.scrape("node", node.port),
                stack.scrape("engine", pages.port, "/vllm", engine="chat"),
                stack.scrape("deadman", pages.port, "/switch"),
                stack.scrape("public", pages.port, "/probe"),
            ]
            load(service)
            with stack.start_prometheus(folder, targets) as running:
                started = f'min(count_over_time(up{{job!=""}}[1m])) > 4 and count(up == 1) == {len(targets)}'
                wait_until(lambda: running.value(started) is not None, "four scrapes of each target", 60)
                load(service)
                grown = "sum(rate(appliance_gateway_time_to_first_token_seconds_count[30s])) > 0"
                wait_until(lambda: running.value(grown) is not None, "a scrape after the second load", 60)
                yield running
    finally:
        if node is not None:
            node.stop()
        pages.close()


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
