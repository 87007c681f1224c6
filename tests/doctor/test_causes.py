"""The worst level and the failure to fix first."""

from __future__ import annotations

from appliance.doctor.causes import CAUSES, causes
from appliance.doctor.finding import Finding, Level, worst
from tests.conftest import ROOT


def a_finding(level: Level, cause: str = "", name: str = "x") -> Finding:
    return Finding(name=name, level=level, seen="seen", cause=cause)


def test_the_worst_level() -> None:
    assert worst([]) == "ok"
    assert worst(["warn", "ok"]) == "warn"
    assert worst(["unknown", "warn"]) == "unknown"
    assert worst(["unknown", "fail", "warn"]) == "fail"


def test_the_deepest_cause_is_first() -> None:
    results = [
        a_finding("fail", "edge-down"),
        a_finding("warn", "clock"),
        a_finding("fail", "wireguard-no-handshake", "first"),
        a_finding("fail", "wireguard-no-handshake", "second"),
        a_finding("fail"),
        a_finding("fail", "firewall-not-loaded"),
    ]
    assert [(one.cause, one.name) for one in causes(results)] == [
        ("firewall-not-loaded", "x"), ("wireguard-no-handshake", "first"), ("edge-down", "x"),
    ]  # fmt: skip


def test_every_cause_is_used_by_a_check() -> None:
    source = "".join(file.read_text() for file in (ROOT / "appliance/doctor/checks").glob("*.py"))
    for code in CAUSES:
        assert f'"{code}"' in source or code.removesuffix("-not-listening") in {"tunnel", "edge"}, code
