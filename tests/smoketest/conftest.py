"""A system under test, its site, and reports on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.smoketest.report import Proof, SmokeStep
from appliance.smoketest.run import SystemUnderTest
from appliance.upgrade.nixos import RunningSystem
from appliance.upgrade.state import Generation
from tests.conftest import RunningService, serving

HERE = SystemUnderTest(RunningSystem(Generation("/nix/store/here", 8)), booted=True)
SMOKE = {"users": 2, "requests_per_user": 2, "max_tokens": 4, "slo": {"ttft_p99_ms": 20000, "tpot_p99_ms": 5000}}


@pytest.fixture(scope="module")
def site_and_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, RunningService]]:
    """A running gateway before the fake engine, and its site."""
    with serving(tmp_path_factory.mktemp("smoke"), smoke=SMOKE) as service:
        yield load(service.config), service


def a_proof(*, passed: bool = True, booted: bool = True, system: str = "/nix/store/here") -> Proof:
    step = SmokeStep("x", "ok" if passed else "fail", "y")
    return Proof(system, 8, booted, "2026-11-25T22:00:00+00:00", 1.0, (step,))
