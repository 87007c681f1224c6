"""Whose fault a failure is: check by check as data, and that only a generation's own fail its smoke test."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.contract.machine import Edge
from appliance.doctor.checks.edge import judge_front
from appliance.doctor.checks.xid import HARDWARE_XIDS, MEMORY_XIDS
from appliance.doctor.finding import FaultDomain, Finding, Level
from appliance.doctor.runner import CHECKS
from appliance.smoketest.report import Proof, page
from appliance.smoketest.run import step_of
from tests.conftest import ROOT
from tests.doctor.breaks import Break
from tests.doctor.fakehost import FakeHost
from tests.doctor.test_every_check import CASES, broken_host, steady

__all__ = ["steady"]

EXTERNAL = {"throttle", "clock", "disk", "gateways", "certificate"}
EXCEPTIONS = {("certificate", "another name"), ("certificate", "nobody serves"), ("xid", "its memory")}
"""Failures whose verdict names the other domain than their check's."""

FAILING = [(name, what, broken, seen) for name, what, broken, level, seen in CASES if level == "fail"]


def test_every_check_has_its_domain_and_says_where_it_has_both() -> None:
    assert {check.name for check in CHECKS if check.fault_domain == "external"} == EXTERNAL
    assert {check.name for check in CHECKS if check.exceptions} == {"xid", "tunnel", "certificate", "edge"}
    assert {name for name, _ in EXCEPTIONS} <= {check.name for check in CHECKS if check.exceptions}


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(
    ("name", "what", "broken", "seen"), FAILING, ids=[f"{one[0]}: {one[1]}" for one in FAILING]
)
def test_whose_fault_each_failure_is(
    name: str, what: str, broken: Break, seen: str, request: pytest.FixtureRequest
) -> None:
    host = broken_host(name, what, broken, request)
    expected: FaultDomain = "external" if (name in EXTERNAL) is not ((name, what) in EXCEPTIONS) else "generation"
    found = [one for one in host.look(name) if one.level == "fail" and seen in one.seen]
    assert {one.fault_domain for one in found} == {expected}, found
    assert {step_of(one).level for one in found} == {"warn" if expected == "external" else "fail"}


@pytest.mark.parametrize(
    ("numbers", "asked", "domains"),
    [
        ((48,), "Reset", {"external"}),
        ((95, 64), "Drain and Reset", {"external"}),
        ((79,), "Reboot", {"generation"}),  # off the bus: a slot, a driver, or a kernel parameter
        ((119,), "None", {"generation"}),
        ((95, 79), "Reset", {"external", "generation"}),
        ((), "Reset", {"generation"}),
    ],
)
def test_the_cards_own_memory_is_no_drivers_fault(
    numbers: tuple[int, ...], asked: str, domains: set[str], gpu: FakeHost
) -> None:
    log = "".join(f"NVRM: Xid (PCI:0000:41:00): {number}, pid=1, x.\n" for number in numbers)
    gpu.says("journalctl", f"Linux version 6.18.53\n{log}")
    gpu.says("recovery", f"0, {asked}\n")
    found = [one for one in gpu.look("xid") if one.level == "fail"]
    assert {one.fault_domain for one in found} == domains
    recovery = [one.fault_domain for one in found if one.subject.startswith("card")]
    assert recovery in ([], ["external" if domains == {"external"} else "generation"])
    assert MEMORY_XIDS < HARDWARE_XIDS


@pytest.mark.parametrize(
    ("status", "domain"), [(502, "external"), (503, "external"), (504, "external"), (200, None), ("refused", None)]
)
def test_an_edge_without_a_gateway_behind_it(status: int | str, domain: FaultDomain | None) -> None:
    edge = Edge(domain="llm.example.org", certificate="/c", nginx="1.30.7", gateways=("10.77.0.1:8000",))
    verdict = judge_front(edge, status)
    assert (verdict.level, verdict.fault_domain) == ("fail", domain)


def a_result(level: Level, domain: FaultDomain) -> Finding:
    return Finding(
        name="throttle",
        subject="card 0",
        level=level,
        seen="heat; 91 °C",
        meaning="slow",
        fix="cool the room",
        fault_domain=domain,
    )


@pytest.mark.parametrize(
    ("level", "domain", "step", "external"),
    [
        ("fail", "generation", "fail", False),
        ("fail", "external", "warn", True),
        ("warn", "external", "warn", False),  # what the doctor only warns of is no failure of anybody's
        ("unknown", "generation", "warn", False),
        ("ok", "external", "ok", False),
    ],
)
def test_a_step_fails_for_a_generation_only(level: Level, domain: FaultDomain, step: str, external: bool) -> None:
    made = step_of(a_result(level, domain))
    assert (made.level, made.external, made.fix) == (step, external, "cool the room")


def test_what_is_external_stands_in_the_verdicts_line_and_on_the_page() -> None:
    outside, own = step_of(a_result("fail", "external")), step_of(a_result("fail", "generation"))
    passed = Proof("/nix/store/here", 8, True, "", 3.0, (outside,))
    assert passed.passed
    assert passed.line == (
        "smoke test of generation 8: PASS, 1 steps, 1 with a warning, 3 s; external: throttle card 0: heat; 91 °C"
    )
    assert "no generation causes or fixes it" in page(passed)
    failed = Proof("/nix/store/here", 8, True, "", 3.0, (own, outside))
    assert not failed.passed
    assert failed.line.startswith("smoke test of generation 8: FAIL: throttle card 0: heat; 91 °C; external: ")
    assert "no generation" not in page(Proof("/nix/store/here", 8, True, "", 3.0, (own,)))


def test_the_decision_lists_every_check() -> None:
    text = Path(ROOT / "docs/decisions/0011-fault-domains.md").read_text()
    missing = [check.name for check in CHECKS if f"`{check.name}`" not in text]
    assert not missing
