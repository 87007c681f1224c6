"""Fixtures of the running watchdog."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.gateway import control_client
from tests.conftest import RunningService, StartedProcess, a_site, serving, start_mock
from tests.gateway.running.conftest import one_engine
from tests.watch.gpu.machine import WatchedMachine

NAMES = ("left", "right")
MODEL = "RTX PRO 6000 Blackwell Workstation"


@pytest.fixture
def kernel_log() -> None:
    """Skip a test that needs the kernel's log."""
    if not os.access("/dev/kmsg", os.R_OK | os.W_OK):
        pytest.skip("NOT CHECKED: the kernel's log needs root")


HOSTS = {
    "here": {
        "memory_gib": 8,
        "gpus": [{"index": i, "model": MODEL, "memory_mib": 97887, "power_limit_w": 450} for i in (0, 1)],
    }
}


def engine(card: int, port: int) -> dict[str, Any]:
    """A mock engine that uses this card."""
    return one_engine(8) | {"host": "here", "device": "cuda", "gpus": [card], "port": port}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[WatchedMachine]:
    """A machine without a gateway."""
    config = tmp_path / "site.json"
    engines = {name: engine(card, 9000 + card) for card, name in enumerate(NAMES)}
    config.write_text(json.dumps(a_site(8000, 9000, tmp_path, hosts=HOSTS, engines=engines)))
    made = WatchedMachine(tmp_path / "machine", config, bus=f"{secrets.token_hex(2)}:{secrets.token_hex(1)}")
    yield made
    made.stop()


@dataclass
class WatchedService:
    """A gateway, the engines ``left`` on card 0 and ``right`` on card 1, and their machine."""

    service: RunningService
    engines: dict[str, StartedProcess]
    machine: WatchedMachine

    def drains(self) -> dict[str, str | None]:
        """The reason of each replica's drain."""
        table = control_client.status(self.service.data)["engines"]
        return {name: one["draining"] for name, one in table.items()}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedService]:
    """A gateway whose canaries find a hung engine within seconds."""
    engines = {name: start_mock(tmp_path / f"{name}.log") for name in NAMES}
    sections = {name: engine(card, engines[name].port) for card, name in enumerate(NAMES)}
    gateway = {"canary_interval_s": 0.5, "canary_timeout_s": 5.0}
    try:
        with serving(tmp_path / "gateway", hosts=HOSTS, engines=sections, gateway=gateway) as service:
            made = WatchedMachine(
                tmp_path / "machine", service.config, bus=f"{secrets.token_hex(2)}:{secrets.token_hex(1)}"
            )
            try:
                yield WatchedService(service, engines, made)
            finally:
                made.stop()
    finally:
        for one in engines.values():
            one.process.kill()
            one.process.wait()
