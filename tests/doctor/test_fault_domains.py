"""The fault domain of each failure; only those of a generation fail its smoke test."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.catalog.xids import HARDWARE_XIDS, MEMORY_XIDS
from appliance.contract.machine import Edge
from appliance.doctor.checks.edge import judge_front
from appliance.doctor.finding import FaultDomain, Finding, Level
from appliance.doctor.runner import CHECKS
from appliance.smoketest.report import Proof, page
from appliance.smoketest.run import step_of
from tests.conftest import ROOT
from tests.doctor.defects import CASES, Defect, defective_host
from tests.doctor.fakehost import FakeHost

EXTERNAL = {
    "throttle",
    "cooling",
    "clock",
    "disk",
    "ups",
    "gateways",
    "certificate",
    "notices",
    "backup",
    "pool",
    "telegram",
}
EXCEPTIONS = {
    ("certificate", "another name"),
    ("certificate", "not served"),
    ("xid", "its memory"),
    ("assistant", "Qdrant is down"),
}
"""Failures whose finding has another domain than the check."""

FAILING = [(name, what, defect, seen) for name, what, defect, level, seen in CASES if level == "fail"]


def test_every_check_has_a_domain_and_lists_its_exceptions() -> None:
    assert {check.name for check in CHECKS if check.fault_domain == "external"} == EXTERNAL
    assert {check.name for check in CHECKS if check.exceptions} == {
        "xid",
        "tunnel",
        "certificate",
        "edge",
        "assistant",
    }
    assert {name for name, _ in EXCEPTIONS} <= {check.name for check in CHECKS if check.exceptions}


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(
    ("name", "what", "defect", "seen"), FAILING, ids=[f"{one[0]}: {one[1]}" for one in FAILING]
)
def test_the_fault_domain_of_each_failure(
    name: str, what: str, defect: Defect, seen: str, request: pytest.FixtureRequest
) -> None:
    host = defective_host(name, what, defect, request)
    expected: FaultDomain = "external" if (name in EXTERNAL) is not ((name, what) in EXCEPTIONS) else "generation"
    found = [one for one in host.findings(name) if one.level == "fail" and seen in one.seen]
    assert {one.fault_domain for one in found} == {expected}, found
    assert {step_of(one).level for one in found} == {"warn" if expected == "external" else "fail"}


@pytest.mark.parametrize(
    ("numbers", "recovery", "domains"),
    [
        ((48,), "Reset", {"external"}),
        ((95, 64), "Drain and Reset", {"external"}),
        ((79,), "Reboot", {"generation"}),  # off the bus: a slot, a driver, or a kernel parameter
        ((119,), "None", {"generation"}),
        ((95, 79), "Reset", {"external", "generation"}),
        ((), "Reset", {"generation"}),
    ],
)
def test_errors_of_the_cards_own_memory_are_external(
    numbers: tuple[int, ...], recovery: str, domains: set[str], gpu: FakeHost
) -> None:
    log = "".join(f"NVRM: Xid (PCI:0000:41:00): {number}, pid=1, x.\n" for number in numbers)
    gpu.set_output("journalctl", f"Linux version 6.18.53\n{log}")
    gpu.set_output("recovery", f"0, {recovery}\n")
    found = [one for one in gpu.findings("xid") if one.level == "fail"]
    assert {one.fault_domain for one in found} == domains
    requested = [one.fault_domain for one in found if one.subject.startswith("card")]
    assert requested in ([], ["external" if domains == {"external"} else "generation"])
    assert MEMORY_XIDS < HARDWARE_XIDS


@pytest.mark.parametrize(
    ("status", "domain"), [(502, "external"), (503, "external"), (504, "external"), (200, None), ("refused", None)]
)
def test_the_fault_domain_of_an_edge_by_its_status(status: int | str, domain: FaultDomain | None) -> None:
    edge = Edge(domain="llm.example.org", certificate="/c", nginx="1.30.7", gateways=("10.77.0.1:8000",))
    finding = judge_front(edge, status)
    assert (finding.level, finding.fault_domain) == ("fail", domain)


def a_finding(level: Level, domain: FaultDomain) -> Finding:
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
        ("warn", "external", "warn", False),  # a warning of the doctor is not a failure
        ("unknown", "generation", "warn", False),
        ("ok", "external", "ok", False),
    ],
)
def test_a_step_fails_only_for_a_failure_of_the_generation(
    level: Level, domain: FaultDomain, step: str, external: bool
) -> None:
    made = step_of(a_finding(level, domain))
    assert (made.level, made.external, made.fix) == (step, external, "cool the room")


def test_external_failures_are_in_the_line_of_the_verdict_and_on_the_page() -> None:
    outside, own = step_of(a_finding("fail", "external")), step_of(a_finding("fail", "generation"))
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
