"""The metrics of a real gateway: valid for Prometheus, complete, and cheap to read."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from appliance import __version__
from appliance.gateway import control_client
from appliance.gateway.breaker import CAUSES
from tests.conftest import RunningService, chat, serving
from tests.gateway.running.test_swap import ask, two_models

PREFIX = "appliance_gateway_"


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A gateway that has served, failed, swapped, drained and paused, so that every metric has a value."""
    with two_models(tmp_path_factory.mktemp("metrics")) as service:
        for model in "ab":
            assert ask(service, model, stream=True).status == 200
        assert ask(service, "c").status == 404
        assert service.get("/v1/models", key="sk-invalid").status == 401
        assert service.post("/v1/unknown", chat()).status == 404
        control_client.drain(service.data, "ea", 'a "quoted" \\ reason')
        assert ask(service, "a").status == 503
        control_client.pause(service.data, "on battery", 60)
        service.wait_rows(4)
        yield service


def families(service: RunningService) -> dict[str, Metric]:
    text = service.get("/metrics").body.decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(family: Metric) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def test_promtool_accepts_the_metrics(busy: RunningService) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("NOT CHECKED: promtool (Debian package prometheus) is not installed")
    text = busy.get("/metrics").body
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_drains_pauses_and_causes_have_metrics(busy: RunningService) -> None:
    found = families(busy)
    assert values(found[f"{PREFIX}info"]) == {(__version__,): 1}
    assert values(found[f"{PREFIX}paused"]) == {("on battery",): 1}
    assert values(found[f"{PREFIX}replica_draining"]) == {("ea",): 1, ("eb",): 0}
    assert values(found[f"{PREFIX}replica_down"]) == {(name, cause): 0 for name in ("ea", "eb") for cause in CAUSES}
    refused = found[f"{PREFIX}requests"].samples
    assert any(sample.labels == {**sample.labels, "model": "a", "outcome": "draining"} for sample in refused)
    canaries = values(found[f"{PREFIX}canary_seconds"])
    assert canaries.keys() == {("ea",), ("eb",)}
    assert all(0 < seconds < 20 for seconds in canaries.values())
    assert values(found[f"{PREFIX}usage_rows_dropped"]) == {(): 0}


def test_bounds_of_histograms_are_floats(busy: RunningService) -> None:
    """Prometheus 3 rewrites the label "1" to "1.0": a rule with either of them would fail on one version."""
    bounds = set(re.findall(r'le="([^"]*)"', busy.get("/metrics").body.decode()))
    assert {"0.05", "1.0", "2.0", "600.0", "+Inf"} <= bounds
    assert all(bound == "+Inf" or "." in bound for bound in bounds)


def test_the_process_has_metrics(busy: RunningService) -> None:
    found = families(busy)
    assert found["process_start_time_seconds"].samples[0].value == pytest.approx(time.time(), abs=600)
    assert found["process_resident_memory_bytes"].samples[0].value > 10e6
    assert found["process_open_fds"].samples[0].value >= 5
    assert "process_cpu_seconds" in found


def test_a_replica_that_is_down_names_its_cause(tmp_path: Path) -> None:
    with serving(tmp_path / "down") as service:
        service.engine.stop()
        assert service.post("/v1/chat/completions", chat()).status == 503
        down = families(service)[f"{PREFIX}replica_down"]
        assert [labels for labels, value in values(down).items() if value] == [("chat", "unreachable")]
