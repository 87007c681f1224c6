"""From an event to its message: real Prometheus and Alertmanager, with the rules and routes 60 times faster."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.store.keys import KeyStore
from appliance.watch import alerts
from tests.conftest import StartedProcess, a_site, chat, http, start, start_mock, wait_until
from tests.nix import checker
from tests.ports import free_port
from tests.watch.observe import stack
from tests.watch.observe.stack import Pages, Prometheus

FASTER = 60
WITHIN_S = 60.0
NOTICES, BEAT = "/notices", "/beat"
ENGINE_UNIT = "appliance-engine-chat.service"


class MonitoredSite:
    """A gateway whose engine does not run, and the monitoring of the site."""

    def __init__(self, folder: Path, opened: ExitStack, pages: Pages) -> None:
        self.pages, self.folder, self.opened = pages, folder, opened
        self.engine_port, self.probe, self.beat_of_switch = free_port(), 1, 0.0
        self.texts = folder / "texts"
        self.texts.mkdir()
        stack.write_text_files(self.texts)
        self.key = _key(folder)
        port = free_port()
        config = folder / "site.json"
        config.write_text(json.dumps(a_site(port, self.engine_port, folder)))
        argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(config)]
        self.gateway = self.run(start(argv, port, folder / "gateway.log"))
        self.node = self.run(stack.start_node_exporter(folder, self.texts))
        pages.pages["/switch"] = stack.fresh("deadman")
        pages.pages["/probe"] = lambda: f"probe_success {self.probe}\n"
        self.manager = self.run(stack.start_alertmanager(folder, pages, FASTER))
        targets = [
            stack.scrape("gateway", port),
            stack.scrape("node", self.node.port),
            stack.scrape("engine", self.engine_port, engine="chat"),
            stack.scrape("deadman", pages.port, "/switch"),
            stack.scrape("public", pages.port, "/probe"),
        ]
        running = stack.start_prometheus(folder, targets, alertmanager=self.manager.port, factor=FASTER)
        self.prometheus: Prometheus = opened.enter_context(running)

    def run(self, started: StartedProcess) -> StartedProcess:
        """Stop ``started`` at the end of the test."""
        self.opened.callback(started.stop)
        return started

    def unit(self, state: str) -> None:
        """Report the state of the engine's unit."""
        stack.write_text_files(self.texts, {ENGINE_UNIT: state})

    def wait_firing(self, *names: str) -> None:
        """Wait until the alerts fire in Prometheus, and Alertmanager has them."""
        wait_until(lambda: set(names) <= self.prometheus.firing(), f"{names} fire", WITHIN_S)
        wait_until(lambda: set(names) <= set(self.states()), f"Alertmanager has {names}", WITHIN_S)

    def states(self) -> dict[str, str]:
        """Return the states of the alerts in Alertmanager: active or suppressed."""
        found = http(f"{self.manager.url}/api/v2/alerts").json
        return {one["labels"]["alertname"]: one["status"]["state"] for one in found}

    def wait_message(self, status: str, name: str) -> None:
        """Wait for a message."""
        wait_until(lambda: (status, name) in self.messages(), f"the message {status} {name}", WITHIN_S)

    def wait_suppressed(self, name: str) -> None:
        """Wait until another alert inhibits this one."""
        wait_until(lambda: self.states()[name] == "suppressed", f"{name} is suppressed", WITHIN_S)

    def messages(self) -> list[tuple[str, str]]:
        """Return the messages to the operator about the service, without those about this machine."""
        machine = {"ClockOff", "DiskFull", "DiskFills", "HostMemory"}
        return [one for one in self.pages.messages(NOTICES) if one[1] not in machine]


def _key(folder: Path) -> str:
    store = KeyStore(folder)
    key = store.create("ada")
    store.close()
    return key


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MonitoredSite]:
    with ExitStack() as opened:
        pages = Pages()
        opened.callback(pages.close)
        yield MonitoredSite(tmp_path, opened, pages)


def test_an_engine_that_dies_at_its_start_and_a_lost_vps_are_one_message_each(site: MonitoredSite) -> None:
    """The failed unit, the failed requests and the lost switch are effects: the causes alone are reported."""
    site.unit("failed")
    switch = site.pages.pages.pop("/switch")
    site.probe = 0
    for _ in range(6):
        response = http(f"{site.gateway.url}/v1/chat/completions", body=chat(), key=site.key)
        assert response.status == 503
    causes, effects = ("EngineDown", "PublicAddressDown"), ("UnitFailed", "SwitchOnVpsFails")
    site.wait_firing(*causes, *effects)
    for cause in causes:
        site.wait_message("firing", cause)
    for effect in effects:
        site.wait_suppressed(effect)
    errors = site.prometheus.value(f"sum({alerts.SERVER_ERRORS})")
    assert errors is not None
    assert errors >= 6
    # Longer than a group of effects waits.
    seen = len(site.pages.messages(BEAT))
    wait_until(lambda: len(site.pages.messages(BEAT)) >= seen + 3, "three more beats", WITHIN_S)
    assert sorted(site.messages()) == [("firing", cause) for cause in causes]

    site.run(start_mock(site.folder / "engine.log", port=site.engine_port))
    site.unit("active")
    site.probe = 1
    site.pages.pages["/switch"] = switch
    for cause in causes:
        site.wait_message("resolved", cause)
    assert sorted(site.messages()) == [(status, one) for status in ("firing", "resolved") for one in causes]


def test_a_stopped_gateway_is_one_message_and_a_killed_prometheus_ends_the_beat(site: MonitoredSite) -> None:
    """The alerts of its engines and of the public address are effects. The VPS notices a missing beat."""
    wait_until(lambda: len(site.pages.messages(BEAT)) >= 2, "two beats", WITHIN_S)
    site.gateway.stop()
    site.probe = 0
    site.wait_firing("GatewayDown", "PublicAddressDown")
    site.wait_message("firing", "GatewayDown")
    assert site.states()["PublicAddressDown"] == "suppressed"
    assert "EngineDown" not in site.prometheus.firing()
    assert site.messages() == [("firing", "GatewayDown")]

    site.prometheus.started.process.kill()
    site.prometheus.started.process.wait()
    assert {status for status, _ in site.pages.messages(BEAT)} == {"firing"}
    # Alertmanager resolves an alert that Prometheus does not repeat for four evaluations.
    wait_until(lambda: ("resolved", alerts.BEAT) in site.pages.messages(BEAT), "the end of the beat", WITHIN_S)
    assert alerts.BEAT not in {name for _, name in site.messages()}


def test_amtool_accepts_the_routes_and_finds_the_receivers(tmp_path: Path) -> None:
    amtool = checker.require("amtool")
    config = tmp_path / "alertmanager.json"
    config.write_text(json.dumps({**alerts.routing(), "receivers": [{"name": "notices"}, {"name": "beat"}]}))
    shown = checker.output_of([amtool, "check-config", config])
    assert f"{len(alerts.routing()['inhibit_rules'])} inhibit rules" in shown
    for alert in alerts.ALERTS:
        labels = [f"severity={alert.severity}", f"alertname={alert.name}"]
        receiver = checker.output_of([amtool, "config", "routes", "test", f"--config.file={config}", *labels])
        assert receiver.strip() == ("beat" if alert.severity == "beat" else "notices"), alert.name


def test_the_routes_contain_no_variable() -> None:
    """NixOS replaces variables in the configuration of Alertmanager."""
    assert "$" not in json.dumps(alerts.routing())
