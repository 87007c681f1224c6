"""A real Alertmanager, the service that sends notices, and a Bot API server: an alert arrives once, and its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartedProcess, http, start, wait_until
from tests.fakes.bot_api import CHAT, TOKEN, BotApi, bot_api
from tests.nix import checker
from tests.ports import free_port


@pytest.fixture
def api() -> Iterator[BotApi]:
    with bot_api() as running:
        yield running


@pytest.fixture
def alertmanager(tmp_path: Path, api: BotApi) -> Iterator[StartedProcess]:
    """Alertmanager before ``appliance notify serve``; it repeats alerts that still fire after two seconds."""
    program = checker.require("prometheus-alertmanager")
    token, port, webhook = tmp_path / "token", free_port(), free_port()
    token.write_text(TOKEN)
    config = tmp_path / "alertmanager.json"
    url = f"http://127.0.0.1:{webhook}/alerts"
    receiver = {"name": "notices", "webhook_configs": [{"url": url, "send_resolved": True}]}
    route = {"receiver": "notices", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s",
             "repeat_interval": "2s"}  # fmt: skip
    config.write_text(json.dumps({"route": route, "receivers": [receiver]}))
    serve = [
        sys.executable, "-m", "appliance", "notify", "serve", "--outbox", str(tmp_path / "outbox"),
        "--token-file", str(token), "--chat", CHAT, "--host", "gpu", "--api", api.url, "--port", str(webhook),
    ]  # fmt: skip
    argv = [
        program, f"--config.file={config}", f"--storage.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    ]  # fmt: skip
    sender = start(serve, webhook, tmp_path / "notify.log")
    try:
        running = start(argv, port, tmp_path / "alertmanager.log")
        try:
            yield running
        finally:
            running.stop()
    finally:
        assert sender.stop() == 0
        assert "Traceback" not in (tmp_path / "notify.log").read_text()


def test_an_alert_arrives_once_however_often_it_is_repeated_and_its_end_arrives(
    alertmanager: StartedProcess, api: BotApi
) -> None:
    labels = {"alertname": "EngineDown", "severity": "page", "engine": "chat.0"}
    began = datetime.now(UTC) - timedelta(minutes=5)

    def post(ends: datetime) -> None:
        alert: dict[str, Any] = {
            "labels": labels,
            "annotations": {"summary": "engine chat.0 is down", "fix": "appliance models status"},
            "startsAt": began.isoformat(),
            "endsAt": ends.isoformat(),
        }
        assert http(f"{alertmanager.url}/api/v2/alerts", body=[alert]).status == 200

    def posts() -> float:
        lines = http(f"{alertmanager.url}/metrics").body.decode().splitlines()
        name = 'alertmanager_notifications_total{integration="webhook"'
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    post(datetime.now(UTC) + timedelta(hours=1))
    wait_until(lambda: len(api.delivered) == 1, "the alert", 60)
    assert "EngineDown, engine chat.0" in api.delivered[0]
    assert "Fix: appliance models status" in api.delivered[0]
    wait_until(lambda: posts() >= 3, "two repetitions", 60)
    post(datetime.now(UTC))
    wait_until(lambda: len(api.delivered) > 1, "the end", 60)
    assert api.delivered[1].startswith("gpu: EngineDown ended, engine chat.0")
    assert len(api.delivered) == 2
