"""The report for people and programs: table, JSON, exit codes, options, causes; and no secret in it."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.contract.machine import load_machine
from appliance.doctor.causes import CAUSES, causes
from appliance.doctor.finding import EXIT_CODES, ORDER, Finding, Level, worst
from appliance.doctor.host import CannotLookError, HostReader, TimedOutError
from appliance.doctor.runner import CHECKS, examine
from appliance.errors import ConfigError, UsageError
from tests.conftest import ROOT, wait_until
from tests.doctor.fakehost import KEYS, PRIVATE, FakeHost, dump
from tools import doctor_doc

ARGV = [sys.executable, "-m", "appliance", "doctor"]


def doctor(host: FakeHost, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command on a host under a folder."""
    host.write_files()
    machine = host.root.parent / "machine.json"
    machine.write_text(json.dumps(host.machine))
    argv = [*ARGV, "--machine", str(machine), "--root", str(host.root), *words]
    if host.site:
        site = host.root.parent / "appliance.json"
        site.write_text(json.dumps(host.site))
        argv += ["--config", str(site)]
    environ = {**os.environ, **environment}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=environ)


def a_finding(level: Level, cause: str = "", name: str = "x") -> Finding:
    return Finding(name=name, level=level, seen="seen", cause=cause)


def test_the_json_has_its_schema(gpu: FakeHost) -> None:
    gpu.set_output("wg", dump(KEYS["gpu"], {KEYS["vps"]: None}))
    done = doctor(gpu, "--json")
    report: dict[str, Any] = json.loads(done.stdout)
    assert set(report) == {"version", "host", "worst", "exit_code", "causes", "checks", "left_out"}
    assert (report["version"], report["host"], report["worst"], report["exit_code"]) == (1, "gpu", "fail", 1)
    assert done.returncode == 1
    for one in report["checks"]:
        assert set(one) == {"name", "subject", "level", "seen", "meaning", "fix", "cause", "fault_domain"}
        assert one["level"] in ORDER
        assert all(isinstance(value, str) for value in one.values())
    assert [set(one) for one in report["left_out"]] == [{"name", "why"}] * 3
    assert report["causes"][0].keys() == {"code", "name", "subject", "seen", "fix"}
    assert report["causes"][0]["code"] == "wireguard-no-handshake"
    assert {one["name"] for one in report["checks"] + report["left_out"]} == {check.name for check in CHECKS}


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 3), ("unknown", 4), ("fail", 1)])
def test_exit_codes(level: Level, code: int, gpu: FakeHost) -> None:
    watts = {"ok": "450.00", "warn": "300.00", "unknown": "[N/A]", "fail": "450.00"}
    gpu.card["power.limit"] = watts[level]
    if level == "fail":
        gpu.card["clocks_event_reasons.active"] = "0x40"
    done = doctor(gpu, "--only", "power", "--only", "throttle")
    assert done.returncode == code == EXIT_CODES[level], done.stdout + done.stderr


def test_the_worst_level() -> None:
    assert worst([]) == "ok"
    assert worst(["warn", "ok"]) == "warn"
    assert worst(["unknown", "warn"]) == "unknown"
    assert worst(["unknown", "fail", "warn"]) == "fail"


def test_the_table_fits_80_columns_without_colours(gpu: FakeHost) -> None:
    gpu.set_output("wg", dump(KEYS["gpu"], {KEYS["stranger"]: None}))
    done = doctor(gpu, COLUMNS="80")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    text = " ".join(done.stdout.split())
    assert "Fix first: tunnel peer vps: wg0 does not have vps's key" in text
    assert "not applicable to this host: gateways, certificate, edge" in text
    # A finding that is ok takes one line; another one also has its meaning and its fix.
    assert re.search(r"^ok +driver +module: 595\.71\.05, open kernel modules *$", done.stdout, re.MULTILINE)
    assert "→ systemctl restart wireguard-wg0" in text


def test_a_terminal_gets_colours(gpu: FakeHost) -> None:
    gpu.write_files()
    machine = gpu.root.parent / "machine.json"
    machine.write_text(json.dumps(gpu.machine | {"edge": None}))
    site = gpu.root.parent / "appliance.json"
    site.write_text(json.dumps(gpu.site))
    master, slave = pty.openpty()
    argv = [*ARGV, "--machine", str(machine), "--config", str(site), "--root", str(gpu.root), "--only", "driver"]
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    with subprocess.Popen(argv, stdout=slave, stdin=subprocess.DEVNULL, cwd=ROOT, env=env) as process:
        os.close(slave)
        seen = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        os.close(master)
    assert process.returncode == 0
    assert b"\x1b[32mok" in seen


