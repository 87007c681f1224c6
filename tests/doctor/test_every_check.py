"""Each check on a healthy host, and on a host with one defect."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.doctor.causes import ORDER
from appliance.doctor.runner import CHECKS, examine
from tests.doctor.defects import CASES, DEFECTS, ON_VPS, Defect, defective_host, host_of
from tests.doctor.fakehost import FakeHost

NAMES = [check.name for check in CHECKS]


def test_every_check_has_a_defect_that_it_finds() -> None:
    assert list(DEFECTS) == NAMES
    for name, cases in DEFECTS.items():
        assert any(level != "ok" for _, _, level, _ in cases), name


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("name", NAMES)
def test_a_check_passes_on_a_healthy_host(name: str, request: pytest.FixtureRequest) -> None:
    results = host_of(name, request).findings(name)
    assert {one.level for one in results} == {"ok"}, results
    assert all(one.seen for one in results)


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(("name", "what", "defect", "level", "seen"), CASES, ids=[f"{c[0]}: {c[1]}" for c in CASES])
def test_a_check_finds_a_defect(
    name: str, what: str, defect: Defect, level: str, seen: str, request: pytest.FixtureRequest
) -> None:
    results = defective_host(name, what, defect, request).findings(name)
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


def test_engines_on_demand_that_are_not_loaded_pass(gpu: FakeHost) -> None:
    gpu.site["engines"]["chat"]["residency"] = "on-demand"
    gpu.site["gateway"]["engine_control"] = "systemd"
    gpu.sockets.pop(0)
    assert [(one.level, one.seen) for one in gpu.findings("memlock")] == [("ok", "no engine is loaded now")]
    assert gpu.levels("ports") == gpu.levels("numa") == {"ok"}


def test_a_host_of_llama_cpp_has_no_pins_of_vllm(gpu: FakeHost) -> None:
    gpu.site["engines"]["chat"] |= {"kind": "llamacpp", "command": "/run/current-system/sw/bin/llama-server"}
    assert [(one.subject, one.level) for one in gpu.findings("pins")] == [
        ("kernel", "ok"), ("driver", "ok"), ("booted system", "ok"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "level"),
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
def test_units_that_are_correctly_inactive_pass(shown: str, level: str, gpu: FakeHost) -> None:
    gpu.machine["units"] = ["appliance-smoke.service"]
    gpu.set_output("systemctl", f"Id=appliance-smoke.service\nLoadState=loaded\nActiveState=inactive\n{shown}\n")
    assert gpu.levels("units") == {level}


@pytest.mark.parametrize("kind", ["gpu", "vps"])
def test_the_doctor_changes_no_file(kind: str, request: pytest.FixtureRequest) -> None:
    host: FakeHost = request.getfixturevalue(kind)
    context = host.context(hashes=True)

    def tree() -> dict[Path, tuple[int, float]]:
        return {p: (p.lstat().st_size, p.lstat().st_mtime) for p in host.root.rglob("*")}

    before = tree()
    examine(context)
    assert tree() == before
