"""The dead man's switch as a process, before a host at home that fails in different ways (case 13)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.cli import main
from appliance.notices.notice import Notice
from appliance.watch.deadman import state_file
from appliance.watch.deadman.policy import SwitchLimits, started
from tests.command_line import run_command
from tests.conftest import ROOT, Response, StartedProcess, http, start, wait_until
from tests.fakes.bot_api import CHAT, TOKEN, bot_api
from tests.ports import free_port
from tests.smalldisk import SmallDisk

PEER = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
READY = {"status": "ready", "engines": {"chat": "ready"}}
LOCAL = ("--address", "127.0.0.1", "--listen", "127.0.0.1")
SERVE = (sys.executable, "-m", "appliance", "deadman", "serve", "--home", "gpu", *LOCAL)
LONG = 60.0
"""Limit of a wait on a machine whose cores are busy."""


class FakeHome:
    """A gateway at home, whose response is ``status`` and ``body``."""

    def __init__(self) -> None:
        self.port = free_port()
        self.status, self.body = 200, READY
        self._server: ThreadingHTTPServer | None = None

    def up(self) -> None:
        home = self

        class HomeHandler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = json.dumps(home.body).encode()
                self.send_response(home.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Keep the output of the tests clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), HomeHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None


@pytest.fixture
def home() -> Iterator[FakeHome]:
    made = FakeHome()
    made.up()
    try:
        yield made
    finally:
        made.down()


class Switch:
    """A running switch with short times: an alarm after half a second of silence."""

    def __init__(self, home: FakeHome, folder: Path, *options: str) -> None:
        self.folder, self.port = folder, free_port()
        self.log = folder.parent / "switch.log"
        self.argv = [*SERVE, "--gateway-port", str(home.port), "--port", str(self.port), "--folder", str(folder)]
        self.argv += ["--interval", "0.1s", "--silent", "0.5s", *options]
        self.process: StartedProcess

    def start(self) -> None:
        self.process = start(self.argv, self.port, self.log)

    def notices(self) -> list[Notice]:
        files = sorted((self.folder / "notices").glob("[0-9]*.json"))
        return [msgspec.json.decode(file.read_bytes(), type=Notice) for file in files]

    def wait_for(self, count: int) -> list[Notice]:
        wait_until(lambda: len(self.notices()) >= count, f"{count} notices", LONG)
        return self.notices()

    def metrics(self) -> dict[str, float]:
        text = http(f"{self.process.url}/metrics").body.decode()
        return {one.name: one.samples[0].value for one in text_string_to_metric_families(text)}

    def post(self, path: str, body: object) -> Response:
        return http(self.process.url + path, body=body)

    def announce(self, *arguments: str) -> str:
        done = run_command("deadman", "announce", "--url", self.process.url, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def looks(self, count: int) -> None:
        """Wait for further looks of the switch."""
        for _ in range(count):
            last = self.last_look()
            wait_until(lambda last=last: self.last_look() > last, "a look", LONG)  # type: ignore[misc]

    def last_look(self) -> float:
        return self.metrics()["appliance_deadman_last_look_timestamp_seconds"]


@contextmanager
def switched(home: FakeHome, folder: Path, *options: str) -> Iterator[Switch]:
    switch = Switch(home, folder, *options)
    switch.start()
    try:
        yield switch
    finally:
        code = switch.process.stop()
        log = switch.log.read_text()
        assert code == 0, log
        assert "Traceback" not in log, log


def test_a_gateway_that_dies_is_one_alarm_and_one_return(home: FakeHome, tmp_path: Path) -> None:
    with switched(home, tmp_path / "switch", "--no-beat") as switch:
        switch.looks(2)
        assert switch.metrics()["appliance_deadman_ready"] == 1
        home.down()
        (alarm,) = switch.wait_for(1)
        assert (alarm.kind, alarm.subject, alarm.ended, alarm.pages) == ("home-silent", "gpu", False, True)
        assert alarm.text.startswith("The gateway of gpu does not respond for")
        assert "/ready: connection refused" in alarm.text
        switch.looks(5)
        values = switch.metrics()
        assert values["appliance_deadman_home_alive"] == values["appliance_deadman_ready"] == 0
        assert values["appliance_deadman_notices_waiting"] == 1
        home.up()
        _, back = switch.wait_for(2)
        assert back.ended
        assert re.fullmatch(r"gpu is back after \d+ s: its gateway did not respond\.", back.text)
        switch.looks(8)
        assert len(switch.notices()) == 2
        assert switch.metrics()["appliance_deadman_home_alive"] == 1


def test_the_alarm_and_the_return_reach_the_chat(home: FakeHome, tmp_path: Path) -> None:
    """With the sender of the VPS: a process of its own, on the outbox of the switch."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with bot_api() as api, switched(home, tmp_path / "switch", "--no-beat") as switch:
        argv = [sys.executable, "-m", "appliance", "notify", "serve", "--outbox", str(switch.folder / "notices")]
        argv += ["--token-file", str(token), "--chat", CHAT, "--host", "vps", "--api", api.url]
        with (tmp_path / "sender.log").open("wb") as log, subprocess.Popen(argv, cwd=ROOT, stderr=log) as sender:
            try:
                home.down()
                wait_until(lambda: len(api.delivered) == 1, "the alarm in the chat", LONG)
                home.up()
                wait_until(lambda: len(api.delivered) == 2, "the return in the chat", LONG)
                wait_until(lambda: switch.notices() == [], "an empty outbox", LONG)
                assert switch.metrics()["appliance_deadman_notices_waiting"] == 0
            finally:
                sender.terminate()
    alarm, back = api.delivered
    assert "vps" in alarm
    assert "The gateway of gpu does not respond" in alarm
    assert "gpu is back after" in back


