"""The proof of a host, before the real gateway and the mock engine; each step is seen to fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.errors import StoreError
from appliance.smoketest import report
from appliance.smoketest.report import Proof, SmokeStep
from appliance.smoketest.run import SystemUnderTest, lock, prove, proven_before, tokens
from appliance.upgrade.nixos import RunningSystem
from appliance.upgrade.state import Generation
from tests.conftest import RunningService, serving

HERE = SystemUnderTest(RunningSystem(Generation("/nix/store/here", 8)), booted=True)
SMOKE = {"users": 2, "requests_per_user": 2, "max_tokens": 4, "slo": {"ttft_p99_ms": 20000, "tpot_p99_ms": 5000}}


@pytest.fixture(scope="module")
def site_and_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, RunningService]]:
    with serving(tmp_path_factory.mktemp("prove"), smoke=SMOKE) as service:
        yield load(service.config), service


def run(site: Site, service: RunningService, folder: Path) -> Proof:
    said: list[SmokeStep] = []
    made = prove(site, service.data, key=service.key, folder=folder, what=HERE, say=said.append)
    assert tuple(said) == made.steps, "what is said is what is kept"
    return made


def failed(made: Proof) -> set[str]:
    return {step.name for step in made.failed}


def test_a_working_host_passes_and_leaves_its_report(site_and_service: Any, tmp_path: Path) -> None:
    site, service = site_and_service
    made = run(site, service, tmp_path / "8")
    relevant = [step for step in made.failed if step.name.startswith(("token", "gateway", "load"))]
    assert not relevant, made.line
    assert {"token chat", "gateway refuses no key", "gateway takes a key", "load TTFT p99"} <= {
        step.name for step in made.steps
    }
    assert made.load is not None
    assert report.latest(tmp_path, HERE.place.generation) == made
    page = (tmp_path / "8" / "report.html").read_text()
    assert "Smoke test of generation 8" in page
    assert "http" not in page.replace("https", "http").split("<body")[0]
    assert json.loads((tmp_path / "8" / "report.json").read_text())["number"] == 8


def test_an_slo_that_is_missed_fails(site_and_service: Any, tmp_path: Path) -> None:
    site, service = site_and_service
    slo = site.smoke.slo.model_copy(update={"ttft_p99_ms": 0.001})
    strict = site.model_copy(update={"smoke": site.smoke.model_copy(update={"slo": slo})})
    made = run(strict, service, tmp_path)
    assert "load TTFT p99" in failed(made)
    assert "FAIL: " in made.line
    assert "load TTFT p99" in made.line


def test_a_wrong_key_means_no_load(site_and_service: Any, tmp_path: Path) -> None:
    site, service = site_and_service
    made = prove(site, service.data, key="sk-wrong", folder=tmp_path, what=HERE, say=lambda _: None)
    assert "gateway takes a key" in failed(made)
    assert made.load is None


def test_an_engine_that_does_not_answer_is_named(site_and_service: Any) -> None:
    site, _ = site_and_service
    engine = site.engines["chat"].model_copy(update={"port": 9})
    (step,) = tokens(site.model_copy(update={"engines": {"chat": engine}}), try_for_s=0.0)
    assert (step.name, step.level) == ("token chat", "fail")
    assert "ConnectionRefusedError" in step.seen
    assert "journalctl -u appliance-engine-chat" in step.mend


def test_an_engine_on_demand_is_not_asked(site_and_service: Any) -> None:
    site, _ = site_and_service
    engine = site.engines["chat"].model_copy(update={"port": 9, "residency": "on-demand"})
    (step,) = tokens(site.model_copy(update={"engines": {"chat": engine}}), try_for_s=0.0)
    assert step.level == "ok"


def test_a_gateway_that_is_down_is_named(site_and_service: Any) -> None:
    site, service = site_and_service
    down = site.model_copy(update={"gateway": site.gateway.model_copy(update={"port": 9})})
    (step,) = lock(down, service.key)
    assert step.level == "fail"
    assert "no answer" in step.seen


def test_an_open_gateway_fails(site_and_service: Any) -> None:
    """The engine itself stands for a gateway that asks nobody for a key."""
    site, service = site_and_service
    open_door = site.model_copy(update={"gateway": site.gateway.model_copy(update={"port": service.engine.port})})
    assert [step.level for step in lock(open_door, service.key)] == ["fail", "fail", "ok"]


def a_proof(*, passed: bool = True, booted: bool = True, system: str = "/nix/store/here") -> Proof:
    step = SmokeStep("x", "ok" if passed else "fail", "y")
    return Proof(system, 8, booted, "2026-11-25T22:00:00+00:00", 1.0, (step,))


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
def test_once_per_generation(earlier: Proof | None, booted: bool, again: bool, tmp_path: Path) -> None:
    if earlier is not None:
        report.save(earlier, report.folder_of(tmp_path, HERE.place.generation))
    found = proven_before(tmp_path, SystemUnderTest(HERE.place, booted), tmp_path / "begun")
    assert (found is None) is again


def test_a_switch_is_always_proven(tmp_path: Path) -> None:
    report.save(a_proof(), report.folder_of(tmp_path, HERE.place.generation))
    begun = tmp_path / "begun"
    assert proven_before(tmp_path, HERE, begun) is not None
    assert proven_before(tmp_path, HERE, begun) is None, "the second of one boot follows a switch"


def test_half_a_report_is_none(tmp_path: Path) -> None:
    folder = report.folder_of(tmp_path, HERE.place.generation)
    report.save(a_proof(), folder)
    text = (folder / "report.json").read_text()
    (folder / "report.json").write_text(text[: len(text) // 2])
    assert report.latest(tmp_path, HERE.place.generation) is None
    (folder / "report.json").write_text("[]")
    assert report.latest(tmp_path, HERE.place.generation) is None


def test_a_report_that_cannot_be_kept_is_no_pass(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        report.save(a_proof(), tmp_path / "file" / "8")


def test_nothing_looked_at_is_no_pass() -> None:
    empty = Proof("/nix/store/here", None, True, "", 0.0, ())
    assert not empty.passed
    assert "nothing was looked at" in empty.line


def test_the_page_escapes_what_it_shows() -> None:
    page = report.page(Proof("/nix/store/<b>", None, True, "", 0.0, (SmokeStep("<i>", "fail", "<script>"),)))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
