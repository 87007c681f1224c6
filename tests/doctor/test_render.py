"""The report for people and programs: table, JSON, colours; and no secret in it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from typing import Any

import pytest

from appliance.doctor.finding import ORDER
from appliance.doctor.runner import CHECKS
from tests.conftest import ROOT
from tests.doctor.command import ARGV, doctor
from tests.doctor.fakehost import KEYS, PRIVATE, FakeHost, dump


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