def test_a_drained_gateway_is_alive(home: FakeHome, tmp_path: Path) -> None:
    home.status, home.body = 503, {"status": "draining", "engines": {}}
    with switched(home, tmp_path / "switch", "--no-beat", "--not-ready", "0.5s") as switch:
        switch.looks(12)
        assert switch.notices() == []
        home.body = {"status": "not ready", "engines": {"chat": "Connection refused"}}  # the control
        assert "is not ready" in switch.wait_for(1)[0].text


class Beats:
    """Posts beats as Alertmanager does, until it is stopped."""

    def __init__(self, switch: Switch, status: str = "firing") -> None:
        self._switch, self._status = switch, status
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.counted: list[bool] = []
        self.evaluated = 0

    def webhook(self) -> dict[str, Any]:
        annotations = {"evaluated_at": str(self.evaluated)}
        return {
            "version": "4", "receiver": "deadman", "status": self._status, "externalURL": "http://gpu:9093",
            "groupKey": "{}:{}", "truncatedAlerts": 0, "groupLabels": {},
            "alerts": [{
                "status": self._status, "labels": {"alertname": "Watchdog"}, "annotations": annotations,
                "startsAt": "2026-11-27T13:00:00Z", "endsAt": "0001-01-01T00:00:00Z", "fingerprint": "e1749c2",
            }],
        }  # fmt: skip

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            self.evaluated += 1
            self.counted.append(self._switch.post("/beat", self.webhook()).json["counted"])

    def __enter__(self) -> Beats:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_a_monitoring_that_dies_is_one_alarm_and_one_return(home: FakeHome, tmp_path: Path) -> None:
    """Prometheus is killed: Alertmanager repeats its last evaluation for a while, then the alert is resolved."""
    with switched(home, tmp_path / "switch", "--silent", "5s") as switch:
        with Beats(switch) as beats:
            wait_until(lambda: beats.counted.count(True) > 3, "beats", LONG)
            assert switch.metrics()["appliance_deadman_beat_age_seconds"] < LONG
            assert switch.notices() == []
        stale = beats.webhook()
        with Beats(switch, "resolved") as resolved:
            while not switch.notices():
                assert switch.post("/beat", stale).json == {"counted": False}
        assert True not in resolved.counted
        (alarm,) = switch.notices()
        assert alarm.text.startswith("The monitoring of gpu sent no beat for")
        with Beats(switch):
            _, back = switch.wait_for(2)
        assert back.ended


def test_a_beat_may_be_empty(home: FakeHome, tmp_path: Path) -> None:
    with switched(home, tmp_path / "switch") as switch:
        assert switch.post("/beat", b"").json == {"counted": True}
        assert switch.post("/beat", {}).json == {"counted": True}


def test_an_announced_absence_is_quiet_and_then_an_alarm(home: FakeHome, tmp_path: Path) -> None:
    options = ("--no-beat", "--boot", "1s", "--quiet", "6s")
    with switched(home, tmp_path / "switch", *options) as switch:
        switch.looks(1)
        assert switch.announce("on-battery", "--planned-s", "600").startswith("announced on-battery to http://")
        home.down()
        switch.looks(12)
        assert switch.notices() == [], "without the announcement, the alarm follows after half a second"
        (alarm,) = switch.wait_for(1)
        assert re.search(r"It announced \d+ s ago that mains failed\.", alarm.text)
        home.up()
        assert switch.wait_for(2)[1].ended


