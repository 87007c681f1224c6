"""Fixtures: a UPS of NUT, a gateway with an engine, and a host around them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningService, serving
from tests.watch.power.host import PowerHost, engine_process, power_host
from tests.watch.power.nut import Nut, running

HOST = {
    "memory_gib": 8,
    "gpus": [
        {"index": 0, "model": "RTX PRO 6000 Blackwell Workstation", "memory_mib": 97887, "power_limit_w": 400},
    ],
    "ups": {"watts": 900, "host_watts": 250, "reserve_s": 180},
}


@pytest.fixture(scope="module")
def nut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nut]:
    with running(tmp_path_factory.mktemp("nut") / "etc") as one:
        yield one


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, hosts={"here": HOST}) as one, engine_process(one, folder / "engine.pid"):
        yield one


@pytest.fixture
def host(tmp_path: Path, nut: Nut, service: RunningService) -> Iterator[PowerHost]:
    nut.set(ups_status="OL", battery_charge="100", battery_runtime="900")
    with power_host(tmp_path, nut, service, service.data / "engine.pid") as one:
        one.start_engine()
        yield one
