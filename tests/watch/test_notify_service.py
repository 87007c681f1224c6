"""``appliance notify`` as processes, with a real Bot API server on loopback."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.notices.notice import Notice
from appliance.notices.outbox import Outbox
from appliance.watch.delivery import REPEATED
from tests.command_line import run_command
from tests.conftest import ROOT, StartedProcess, start, wait_until
from tests.conftest import http as send
from tests.fakes.bot_api import CHAT, TOKEN, BotApi, bot_api
from tests.ports import free_port

SECRET = TOKEN.partition(":")[2]
UNIT_STOP_S = 45
"""TimeoutStopSec of the unit. The service ends a wait for Telegram after 5 s, and then waits for a busy disk."""


@pytest.fixture
def api() -> Iterator[BotApi]:
    with bot_api() as running:
        yield running


class NotifyingMachine:
    """A folder with an outbox, and the commands of one machine."""

    def __init__(self, folder: Path, api: BotApi) -> None:
        self.folder, self.api = folder, api
        self.outbox = Outbox(folder / "outbox")
        self.token_file = folder / "token"
        self.token_file.write_text(TOKEN + "\n")
        self.log = folder / "log"
        self.port = free_port()

    def options(self, chat: str = CHAT) -> list[str]:
        return ["--token-file", str(self.token_file), "--chat", chat, "--host", "gpu", "--api", self.api.url]

    def serve(self) -> StartedProcess:
        argv = [
            sys.executable, "-m", "appliance", "notify", "serve", "--outbox", str(self.outbox.folder),
            "--port", str(self.port), "--metrics", str(self.folder / "notify.prom"),
            "--status", str(self.folder / "status.json"), *self.options(),
        ]  # fmt: skip
        return start(argv, self.port, self.log)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command("notify", *arguments)

    def status(self) -> dict[str, Any]:
        file = self.folder / "status.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def metric(self, name: str) -> float:
        file = self.folder / "notify.prom"
        # It is written after the status.
        wait_until(file.exists, "the metrics")
        text = file.read_text()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.fixture
def machine(tmp_path: Path, api: BotApi) -> NotifyingMachine:
    return NotifyingMachine(tmp_path, api)


@pytest.fixture
def service(machine: NotifyingMachine) -> Iterator[StartedProcess]:
    running = machine.serve()
    yield running
    assert running.stop() == 0, machine.log.read_text()
    assert "Traceback" not in machine.log.read_text(), machine.log.read_text()


def alert(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "status": "firing",
        "labels": {
            "alertname": "EngineDown",
            "severity": "page",
            "engine": f"chat.{number}",
            "instance": "127.0.0.1",
        },
        "annotations": {"summary": f"engine chat.{number} is down", "fix": "journalctl -u appliance-engine-chat"},
        "startsAt": "2026-11-27T12:00:00.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": f"{number:016x}",
        "generatorURL": "http://127.0.0.1:9090/graph",
    } | changes


def group(*alerts: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "4", "groupKey": "{}:{}", "truncatedAlerts": 0, "status": "firing", "receiver": "notify",
        "groupLabels": {}, "commonLabels": {}, "commonAnnotations": {}, "externalURL": "", "alerts": list(alerts),
    }  # fmt: skip


def test_notices_of_agents_and_alerts_of_prometheus_arrive(
    machine: NotifyingMachine, service: StartedProcess, api: BotApi
) -> None:
    machine.outbox.put(Notice("on-battery", "ups", "mains is off", 0.0))
    wait_until(lambda: len(api.delivered) == 1, "the notice")
    body = group(alert(1), alert(2), alert(labels={"alertname": "Watchdog", "severity": "page"}))
    assert send(f"{service.url}/alerts", body=body).status == 200
    wait_until(lambda: len(api.delivered) == 2, "the alerts")
    text = api.delivered[1]
    assert "EngineDown, engine chat.1" in text
    assert "engine chat.2 is down\nFix: journalctl" in text
    assert "Watchdog" not in text

    # Alertmanager repeats what fires, and adds what changed.
    assert send(f"{service.url}/alerts", body=group(alert(1), alert(2))).status == 200
    ended = alert(1, status="resolved", endsAt="2026-11-27T12:10:00Z")
    assert send(f"{service.url}/alerts", body=group(ended, alert(2))).status == 200
    wait_until(lambda: len(api.delivered) == 3, "the end")
    assert api.delivered[2].startswith("gpu: EngineDown ended, engine chat.1, ")
    wait_until(lambda: not machine.outbox.waiting() and machine.metric("appliance_notify_sent_total") == 3, "all")
    assert len(api.delivered) == 3
    assert machine.metric("appliance_notify_waiting") == 0
    assert machine.metric("appliance_notify_failures_total") == 0
    assert machine.status() | {"at": 0} == {
        "at": 0, "waiting": 0, "due_since": None, "refused": 0, "problem": "", "misconfigured": False,
    }  # fmt: skip


def test_the_end_of_an_event_is_not_a_message(
    machine: NotifyingMachine, service: StartedProcess, api: BotApi
) -> None:
    labels = {"alertname": "BudgetUsed", "severity": "page", "user": "ada", "period": "2026-11"}
    used, ended = alert(1, labels=labels), alert(1, labels=labels, status="resolved")
    assert send(f"{service.url}/alerts", body=group(used)).status == 200
    wait_until(lambda: len(api.delivered) == 1, "the alert")
    assert "BudgetUsed, user ada, period 2026-11" in api.delivered[0]
    assert send(f"{service.url}/alerts", body=group(ended, alert(2))).status == 200
    wait_until(lambda: len(api.delivered) == 2, "the other alert")
    assert "Budget" not in api.delivered[1]


def test_a_request_that_alertmanager_does_not_send_is_rejected(
    machine: NotifyingMachine, service: StartedProcess, api: BotApi
) -> None:
    def status(body: object, path: str = "/alerts") -> int:
        return send(service.url + path, body=body).status

    assert status(b"{") == 400
    assert status({"alerts": [{"labels": []}]}) == 400
    assert status({"alerts": "x"}) == 400
    assert status([]) == 400
    assert status(group(alert()), path="/other") == 404
    too_long = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    too_long.request("POST", "/alerts", headers={"Content-Length": "1000001"})
    assert too_long.getresponse().status == 413
    too_long.close()
    assert send(f"{service.url}/alerts").status == 501
    assert status(group(alert(startsAt="yesterday", annotations={}))) == 200
    wait_until(lambda: len(api.delivered) == 1, "an alert without texts and times")
    assert "EngineDown" in api.delivered[0]


def test_an_alert_for_the_digest_waits(machine: NotifyingMachine, service: StartedProcess, api: BotApi) -> None:
    """The service's hour is 8, so that only a run at that time of the day would send it: none is due before."""
    body = group(alert(labels={"alertname": "DiskFilling", "severity": "digest", "mountpoint": "/var"}))
    assert send(f"{service.url}/alerts", body=body).status == 200
    page = group(alert(7))
    assert send(f"{service.url}/alerts", body=page).status == 200
    wait_until(lambda: any("chat.7" in text for text in api.delivered), "the page")
    shown = [text for text in api.delivered if "DiskFilling" in text]
    assert all("daily digest" in text for text in shown)