def test_a_reboot_within_its_time_gives_no_notice_at_all(home: FakeHome, tmp_path: Path) -> None:
    with switched(home, tmp_path / "switch", "--no-beat") as switch:
        switch.announce("reboot", "--planned-s", "300")
        home.down()
        switch.looks(12)
        home.up()
        state = tmp_path / "switch/state.json"
        wait_until(lambda: json.loads(state.read_text())["announcement"] is None, "its end", LONG)
        assert switch.notices() == []
        home.down()
        assert len(switch.wait_for(1)) == 1, "the switch watches as before"


def test_a_killed_switch_keeps_its_alarm(home: FakeHome, tmp_path: Path) -> None:
    with switched(home, tmp_path / "switch", "--no-beat") as switch:
        home.down()
        switch.wait_for(1)
        state = tmp_path / "switch/state.json"
        wait_until(state.exists, "the state", LONG)
        for _ in range(2):
            switch.process.stop(signal.SIGKILL)
            switch.start()
            switch.looks(12)
        assert len(switch.notices()) == 1
        switch.process.stop(signal.SIGKILL)
        home.up()
        switch.start()
        _, back = switch.wait_for(2)
        assert back.ended
        switch.looks(8)
        assert len(switch.notices()) == 2


def test_a_killed_switch_keeps_its_announcement(home: FakeHome, tmp_path: Path) -> None:
    with switched(home, tmp_path / "switch", "--no-beat") as switch:
        switch.announce("going-down")
        home.down()
        switch.process.stop(signal.SIGKILL)
        switch.start()
        switch.looks(12)
        assert switch.notices() == []


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "\0", '{"alarm": {"since": 1, "cause": 99}}', '{"announcement": {"kind": "x"}}',
     '{"announcement": {"kind": "x", "at": 1, "until": 2, "left": false, "returned": false}}'],
)  # fmt: skip
def test_a_damaged_state_is_kept_aside(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "state.json"
    file.write_text(damage)
    assert state_file.read(file, state_file.Clocks(50.0, 1e9), SwitchLimits()) == started(50.0)
    assert not file.exists()
    assert (tmp_path / "state.json.damaged").read_text() == damage
    assert "is damaged" in caplog.text


def test_a_state_that_cannot_be_read_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert state_file.read(tmp_path, state_file.Clocks(50.0, 1e9), SwitchLimits()) == started(50.0)
    assert "the switch starts without its state" in caplog.text


def test_a_clock_that_jumped_makes_no_endless_silence(home: FakeHome, tmp_path: Path) -> None:
    """The state is from a time at which the clock was a year ahead."""
    folder = tmp_path / "switch"
    folder.mkdir()
    far = 4e9
    one = {"kind": "going-down", "at": far - 60, "until": far, "left": True, "returned": False}
    (folder / "state.json").write_text(json.dumps({"announcement": one}))
    home.down()
    with switched(home, folder, "--no-beat", "--off", "2s") as switch:
        switch.wait_for(1)


def test_a_full_disk_delays_the_alarm_and_stops_nothing(home: FakeHome, small_disk: SmallDisk) -> None:
    with switched(home, small_disk.folder / "switch", "--no-beat") as switch:
        switch.looks(1)
        small_disk.fill()
        home.down()
        wait_until(lambda: switch.metrics()["appliance_deadman_home_alive"] == 0, "the alarm", LONG)
        switch.looks(5)
        assert switch.notices() == []
        assert switch.metrics()["appliance_deadman_notices_waiting"] == 1
        small_disk.free()
        assert len(switch.wait_for(1)) == 1
        switch.looks(3)
        assert len(switch.notices()) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/announce", b"", 400, "not an announcement"),
        ("/announce", b"{", 400, "not an announcement"),
        ("/announce", [], 400, "not an announcement"),
        ("/announce", {"planned_s": 5}, 400, "KIND of on-battery, going-down, reboot, back"),
        ("/announce", {"kind": "holiday"}, 400, "not an announcement"),
        ("/announce", {"kind": "reboot", "planned_s": "soon"}, 400, "not an announcement"),
        ("/announce", {"kind": "reboot", "planned_s": -1}, 400, "not between"),
        ("/announce", {"kind": "reboot", "planned_s": 1e300}, 400, "not between"),
        ("/announce", b'{"kind": "reboot", "planned_s": NaN}', 400, "not an announcement"),
        ("/beat", b"\xff", 400, "not a webhook"),
        ("/beat", b"[1]", 400, "not a webhook"),
        ("/beat", {"alerts": "many"}, 400, "not a webhook"),
        ("/beat", b"x" * 300_000, 413, "Content-Length"),
        ("/metrics", {}, 404, "POST /beat"),
    ],
)
def test_bad_requests_are_refused(
    serving_switch: Switch, path: str, body: object, status: int, message: str
) -> None:
    response = serving_switch.post(path, body)
    assert (response.status, message in response.json["error"]) == (status, True), response.body
    assert http(f"{serving_switch.process.url}/other").status == 404
    # The switch is as before: not quiet, and no beat counted.
    assert serving_switch.metrics()["appliance_deadman_home_alive"] == 1


