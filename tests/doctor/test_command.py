"""The options of the command, and the host that it inspects."""

from __future__ import annotations

import json
import re

import pytest

from appliance.doctor.finding import EXIT_CODES, Level
from appliance.doctor.runner import CHECKS, examine
from appliance.errors import UsageError
from tests.command_line import run_command
from tests.doctor.command import doctor
from tests.doctor.fakehost import FakeHost


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 3), ("unknown", 4), ("fail", 1)])
def test_exit_codes(level: Level, code: int, gpu: FakeHost) -> None:
    watts = {"ok": "450.00", "warn": "300.00", "unknown": "[N/A]", "fail": "450.00"}
    gpu.card["power.limit"] = watts[level]
    if level == "fail":
        gpu.card["clocks_event_reasons.active"] = "0x40"
    done = doctor(gpu, "--only", "power", "--only", "throttle")
    assert done.returncode == code == EXIT_CODES[level], done.stdout + done.stderr


def test_the_list(gpu: FakeHost) -> None:
    done = doctor(gpu, "--list")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert names == [check.name for check in CHECKS]
    assert re.search(r"^certificate +not applicable: this host is not an edge *$", done.stdout, re.MULTILINE)


def test_an_unknown_or_inapplicable_check_is_rejected(gpu: FakeHost) -> None:
    done = doctor(gpu, "--only", "tunel")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --only tunel: there is no such check; did you mean 'tunnel'?\n",
    )
    done = doctor(gpu, "--only", "certificate")
    assert (done.returncode, done.stderr) == (2, "error: --only certificate: this host is not an edge\n")


def test_only_the_named_checks_run(gpu: FakeHost) -> None:
    names = {one.name for one in gpu.findings("power", "driver", "power")}
    assert names == {"power", "driver"}
    with pytest.raises(UsageError):
        gpu.findings("nothing")


def test_a_vps_needs_no_site(vps: FakeHost) -> None:
    done = doctor(vps, "--only", "tunnel", "--only", "edge", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["host"] == "vps"


def test_a_gpu_host_without_its_site(gpu: FakeHost) -> None:
    gpu.site = {}
    done = doctor(gpu, "--only", "tunnel")
    assert done.returncode == 2
    assert "/etc/appliance/appliance.json: no such file" in done.stderr


def test_a_host_of_nothing_but_a_tunnel_needs_no_site(gpu: FakeHost) -> None:
    gpu.site = {}
    gpu.machine = {name: gpu.machine[name] for name in ("version", "host", "tunnel")}
    done = doctor(gpu)
    assert "error" not in done.stderr
    assert done.returncode in {0, 3}, done.stdout


def test_a_machine_of_another_name(gpu: FakeHost) -> None:
    gpu.machine["host"] = "other"
    done = doctor(gpu, "--only", "tunnel")
    assert (done.returncode, "this machine is 'other'" in done.stderr) == (2, True)


def test_a_site_of_several_hosts(gpu: FakeHost) -> None:
    """Without the name of this host the command fails, instead of skipping checks."""
    gpu.site["hosts"] = {"alpha": gpu.site["hosts"]["gpu"], "beta": {"memory_gib": 8}}
    gpu.site["engines"]["chat"]["host"] = "alpha"
    site = gpu.root.parent / "appliance.json"
    site.write_text(json.dumps(gpu.site))
    argv = ["doctor", "--config", site, "--list"]
    done = run_command(*argv)
    assert (done.returncode, "not one of the site's hosts (alpha, beta)" in done.stderr) == (2, True)
    listed = {}
    for name in ("alpha", "beta"):
        done = run_command(*argv, "--host", name)
        listed[name] = re.search(r"^cards .*not applicable", done.stdout, re.MULTILINE) is None
    assert listed == {"alpha": True, "beta": False}


def test_a_host_without_the_gateway(gpu: FakeHost) -> None:
    gpu.machine["units"].remove("appliance-gateway.service")
    gpu.machine["firewall"]["openings"].pop(0)
    report = examine(gpu.context(), ())
    skipped = {one.name: one.why for one in report.skipped}
    assert {"gateway", "engines", "database"} <= set(skipped)
    assert skipped["gateway"] == "the gateway runs on another host"
    assert not [one for one in report.results if one.subject == "gateway"]