def test_a_second_service_on_the_same_outbox_refuses_to_start(
    machine: NotifyingMachine, service: StartedProcess
) -> None:
    done = machine.run("serve", "--outbox", str(machine.outbox.folder), *machine.options())
    assert done.returncode == 1
    assert f"process {service.process.pid} sends the notices of {machine.outbox.folder} already" in done.stderr


def test_the_token_is_in_no_log_argument_or_file(
    machine: NotifyingMachine, service: StartedProcess, api: BotApi
) -> None:
    api.failures.extend(["reset", "403:Forbidden", f"400:path /bot{TOKEN}/sendMessage", "502"])
    machine.outbox.put(Notice("on-battery", "ups", "mains is off", 0.0))
    wait_until(lambda: api.requests >= 2, "two attempts")
    wait_until(lambda: bool(machine.status().get("problem")), "the problem")
    pid = service.process.pid
    seen = [Path(f"/proc/{pid}/cmdline").read_bytes(), Path(f"/proc/{pid}/environ").read_bytes()]
    seen += [file.read_bytes() for file in machine.folder.rglob("*") if file.is_file() and file.name != "token"]
    assert not [one for one in seen if SECRET.encode() in one]
    assert machine.status()["waiting"] == 1


def test_a_token_that_is_not_valid_keeps_the_notices_and_names_the_fix(
    machine: NotifyingMachine, api: BotApi
) -> None:
    machine.token_file.write_text("123456:another-token-of-the-same-bot-000000")
    machine.outbox.put(Notice("on-battery", "ups", "mains is off", 0.0))
    running = machine.serve()
    try:
        wait_until(lambda: api.requests > 0 and machine.status().get("misconfigured", False), "the failure")
        assert "does not accept the token" in machine.status()["problem"]
        assert machine.status()["due_since"] == 0.0
        assert machine.metric("appliance_notify_oldest_seconds") > 1e9
    finally:
        assert running.stop() == 0
    machine.token_file.write_text(TOKEN)
    running = machine.serve()
    try:
        wait_until(lambda: len(api.delivered) == 1, "the kept notice")
    finally:
        running.stop()