@pytest.fixture(scope="module")
def serving_switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Switch]:
    home = FakeHome()
    home.up()
    try:
        with switched(home, tmp_path_factory.mktemp("bad") / "switch", "--no-beat") as switch:
            yield switch
            assert not (switch.folder / "state.json").exists()
    finally:
        home.down()


def test_the_handshake_is_in_metrics(home: FakeHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/wg"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '{PEER}\\t%s\\n' $(($(date +%s) - 100))\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with switched(home, tmp_path / "switch", "--no-beat", "--peer", PEER) as switch:
        switch.looks(2)
        assert 0 <= switch.metrics()["appliance_deadman_handshake_age_seconds"] < 100 + LONG


def test_all_metrics_have_the_names_of_the_alerts(serving_switch: Switch) -> None:
    names = "last_look_timestamp_seconds home_alive handshake_age_seconds beat_age_seconds ready notices_waiting"
    assert set(serving_switch.metrics()) == {f"appliance_deadman_{name}" for name in names.split()}


class _Pinged(BaseHTTPRequestHandler):
    count = 0

    def do_GET(self) -> None:
        type(self).count += 1
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the output of the tests clean."""


def test_the_outside_ping_ends_with_the_alarm(home: FakeHome, tmp_path: Path) -> None:
    outside = ThreadingHTTPServer(("127.0.0.1", free_port()), _Pinged)
    thread = threading.Thread(target=outside.serve_forever, args=(0.02,))
    thread.start()
    file = tmp_path / "url"
    file.write_text(f"http://127.0.0.1:{outside.server_port}/secret-part\n")
    try:
        options = ("--no-beat", "--ping-url-file", str(file), "--ping-every", "0.05s")
        with switched(home, tmp_path / "switch", *options) as switch:
            wait_until(lambda: _Pinged.count > 3, "pings", LONG)
            home.down()
            switch.wait_for(1)
            wait_until(lambda: "withheld" in switch.log.read_text(), "the end of the pings", LONG)
            pinged = _Pinged.count
            switch.looks(5)
            assert _Pinged.count == pinged
            home.up()
            wait_until(lambda: _Pinged.count > pinged, "pings", LONG)
    finally:
        outside.shutdown()
        thread.join()
        outside.server_close()
    log = switch.log.read_text()
    assert [log.count(result) for result in ("ping: sent", "ping: withheld", "secret-part")] == [2, 1, 0]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--silent", "30s"), 2, "error: --silent must be 3 times --interval or more: an alarm needs"),
        (("--interval", "0s"), 2, "error: --interval: the time must be longer than 0"),
        (("--quiet", "soon"), 2, "error: --quiet: 'soon' is not a duration"),
        (("--ping-url-file", "/nowhere/url"), 2, "error: /nowhere/url: No such file; put the URL into it"),
        (("--ping-url-file", "/etc/hostname"), 2, "the URL must begin with http:// or https://"),
        (("--folder", "/dev/null/x"), 1, "error: /dev/null/x cannot be written"),
    ],
)
def test_bad_options_end_in_one_line(
    options: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SERVE[3:], "--port", str(free_port()), *options]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_taken_port_ends_in_one_line(serving_switch: Switch, tmp_path: Path) -> None:
    argv = [*SERVE, "--folder", str(tmp_path), "--port", str(serving_switch.port)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, cwd=ROOT, timeout=LONG)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the dead man's switch cannot listen on 127.0.0.1:{serving_switch.port}")
    assert len(done.stderr.splitlines()) == 1


def test_the_switch_starts_before_its_address_exists(home: FakeHome, tmp_path: Path) -> None:
    """The tunnel may have no address yet."""
    argv = Switch(home, tmp_path / "switch", "--no-beat").argv
    argv[argv.index("--listen") + 1] = "198.51.100.7"
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"watches gpu at 127.0.0.1:{home.port}\n"
        process.terminate()
        assert process.wait(LONG) == 0
