"""Each check once on a healthy host, and once on a host where one thing is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.doctor.causes import ORDER
from appliance.doctor.checks import clock, disk
from appliance.doctor.runner import CHECKS, examine
from tests.doctor.breaks import BREAKS, Break
from tests.doctor.fakehost import FakeHost

NAMES = [check.name for check in CHECKS]
ON_VPS = {"gateways", "certificate", "edge"}

CASES = [(name, *case) for name, cases in BREAKS.items() for case in cases]


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """This machine's own clock and disk are as they are; the tests' hosts have a good one each."""
    read = clock.read_clock
    monkeypatch.setattr(
        clock, "read_clock", lambda host: clock.ClockFacts(synchronised=True, error_s=0.004, stamp=read(host).stamp)
    )
    free = 0.02 if "full" in request.node.name else 0.5
    monkeypatch.setattr(disk, "read_disk", lambda folder: disk.DiskSpace(str(folder), 100.0, free, 0.9, 1))


def host_of(check: str, request: pytest.FixtureRequest) -> FakeHost:
    host: FakeHost = request.getfixturevalue("vps" if check in ON_VPS else "gpu")
    return host


def broken_host(check: str, what: str, broken: Break, request: pytest.FixtureRequest) -> FakeHost:
    """A healthy host of that kind in which ``what`` is ``broken``."""
    host = host_of(check, request)
    if what == "nobody trusts":
        # Not a thing of the host: it is in the environment of who looks.
        request.getfixturevalue("monkeypatch").setenv("SSL_CERT_FILE", "/dev/null")
    else:
        broken(host)
    return host


def test_every_check_has_a_way_to_fail() -> None:
    assert list(BREAKS) == NAMES
    for name, cases in BREAKS.items():
        assert any(level != "ok" for _, _, level, _ in cases), name


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("name", NAMES)
def test_it_passes_on_a_healthy_host(name: str, request: pytest.FixtureRequest) -> None:
    results = host_of(name, request).look(name)
    assert {one.level for one in results} == {"ok"}, results
    assert all(one.seen for one in results)


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(("name", "what", "broken", "level", "seen"), CASES, ids=[f"{c[0]}: {c[1]}" for c in CASES])
def test_it_fails_on_a_broken_one(
    name: str, what: str, broken: Break, level: str, seen: str, request: pytest.FixtureRequest
) -> None:
    results = broken_host(name, what, broken, request).look(name)
    found = [one for one in results if one.level == level and seen in one.seen]
    assert found, [(one.level, one.seen) for one in results]
    assert all(one.meaning and one.fix for one in results if one.level != "ok")
    assert all(one.cause in ORDER for one in results if one.cause)


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("kind", ["gpu", "vps"])
def test_a_healthy_host_as_a_whole(kind: str, request: pytest.FixtureRequest) -> None:
    host: FakeHost = request.getfixturevalue(kind)
    report = examine(host.context())
    assert (report.worst, report.exit_code, report.host) == ("ok", 0, kind), report.results
    made = {one.name for one in report.results}
    assert made | {one.name for one in report.skipped} == set(NAMES)
    assert (made & ON_VPS == ON_VPS) is (kind == "vps")


def test_engines_on_demand_that_are_not_loaded(gpu: FakeHost) -> None:
    gpu.site["engines"]["chat"]["residency"] = "on-demand"
    gpu.site["gateway"]["engine_control"] = "systemd"
    gpu.sockets.pop(0)
    assert [(one.level, one.seen) for one in gpu.look("memlock")] == [("ok", "no engine is loaded now")]
    assert gpu.levels("ports") == gpu.levels("numa") == {"ok"}


def test_a_host_of_llama_cpp_has_no_pins_of_vllm(gpu: FakeHost) -> None:
    gpu.site["engines"]["chat"] |= {"kind": "llamacpp", "command": "/run/current-system/sw/bin/llama-server"}
    assert [(one.subject, one.level) for one in gpu.look("pins")] == [
        ("kernel", "ok"), ("driver", "ok"), ("booted system", "ok"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "level"),
    [
        (
            "Type=oneshot\nRemainAfterExit=no\nExecMainExitTimestamp=Wed 2026-11-25 10:00:00 UTC\nResult=success",
            "ok",
        ),
        ("Type=oneshot\nRemainAfterExit=no\nExecMainExitTimestamp=\nResult=success", "fail"),
        (
            "Type=oneshot\nRemainAfterExit=no\nExecMainExitTimestamp=Wed 2026-11-25 10:00:00 UTC\nResult=timeout",
            "fail",
        ),
        ("Type=simple\nConditionResult=no\nConditionTimestamp=Wed 2026-11-25 10:00:00 UTC\nResult=success", "ok"),
        ("Type=simple\nConditionResult=no\nConditionTimestamp=\nResult=success", "fail"),
        (
            "Type=simple\nConditionResult=yes\nConditionTimestamp=Wed 2026-11-25 10:00:00 UTC\nResult=success",
            "fail",
        ),
    ],
)
def test_units_that_are_inactive_as_they_should_be(said: str, level: str, gpu: FakeHost) -> None:
    gpu.machine["units"] = ["appliance-smoke.service"]
    gpu.says("systemctl", f"Id=appliance-smoke.service\nLoadState=loaded\nActiveState=inactive\n{said}\n")
    assert gpu.levels("units") == {level}


@pytest.mark.parametrize("kind", ["gpu", "vps"])
def test_the_doctor_leaves_no_trace(kind: str, request: pytest.FixtureRequest) -> None:
    host: FakeHost = request.getfixturevalue(kind)
    context = host.context(hashes=True)

    def tree() -> dict[Path, tuple[int, float]]:
        return {p: (p.lstat().st_size, p.lstat().st_mtime) for p in host.root.rglob("*")}

    before = tree()
    examine(context)
    assert tree() == before