def test_a_stop_during_a_request_that_hangs_is_bounded_and_the_repetition_is_marked(
    machine: NotifyingMachine, api: BotApi
) -> None:
    api.failures.append("hang")
    machine.outbox.put(Notice("going-down", "gpu", "the battery is low", 0.0))
    running = machine.serve()
    wait_until(lambda: len(api.delivered) == 1, "the request")
    running.process.terminate()
    assert running.process.wait(UNIT_STOP_S) == 0
    running = machine.serve()
    try:
        wait_until(lambda: len(api.delivered) == 2, "the repetition")
    finally:
        running.stop()
    assert api.delivered[1] == f"{REPEATED}\n{api.delivered[0]}"


def test_a_notice_that_is_put_just_before_the_stop_is_sent(machine: NotifyingMachine, api: BotApi) -> None:
    running = machine.serve()
    wait_until((machine.folder / "status.json").exists, "the first look")
    machine.outbox.put(Notice("going-down", "gpu", "the battery is low", 0.0))
    assert running.stop() == 0
    assert len(api.delivered) == 1


def test_messages_by_hand_and_the_list_of_waiting_ones(machine: NotifyingMachine, api: BotApi) -> None:
    outbox = ["--outbox", str(machine.outbox.folder)]
    assert (
        machine.run("send", "look", "--kind", "card-hot", "--subject", "card 1", *outbox).stdout
        == "it is sent at once\n"
    )
    assert machine.run("send", "later", *outbox).stdout == "it waits for the daily digest\n"
    shown = json.loads(machine.run("status", "--json", "--status", str(machine.folder / "absent"), *outbox).stdout)
    assert shown["service"] is None
    assert [(one["kind"], one["text"], one["pages"]) for one in shown["waiting"]] == [
        ("card-hot", "look", True), ("operator", "later", False),
    ]  # fmt: skip
    text = machine.run("status", "--status", str(machine.folder / "absent"), *outbox).stdout
    assert "service: stopped" in text
    assert "card-hot, card 1, page: 'look'" in text


def test_the_test_message_reports_its_result(machine: NotifyingMachine, api: BotApi) -> None:
    done = machine.run("test", *machine.options())
    assert (done.returncode, len(api.delivered)) == (0, 1), done.stderr
    done = machine.run("test", *machine.options(chat="1"))
    assert done.returncode == 1
    assert "does not accept the chat (400 Bad Request: chat not found)" in done.stderr
    machine.token_file.write_text("no token")
    done = machine.run("test", *machine.options())
    assert done.returncode == 2
    assert "does not hold the token of a bot" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--digest-hour", "24"), "--digest-hour 24: is not an hour"),
        (("--port", "70000"), "--port 70000: is not a port"),
        (("--api", "telegram"), "not a valid address"),
    ],
)
def test_arguments_that_are_not_valid(machine: NotifyingMachine, arguments: tuple[str, str], message: str) -> None:
    done = machine.run("serve", "--outbox", str(machine.outbox.folder), *machine.options(), *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kill_at_20_random_moments_loses_nothing_and_repeats_nothing_without_a_mark(
    machine: NotifyingMachine, api: BotApi, seed: int
) -> None:
    dice = random.Random(seed)
    api.delay_s = 0.03
    argv = [sys.executable, "-m", "tests.watch.sender_process", str(machine.outbox.folder), str(machine.token_file)]
    pause = threading.Event()
    kinds = ["on-battery", "card-hot", "trial", "swap"]
    texts = []
    with machine.log.open("wb") as log, subprocess.Popen(
        [*argv, api.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as forker:  # fmt: skip
        assert forker.stdin is not None
        assert forker.stdout is not None

        def sender() -> int:
            assert forker.stdin is not None
            assert forker.stdout is not None
            forker.stdin.write("\n")
            forker.stdin.flush()
            return int(forker.stdout.readline())

        for number in range(20):
            # Each has a subject of its own, so that a sum omits no text.
            text = f"<{number}>"
            texts.append(text)
            machine.outbox.put(Notice(dice.choice(kinds), f"s{number}", text, 0.0))
            before = api.requests
            pid = sender()
            if dice.random() < 0.7:
                wait_until(lambda before=before: api.requests > before, "a request")  # type: ignore[misc]
                pause.wait(dice.uniform(0, 0.05))
            else:
                pause.wait(dice.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            assert forker.stdout.readline() == "ended\n"
        api.delay_s = 0.0
        pid = sender()
        wait_until(lambda: not list(machine.outbox.folder.rglob("[0-9]*.json")), "the rest", 60)
        os.kill(pid, signal.SIGTERM)
        assert forker.stdout.readline() == "ended\n"
        forker.stdin.close()
    repeats = 0
    for text in texts:
        seen = [one for one in api.delivered if text in one]
        assert seen, f"{text} is lost"
        unmarked = [one for one in seen if not one.startswith(REPEATED)]
        assert len(unmarked) <= 1, unmarked
        repeats += len(seen) - 1
    assert repeats > 0, "no kill hit a request: the test proves nothing"
