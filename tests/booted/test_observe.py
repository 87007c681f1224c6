"""Prometheus, Alertmanager and node_exporter as rendered, under their sandbox, up to the outbox of the sender."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from appliance.watch import metric_names
from tests.booted.machine import BootedMachine, require
from tests.booted.site import GPU, BootedHost, prepare
from tests.conftest import wait_until
from tests.nix import rendered

pytestmark = pytest.mark.timeout(900)

CHANGES = {"appliance": {"settings": {"gateway": {"host": "127.0.0.1"}}}}
MONITORING = ("prometheus.service", "alertmanager.service", "prometheus-node-exporter.service")
UNITS = ("nftables.service", "appliance-gateway.service", "appliance-notify.service", *MONITORING)
JOBS = {"prometheus", "alertmanager", "node", "gateway"}
PROMETHEUS = "http://127.0.0.1:9090/api/v1"
TEXTS = "/run/appliance-metrics"
"""The folder of the agents' metrics."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    require()
    rendered.require()
    texts = rendered.host("gpu", GPU, changes=json.dumps(CHANGES))
    folder = tmp_path_factory.mktemp("observe")
    host = BootedHost(texts, BootedMachine(folder / "observe"))
    (folder / "gpu.key").write_text("a private key\n")
    prepare(host, folder)
    made = host.machine
    host.install(list(UNITS))
    made.write("etc/sysusers.d/observe.conf", "u prometheus - - -\nu node-exporter - - -\n")
    made.write("etc/tmpfiles.d/observe.conf", f"d {TEXTS} 0755 root root\n")
    made.boot()
    try:
        # The agents have written nothing yet, except the one of this test.
        made.run("systemctl", "start", *UNITS)
        yield made
    finally:
        made.stop()


def get(machine: BootedMachine, url: str) -> Any:
    """Return the data of a response of Prometheus; ``None`` if there is none yet."""
    text = machine.run("curl", "-s", "--max-time", "20", url, check=False)
    return json.loads(text)["data"] if text.startswith("{") else None


def values(machine: BootedMachine, expr: str) -> dict[str, float]:
    """Return the values of a query by the job or the name of their series."""
    data = get(machine, f"{PROMETHEUS}/query?query={quote(expr)}")
    found = data["result"] if data else []
    return {one["metric"].get("name", one["metric"].get("job", "")): float(one["value"][1]) for one in found}


def test_each_unit_runs_and_each_target_is_scraped(machine: BootedMachine) -> None:
    wait_until(lambda: values(machine, "up") == dict.fromkeys(JOBS, 1.0), "each target is up", 200)
    for unit in UNITS[1:]:
        assert machine.show(unit, "SubState", "NRestarts") == {"SubState": "running", "NRestarts": "0"}


def test_the_states_of_units_are_metrics(machine: BootedMachine) -> None:
    """node_exporter reads them over D-Bus, which its sandbox has to allow."""
    states = 'node_systemd_unit_state{name="appliance-gateway.service",state="active"}'
    wait_until(lambda: values(machine, states) == {"appliance-gateway.service": 1.0}, "the state of a unit", 200)


def test_the_gateway_reports_its_replicas_to_prometheus(machine: BootedMachine) -> None:
    wait_until(lambda: values(machine, "max by (job) (appliance_gateway_replica_down)") != {}, "a replica", 200)


def test_an_alert_of_an_agents_metric_reaches_the_outbox(machine: BootedMachine) -> None:
    """By the rendered rules and routes, with their own times: a text file, a scrape, a rule, a route, a webhook."""
    metric = next(one.name for one in metric_names.of("backup") if one.name.endswith("drill_failed"))
    machine.run("sh", "-c", f"echo '{metric} 1' > {TEXTS}/draft && mv {TEXTS}/draft {TEXTS}/backup.prom")
    waiting = "cat /var/lib/appliance-notices/*.json"
    wait_until(lambda: "DrillFailed" in machine.run("sh", "-c", waiting, check=False), "the alert", 400)


def test_a_target_that_ends_is_down(machine: BootedMachine) -> None:
    machine.run("systemctl", "stop", "prometheus-node-exporter")
    wait_until(lambda: values(machine, 'up{job="node"}') == {"node": 0.0}, "the target is down", 200)
    machine.run("systemctl", "start", "prometheus-node-exporter")
    wait_until(lambda: values(machine, 'up{job="node"}') == {"node": 1.0}, "the target is up", 200)
