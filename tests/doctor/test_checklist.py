"""The operator's ten points: each is ok on a healthy host, and names its defect on another."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.doctor.acceleration import judge_tensor_parallel, parse_backend, utilisation_query
from appliance.doctor.checklist import ChecklistPoint, run_checklist
from appliance.doctor.finding import Finding
from tests.doctor.command import doctor
from tests.doctor.fakehost import FakeHost
from tests.doctor.servers import start_server
from tests.nix import checker
from tests.ports import free_port

SPECULATING = """# TYPE vllm:spec_decode_num_drafts counter
vllm:spec_decode_num_drafts_total{engine="0"} 100
# TYPE vllm:spec_decode_num_draft_tokens counter
vllm:spec_decode_num_draft_tokens_total{engine="0"} 300
# TYPE vllm:spec_decode_num_accepted_tokens counter
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 210
"""
BACKEND = (
    "(EngineCore) INFO [cuda.py:506] Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN']."
)
SLOW_BACKEND = "Using TRITON_ATTN attention backend out of potential backends: ['TRITON_ATTN']."


def vector(value: float | None) -> bytes:
    """Return a response of Prometheus with one value, or none."""
    result = [] if value is None else [{"metric": {}, "value": [1.0, str(value)]}]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


@contextmanager
def serving(body: bytes, status: int = 200) -> Iterator[int]:
    server = start_server(body, status)
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def complete(gpu: FakeHost) -> Iterator[FakeHost]:
    """A host on which all ten points are ok."""
    with (
        serving(vector(0.97)) as prometheus,
        serving(b"{}", 401) as public,
        serving(SPECULATING.encode()) as engine,
    ):
        gpu.machine["observed"] = {"prometheus": prometheus, "public_url": f"http://127.0.0.1:{public}"}
        chat = gpu.site["engines"]["chat"]
        gpu.sockets = [(a, b, engine if port == chat["port"] else port, pid) for a, b, port, pid in gpu.sockets]
        chat["port"] = engine
        chat["options"] = {"speculative-config": {"method": "mtp", "num_speculative_tokens": 3}}
        gpu.set_output("journalctl", BACKEND + "\n")
        yield gpu


def points(host: FakeHost) -> dict[int, ChecklistPoint]:
    """Return the points by number; the drill for heat passes."""
    found = run_checklist(host.context(), lambda _site, _host: ((), ("card 0: a notice, 450 W",)))
    return {one.number: one for one in found}


def test_all_ten_points_of_a_healthy_host(complete: FakeHost) -> None:
    found = points(complete)
    assert list(found) == list(range(1, 11))
    assert {number: one.level for number, one in found.items()} == dict.fromkeys(range(1, 11), "ok")
    seen = {number: [each.seen for each in one.findings] for number, one in found.items()}
    assert seen[3] == ["one card, as configured"]
    assert seen[4] == ["speculates; 70% of its draft tokens are accepted"]
    assert seen[5] == ["FLASH_ATTN"]
    assert seen[6] == ["its cards compute 97% of the time at a full batch"]
    assert seen[7][0] == "54 °C"


def no_speculation(host: FakeHost) -> None:
    del host.site["engines"]["chat"]["options"]


def other_card(host: FakeHost) -> None:
    host.set_output("compute", "700, 00000000:C1:00.0\n")


def no_process(host: FakeHost) -> None:
    host.set_output("compute", "")


def hangs(host: FakeHost) -> None:
    host.watch(age_s=600)


def reports_only(host: FakeHost) -> None:
    host.watch(act=False)


DEFECTS: list[tuple[int, Callable[[FakeHost], object], str, str]] = [
    (1, lambda host: host.write("/proc/sys/kernel/osrelease", "6.12.1\n"), "fail", "6.12.1; pinned is 6.18"),
    (2, lambda host: host.write("/proc/sys/vm/nr_hugepages", "512\n"), "warn", "512 pages of 2 MiB"),
    (3, other_card, "fail", "computes on 0 of its 1 cards, and on 1 others"),
    (3, no_process, "unknown", "computes on no card now"),
    (4, no_speculation, "ok", "no engine is configured to speculate"),
    (5, lambda host: host.set_output("journalctl", SLOW_BACKEND), "warn", "a slow one"),
    (5, lambda host: host.set_output("journalctl", "", 1), "unknown", "does not name the backend"),
    (6, lambda host: host.machine.pop("observed"), "unknown", "Prometheus does not run on this host"),
    (7, lambda host: host.card.update({"temperature.gpu": "85"}), "fail", "85 °C"),
    (7, lambda host: host.card.update({"power.limit": "600.00"}), "warn", "600 W; the site has 450 W"),
    (7, lambda host: host.watch(margin_c=8.0), "warn", "8 K below its thermal limit"),
    (8, lambda host: host.machine["observed"].pop("public_url"), "unknown", "no public address is described"),
    (9, hangs, "fail", "silent for 600 s"),
    (9, reports_only, "warn", "reports only"),
    (10, lambda host: host.drill(failed="the old key got 401"), "fail", "the restore drill failed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "defect", "level", "seen"), DEFECTS, ids=[f"{one[0]}-{one[3]}" for one in DEFECTS]
)
def test_a_defect_is_shown_by_its_point_only(
    number: int, defect: Callable[[FakeHost], object], level: str, seen: str, complete: FakeHost
) -> None:
    defect(complete)
    found = points(complete)
    assert found[number].level == level
    assert seen in " ".join(each.seen for each in found[number].findings)
    # Without its description, the monitoring is missing for two points.
    both = {6, 8} if number == 6 else {number}
    assert {other for other, one in found.items() if one.level != "ok"} <= both
    assert all(each.fix for each in found[number].findings if each.level != "ok")


def of(host: FakeHost, number: int) -> tuple[str, str]:
    """Return level and text of a point."""
    one = points(host)[number]
    return one.level, " ".join(each.seen for each in one.findings)


def test_the_counters_of_an_engine(complete: FakeHost) -> None:
    chat = complete.site["engines"]["chat"]
    with serving(b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0\n") as plain:
        chat["port"] = plain
        assert of(complete, 4) == ("fail", "does not speculate, and speculative-config is set")
    with serving(SPECULATING.replace(" 100", " 0").encode()) as idle:
        chat["port"] = idle
        assert of(complete, 4) == ("warn", "speculates, and has drafted no token yet")
    with serving(b"not found", 404) as missing:
        chat["port"] = missing
        assert "responds with 404" in of(complete, 4)[1]
    chat["port"] = free_port()
    level, seen = of(complete, 4)
    assert level == "unknown"
    assert "no response (ConnectionRefusedError)" in seen


def test_the_responses_of_prometheus(complete: FakeHost) -> None:
    observed = complete.machine["observed"]
    for body, level, text in (
        (vector(None), "unknown", "no batch was full in the last seven days"),
        (vector(0.61), "warn", "compute 61% of the time"),
        (b'{"status": "error", "error": "bad query"}', "unknown", "refuses the query: bad query"),
        (b"<html>", "unknown", "is not Prometheus"),
    ):
        with serving(body) as port:
            observed["prometheus"] = port
            assert (of(complete, 6)[0], text in of(complete, 6)[1]) == (level, True), body
    observed["prometheus"] = free_port()
    assert "Prometheus does not respond" in of(complete, 6)[1]


def test_the_public_address(complete: FakeHost) -> None:
    with serving(b"bad gateway", 502) as port:
        complete.machine["observed"]["public_url"] = f"http://127.0.0.1:{port}"
        assert of(complete, 8)[0] == "fail"
        assert "gets 502, not 401" in of(complete, 8)[1]
    complete.machine["observed"]["public_url"] = f"http://127.0.0.1:{free_port()}"
    assert (of(complete, 8)[0], "no response" in of(complete, 8)[1]) == ("fail", True)


def test_an_engine_over_two_cards(complete: FakeHost) -> None:
    chat = complete.site["engines"]["chat"]
    card = complete.site["hosts"]["gpu"]["gpus"][0]
    complete.site["hosts"]["gpu"]["gpus"].append({**card, "index": 1})
    chat |= {"gpus": [0, 1], "tensor_parallel": 2}
    replicas = complete.context().on_cards
    buses, unit = {0: "0000:41:00.0", 1: "0000:c1:00.0"}, "appliance-engine-chat.service"

    def judged(used: set[str]) -> Finding:
        (one,) = judge_tensor_parallel(replicas, buses, {unit: used, "other.service": {"0000:c1:00.0"}})
        return one

    assert judged(set(buses.values())).seen == "tensor parallel over 2 cards"
    assert judged({"0000:41:00.0"}).level == "fail"


def test_a_configured_attention_backend(complete: FakeHost) -> None:
    options = complete.site["engines"]["chat"]["options"]
    options["attention-backend"] = "FLASH_ATTN"
    assert of(complete, 5) == ("ok", "FLASH_ATTN, as configured")
    del options["attention-backend"]
    options["attention-config"] = {"backend": "flashinfer"}
    assert of(complete, 5) == ("fail", "FLASH_ATTN; the site has flashinfer")


def test_the_backend_of_a_log() -> None:
    assert parse_backend(["Using TRITON_ATTN attention backend out of …", "x", BACKEND]) == "FLASH_ATTN"
    assert parse_backend(["Using AttentionBackendEnum.FLASHINFER backend."]) == "FLASHINFER"
    assert parse_backend(["Using default backend for nothing", ""]) is None


def test_the_command_runs_the_drill_of_the_watchdog(complete: FakeHost) -> None:
    done = doctor(complete, "--checklist", "--json")
    table = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert [one["number"] for one in table["points"]] == list(range(1, 11))
    assert table["points"][8]["findings"][1]["seen"].startswith("drill: card 0: a notice")
    text = doctor(complete, "--checklist").stdout
    assert "gpu: 10 of 10 points are ok" in text
    complete.card["temperature.gpu"] = "91"
    done = doctor(complete, "--checklist")
    assert (done.returncode, "FAIL" in done.stdout, "9 of 10 points" in done.stdout) == (1, True, True)


def test_a_vps_has_the_points_that_apply(vps: FakeHost) -> None:
    table = json.loads(doctor(vps, "--checklist", "--json").stdout)
    levels = {one["number"]: one["level"] for one in table["points"]}
    assert levels[8] == "ok"
    assert {number for number, level in levels.items() if level == "skipped"} >= {3, 4, 5, 6, 7, 9, 10}


def test_the_checklist_has_no_choice_of_checks(gpu: FakeHost) -> None:
    done = doctor(gpu, "--checklist", "--only", "power")
    assert (done.returncode, "leave --only out" in done.stderr) == (2, True)


@pytest.mark.parametrize(("running", "median"), [(13, 0.9), (12, None)])
def test_the_query_in_real_promql(running: int, median: float | None, complete: FakeHost, tmp_path: Path) -> None:
    """A batch is full from 13 of 16 requests on; the labels are those of the scrapes."""
    checker.require("promtool")
    (replica,) = complete.context().on_cards
    requests, used = "vllm:num_requests_running", "appliance_gpu_utilization_ratio"
    series = [
        {"series": f'{requests}{{engine="chat",exported_engine="0",job="engine"}}', "values": f"{running}+0x200"},
        {"series": f'{requests}{{engine="other",exported_engine="0",job="engine"}}', "values": "16+0x200"},
        {"series": f'{used}{{card="0",job="node"}}', "values": "0.9+0x200"},
        {"series": f'{used}{{card="1",job="node"}}', "values": "0.1+0x200"},
    ]
    expected = [] if median is None else [{"labels": "{}", "value": median}]
    case = {"expr": utilisation_query(replica), "eval_time": "60m", "exp_samples": expected}
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": [case]}]
    file = tmp_path / "query.test.json"
    file.write_text(json.dumps({"rule_files": [], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
