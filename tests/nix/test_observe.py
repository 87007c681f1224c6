"""The texts of monitoring that NixOS renders, read by programs of Debian, which are older than those of NixOS."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.watch import alerts
from tests.nix import checker, rendered
from tests.nix.rendered import RenderedHost
from tests.nix.test_units import EVERYTHING

RULES = checker.ROOT / "modules/observe/rules.json"
JOBS = ("prometheus", "alertmanager", "node", "gateway", "engine", "public", "deadman")
"""Jobs of a host, as the expressions of alerts name them."""


@pytest.fixture(scope="module")
def host() -> RenderedHost:
    return rendered.host("gpu", EVERYTHING)


def prometheus_config(host: RenderedHost, folder: Path) -> Path:
    """Write prometheus.yml of ``host`` with its rules; return its file."""
    config = json.loads(host.text("prometheus.yml").text)
    assert len(config["rule_files"]) == 1
    rules = folder / "rules.json"
    # The path is that of a link that NixOS makes after its own check.
    rules.write_text(host.texts[config["rule_files"][0]].text)
    config["rule_files"] = [str(rules)]
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config))
    return file


def test_promtool_accepts_the_rendered_configuration(host: RenderedHost, tmp_path: Path) -> None:
    promtool = checker.require("promtool")
    file = prometheus_config(host, tmp_path)
    shown = checker.output_of([promtool, "check", "config", file])
    assert f"{len(alerts.ALERTS)} rules found" in shown
    file.write_text(file.read_text().replace("scrape_interval", "scrape_intervall", 1))
    assert checker.run_process([promtool, "check", "config", file]).returncode != 0


def test_the_rendered_rules_are_those_of_the_table(host: RenderedHost, tmp_path: Path) -> None:
    prometheus_config(host, tmp_path)
    assert json.loads((tmp_path / "rules.json").read_text()) == alerts.rules()


def test_the_unit_reads_the_checked_configuration(host: RenderedHost) -> None:
    """A link under another name leads to the text."""
    path = re.search(r"--config\.file=(\S+)", host.unit("prometheus.service").text)
    assert path
    assert host.texts[path[1]].text == host.text("prometheus.yml").text


def test_jobs_and_interval_are_those_of_the_alerts(host: RenderedHost) -> None:
    config = json.loads(host.text("prometheus.yml").text)
    assert tuple(job["job_name"] for job in config["scrape_configs"]) == JOBS
    named = set(re.findall(r'job="(\w+)"', RULES.read_text().replace("\\", "")))
    assert named <= set(JOBS)
    assert config["global"]["scrape_interval"] == f"{alerts.SCRAPE_S}s"


def alertmanager_config(host: RenderedHost) -> dict[str, Any]:
    """Return the configuration of Alertmanager."""
    config: dict[str, Any] = json.loads(host.text("alertmanager.yml").text)
    return config


def test_amtool_accepts_the_rendered_configuration(host: RenderedHost, tmp_path: Path) -> None:
    amtool = checker.require("amtool")
    file = tmp_path / "alertmanager.yml"
    file.write_text(host.text("alertmanager.yml").text)
    checker.output_of([amtool, "check-config", file])
    file.write_text(file.read_text().replace('"receiver":"beat"', '"receiver":"best"'))
    assert checker.run_process([amtool, "check-config", file]).returncode != 0


def test_alertmanager_has_the_routes_of_the_table_and_no_variable(host: RenderedHost) -> None:
    """NixOS replaces variables in this text; the link of its check is the text that the unit reads."""
    config = alertmanager_config(host)
    assert {name: config[name] for name in alerts.routing()} == alerts.routing()
    assert {one["name"] for one in config["receivers"]} == {"notices", "beat"}
    assert "$" not in host.text("alertmanager.yml").text
    script = host.text("unit-script-alertmanager-pre-start").text
    path = re.search(r'-i "(\S+)"', script)
    assert path
    assert host.texts[path[1]].text == host.text("alertmanager.yml").text


def test_the_blackbox_exporter_accepts_its_configuration(host: RenderedHost, tmp_path: Path) -> None:
    program = checker.require("prometheus-blackbox-exporter")
    file = tmp_path / "blackbox.yml"
    file.write_text(host.text("blackbox.yml").text)
    assert checker.run_process([program, "--config.check", f"--config.file={file}"]).returncode == 0
    file.write_text(file.read_text().replace("valid_status_codes", "valid_codes"))
    assert checker.run_process([program, "--config.check", f"--config.file={file}"]).returncode != 0


@pytest.mark.parametrize(
    ("unit", "address"),
    [
        ("prometheus.service", "--web.listen-address=127.0.0.1:9090"),
        ("alertmanager.service", "--web.listen-address 127.0.0.1:9093"),
        ("alertmanager.service", "--cluster.listen-address= "),
        ("prometheus-node-exporter.service", "--web.listen-address 127.0.0.1:9100"),
        ("prometheus-blackbox-exporter.service", "--web.listen-address 127.0.0.1:9115"),
    ],
)
def test_a_unit_listens_on_loopback(host: RenderedHost, unit: str, address: str) -> None:
    assert address in host.unit(unit).text
    assert "StartLimitIntervalSec=0" in host.unit(unit).text


def test_grafana_reads_its_secrets_from_credentials(host: RenderedHost) -> None:
    unit = host.unit("grafana.service").text
    assert "LoadCredential=admin-password:/run/secrets/grafana-password" in unit
    (text,) = (text.text for text in host.texts.values() if "admin_password" in text.text)
    for line in (
        "admin_password=$__file{/run/credentials/grafana.service/admin-password}",
        "secret_key=$__file{/run/credentials/grafana.service/secret-key}",
        "http_addr=10.77.0.1",
        "reporting_enabled=false",
        "check_for_updates=false",
        "check_for_plugin_updates=false",
        "disable_gravatar=true",
        "preinstall_disabled=true",
    ):
        assert line in re.sub(r" *= *", "=", text), line