@pytest.mark.parametrize("words", [("--json",), ()])
def test_no_secret_in_any_output(words: tuple[str, ...], gpu: FakeHost) -> None:
    for text in (
        dump(KEYS["gpu"], {KEYS["vps"]: 4}),
        dump(KEYS["gpu"], {KEYS["stranger"]: None}),
        f"{PRIVATE}\tanother format\n",
        f"{PRIVATE}\n{PRIVATE}\n",
    ):
        gpu.set_output("wg", text)
        done = doctor(gpu, *words)
        assert PRIVATE not in done.stdout + done.stderr
    # The error output of wg is reported without the keys in it.
    (gpu.root.parent / "bin/wg").write_text(f"#!/bin/sh\necho 'cannot use {PRIVATE}' >&2; echo {PRIVATE}; exit 1\n")
    done = doctor(gpu, *words)
    assert PRIVATE not in done.stdout + done.stderr
    assert "cannot use (a key)" in done.stdout


def test_names_of_processes_cannot_control_the_terminal(gpu: FakeHost) -> None:
    gpu.sockets.append(("tcp", "0.0.0.0", 6666, 950))
    gpu.process(950, "\x1b]0;owned\x07[red]x", "evil.service")
    done = doctor(gpu, "--only", "ports")
    assert done.returncode == 3
    assert not {"\x1b", "\x07"} & set(done.stdout)
    assert "]0;owned [red]x" in done.stdout


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
    argv = [*ARGV, "--config", str(site), "--list"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert (done.returncode, "not one of the site's hosts (alpha, beta)" in done.stderr) == (2, True)
    listed = {}
    for name in ("alpha", "beta"):
        done = subprocess.run(
            [*argv, "--host", name], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
        )
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: input should be 1"),
        ({"host": "a b"}, "host: string should match"),
        ({"unit": []}, "unit: extra inputs are not permitted"),
        ({"tunnel": {}}, "tunnel.interface: field required"),
    ],
)
def test_an_invalid_machine_file_is_rejected(
    change: dict[str, Any], message: str, gpu: FakeHost, tmp_path: Path
) -> None:
    file = tmp_path / "machine.json"
    file.write_text(json.dumps(gpu.machine | change))
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_machine(file)


def test_a_machine_file_that_is_missing_or_not_json_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    file.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_machine(file)
    file.unlink()
    with pytest.raises(ConfigError, match="no such file"):
        load_machine(file)


def test_a_driver_that_hangs_is_a_failure_and_its_processes_end(gpu: FakeHost, programs: Path) -> None:
    # Its child process keeps the pipes open, as the child of a wrapper would.
    (programs / "nvidia-smi").write_text('#!/bin/sh\nsleep 300 &\necho $! >> "$FAKE/children"\nwait\n')
    context = dataclasses.replace(gpu.context(), host=HostReader(gpu.root, timeout_s=0.5))
    began = time.monotonic()
    results = examine(context, ["driver", "cards", "power", "throttle", "numa"]).results
    assert time.monotonic() - began < 20
    assert [one.name for one in results] == ["driver", "cards", "power", "throttle", "numa"]
    assert [one.level for one in results] == ["fail", "unknown", "unknown", "unknown", "unknown"]
    assert "did not respond within 0.5 s" in results[0].seen
    assert results[0].cause == "driver-mismatch"
    children = [int(pid) for pid in (gpu.fake / "children").read_text().split()]
    assert children
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "the end of its child process")


def test_a_program_that_is_missing_or_hangs(gpu: FakeHost) -> None:
    with pytest.raises(CannotLookError, match="no-such-program is not installed"):
        HostReader(gpu.root).run("no-such-program")
    with pytest.raises(TimedOutError, match=r"sleep did not respond within 0\.2 s"):
        HostReader(gpu.root, timeout_s=0.2).run("sleep", "60")


def test_the_deepest_cause_is_first() -> None:
    results = [
        a_finding("fail", "edge-down"),
        a_finding("warn", "clock"),
        a_finding("fail", "wireguard-no-handshake", "first"),
        a_finding("fail", "wireguard-no-handshake", "second"),
        a_finding("fail"),
        a_finding("fail", "firewall-not-loaded"),
    ]
    assert [(one.cause, one.name) for one in causes(results)] == [
        ("firewall-not-loaded", "x"), ("wireguard-no-handshake", "first"), ("edge-down", "x"),
    ]  # fmt: skip


def test_every_cause_is_used_by_a_check() -> None:
    source = "".join(file.read_text() for file in (ROOT / "appliance/doctor/checks").glob("*.py"))
    for code in CAUSES:
        assert f'"{code}"' in source or code.removesuffix("-not-listening") in {"tunnel", "edge"}, code


def test_the_generated_page_is_current() -> None:
    stale = "stale: run `python -m tools.doctor_doc > docs/doctor.md`"
    assert (ROOT / "docs/doctor.md").read_text() == doctor_doc.text(), stale
