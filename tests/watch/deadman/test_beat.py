"""The beat of a real Prometheus and a real Alertmanager (case 13: Prometheus or Alertmanager is killed)."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import StartedProcess, start, wait_until
from tests.nix import checker
from tests.ports import free_port
from tests.watch.deadman.test_process import LONG, FakeHome, Switch, switched

EVALUATED_AT = '{{ with query "time()" }}{{ . | first | value }}{{ end }}'
"""The annotation that changes with each evaluation."""


class Monitoring:
    """Prometheus with one alert that always fires, and Alertmanager, which sends it to the switch."""

    def __init__(self, folder: Path, switch_port: int) -> None:
        self.folder = folder
        folder.mkdir()
        self.ports = {"prometheus": free_port(), "alertmanager": free_port()}
        alert = {"alert": "Watchdog", "expr": "vector(1)", "annotations": {"evaluated_at": EVALUATED_AT}}
        self._write("rules.json", {"groups": [{"name": "beat", "rules": [alert]}]})
        target = {"static_configs": [{"targets": [f"127.0.0.1:{self.ports['alertmanager']}"]}]}
        self._write("prometheus.json", {
            "global": {"evaluation_interval": "1s"}, "rule_files": [str(folder / "rules.json")],
            "alerting": {"alertmanagers": [target]},
        })  # fmt: skip
        webhook = {"url": f"http://127.0.0.1:{switch_port}/beat", "send_resolved": True}
        route = {"receiver": "beat", "group_wait": "0s", "group_interval": "1s", "repeat_interval": "500ms"}
        receiver = {"name": "beat", "webhook_configs": [webhook]}
        self._write("alertmanager.json", {"route": route, "receivers": [receiver]})
        self.running: dict[str, StartedProcess] = {}

    def _write(self, name: str, table: object) -> None:
        # JSON is YAML as well.
        (self.folder / name).write_text(json.dumps(table))

    def start(self, name: str) -> None:
        listen = f"--web.listen-address=127.0.0.1:{self.ports[name]}"
        config = f"--config.file={self.folder / name}.json"
        if name == "prometheus":
            program, more = checker.require("prometheus"), ["--rules.alert.resend-delay=1s"]
            more += [f"--storage.tsdb.path={self.folder / 'tsdb'}"]
        else:
            program, more = checker.require("prometheus-alertmanager"), ["--cluster.listen-address="]
            more += [f"--storage.path={self.folder / 'alerts'}"]
        argv = [str(program), config, listen, *more]
        self.running[name] = start(argv, self.ports[name], self.folder / f"{name}.log")

    def close(self) -> None:
        for process in self.running.values():
            process.stop(signal.SIGKILL)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Switch, Monitoring]]:
    for program in ("prometheus", "prometheus-alertmanager"):
        checker.require(program)
    with ExitStack() as stack:
        home = FakeHome()
        home.up()
        stack.callback(home.down)
        switch = stack.enter_context(switched(home, tmp_path / "switch", "--interval", "0.5s", "--silent", "5s"))
        monitoring = Monitoring(tmp_path / "monitoring", switch.port)
        stack.callback(monitoring.close)
        for name in ("alertmanager", "prometheus"):
            monitoring.start(name)
        yield switch, monitoring


def beat_age(switch: Switch) -> float:
    return switch.metrics()["appliance_deadman_beat_age_seconds"]


@pytest.mark.parametrize("killed", ["prometheus", "alertmanager"])
def test_a_part_of_the_monitoring_that_dies_is_one_alarm_and_one_return(
    watched: tuple[Switch, Monitoring], killed: str
) -> None:
    switch, monitoring = watched
    # A busy machine may have delayed the first beat until after an alarm, which a return has ended then.
    wait_until(lambda: beat_age(switch) < 4, "a beat", LONG)
    wait_until(lambda: switch.metrics()["appliance_deadman_home_alive"] == 1, "the return", LONG)
    before = len(switch.notices())
    monitoring.running[killed].stop(signal.SIGKILL)
    alarm = switch.wait_for(before + 1)[before]
    assert alarm.text.startswith("The monitoring of gpu sent no beat for")
    monitoring.start(killed)
    assert switch.wait_for(before + 2)[before + 1].ended
