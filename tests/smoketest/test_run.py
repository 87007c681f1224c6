"""The smoke test against the real gateway and the fake engine, and the failure of each step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.contract.model import Site
from appliance.smoketest import report
from appliance.smoketest.report import Proof, SmokeStep
from appliance.smoketest.run import SystemUnderTest, check_auth, check_tokens, passed_before, run_smoke_test
from tests.conftest import RunningService
from tests.smoketest.conftest import HERE, a_proof

SiteAndService = tuple[Site, RunningService]


def run(site: Site, service: RunningService, folder: Path) -> Proof:
    shown: list[SmokeStep] = []
    proof = run_smoke_test(site, service.data, key=service.key, folder=folder, system=HERE, on_step=shown.append)
    assert tuple(shown) == proof.steps, "the report has the steps that were shown"
    return proof


def failed(proof: Proof) -> set[str]:
    return {step.name for step in proof.failed}


def test_a_working_host_passes_and_its_report_is_kept(site_and_service: SiteAndService, tmp_path: Path) -> None:
    site, service = site_and_service
    proof = run(site, service, tmp_path / "8")
    relevant = [step for step in proof.failed if step.name.startswith(("token", "gateway", "load"))]
    assert not relevant, proof.line
    assert {"token chat", "gateway refuses no key", "gateway takes a key", "load TTFT p99"} <= {
        step.name for step in proof.steps
    }
    assert proof.load is not None
    assert report.latest(tmp_path, HERE.running.generation) == proof
    page = (tmp_path / "8" / "report.html").read_text()
    assert "Smoke test of generation 8" in page
    assert "http" not in page.replace("https", "http").split("<body")[0]
    assert json.loads((tmp_path / "8" / "report.json").read_text())["number"] == 8


def test_a_missed_slo_fails(site_and_service: SiteAndService, tmp_path: Path) -> None:
    site, service = site_and_service
    slo = site.smoke.slo.model_copy(update={"ttft_p99_ms": 0.001})
    strict = site.model_copy(update={"smoke": site.smoke.model_copy(update={"slo": slo})})
    proof = run(strict, service, tmp_path)
    assert "load TTFT p99" in failed(proof)
    assert "FAIL: " in proof.line
    assert "load TTFT p99" in proof.line


def test_no_load_is_run_after_an_unknown_key(site_and_service: SiteAndService, tmp_path: Path) -> None:
    site, service = site_and_service
    proof = run_smoke_test(site, service.data, key="sk-wrong", folder=tmp_path, system=HERE, on_step=lambda _: None)
    assert "gateway takes a key" in failed(proof)
    assert proof.load is None


def test_an_engine_that_is_down_is_named(site_and_service: SiteAndService) -> None:
    site, _ = site_and_service
    engine = site.engines["chat"].model_copy(update={"port": 9})
    (step,) = check_tokens(site.model_copy(update={"engines": {"chat": engine}}), timeout_s=0.0)
    assert (step.name, step.level) == ("token chat", "fail")
    assert "ConnectionRefusedError" in step.seen
    assert "journalctl -u appliance-engine-chat" in step.fix


def test_an_engine_on_demand_is_skipped(site_and_service: SiteAndService) -> None:
    site, _ = site_and_service
    engine = site.engines["chat"].model_copy(update={"port": 9, "residency": "on-demand"})
    (step,) = check_tokens(site.model_copy(update={"engines": {"chat": engine}}), timeout_s=0.0)
    assert step.level == "ok"


def test_a_gateway_that_is_down_is_named(site_and_service: SiteAndService) -> None:
    site, service = site_and_service
    down = site.model_copy(update={"gateway": site.gateway.model_copy(update={"port": 9})})
    (step,) = check_auth(down, service.key)
    assert step.level == "fail"
    assert "no response" in step.seen


def test_a_gateway_without_authentication_fails(site_and_service: SiteAndService) -> None:
    """The engine itself takes the place of a gateway that requires no key."""
    site, service = site_and_service
    engine = site.model_copy(update={"gateway": site.gateway.model_copy(update={"port": service.engine.port})})
    assert [step.level for step in check_auth(engine, service.key)] == ["fail", "fail", "ok"]


@pytest.mark.parametrize(
    ("earlier", "booted", "again"),
    [
        (a_proof(), True, False),
        (a_proof(passed=False), True, True),
        (a_proof(booted=False), True, True),
        (a_proof(system="/nix/store/other"), True, True),
        (a_proof(), False, True),
        (None, True, True),
    ],
)
def test_a_generation_is_tested_until_it_passed_after_a_boot(
    earlier: Proof | None, booted: bool, again: bool, tmp_path: Path
) -> None:
    if earlier is not None:
        report.save(earlier, report.folder_of(tmp_path, HERE.running.generation))
    found = passed_before(tmp_path, SystemUnderTest(HERE.running, booted), tmp_path / "begun")
    assert (found is None) is again


def test_a_live_switch_is_always_tested(tmp_path: Path) -> None:
    report.save(a_proof(), report.folder_of(tmp_path, HERE.running.generation))
    begun = tmp_path / "begun"
    assert passed_before(tmp_path, HERE, begun) is not None
    assert passed_before(tmp_path, HERE, begun) is None, "the second of one boot follows a switch"
