"""Models that take turns on one card: no request is lost or starves, and a failed load is undone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import RequestError
from appliance.gateway import control_client
from tests.conftest import RunningService, http, serving, wait_until
from tests.gateway.running.conftest import metric
from tests.ports import free_port

CARD = {"index": 0, "model": "pretended", "memory_mib": 97887}


def engine(model: str, port: int, **more: Any) -> dict[str, Any]:
    one = {"kind": "mock", "host": "here", "model": model, "gpus": [0], "context": 4096, "concurrency": 16}
    return one | {"port": port, "residency": "on-demand", "gpu_memory_utilization": 0.9, **more}


@contextmanager
def two_models(
    folder: Path,
    swap: dict[str, Any] | None = None,
    first: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
    roles: dict[str, Any] | None = None,
    **second: Any,
) -> Iterator[RunningService]:
    """A gateway whose models ``a`` and ``b`` both need nine tenths of the only card."""
    rules = {"max_wait_s": 1.0, "min_residency_s": 0.0, "batch": 8} | (swap or {})
    site = {
        "hosts": {"here": {"memory_gib": 8, "gpus": [CARD]}},
        "models": {"a": {"source": "./a"}, "b": {"source": "./b"}},
        "engines": {"ea": engine("a", free_port(), **(first or {})), "eb": engine("b", free_port(), **second)},
        "roles": roles or {},
    }
    settings = {"engine_control": "child", "swap": rules} | (gateway or {})
    with serving(folder, gateway=settings, **site) as service:
        yield service


def ask(service: RunningService, model: str, text: str = "hi", **more: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return service.post("/v1/chat/completions", body)


def test_20_swaps_under_load_lose_no_request(tmp_path: Path) -> None:
    with two_models(tmp_path / "swap", {"max_wait_s": 0.2, "batch": 4}) as service:

        def client(number: int) -> list[int]:
            statuses = []
            turn = number
            while metric(service, "swaps_total") < 20:
                turn += 1
                response = ask(service, "ab"[turn % 2], "fake: tokens=5 itl_ms=2", stream=turn % 3 == 0)
                whole = b"[DONE]" in response.body if turn % 3 == 0 else response.json["model"] == "ab"[turn % 2]
                statuses.append(response.status if whole else 0)
            return statuses

        with ThreadPoolExecutor(8) as clients:
            statuses = [status for found in clients.map(client, range(8)) for status in found]
        assert len(statuses) >= 40
        assert set(statuses) == {200}
        assert metric(service, "swap_failures_total") == 0
        rows = service.wait_rows(len(statuses))
        assert {row["outcome"] for row in rows} == {"ok"}
        assert any(row["queue_ms"] > 1 for row in rows)


def test_running_requests_finish_before_their_model_is_unloaded(tmp_path: Path) -> None:
    with two_models(tmp_path / "drain", {"max_wait_s": 0.1}) as service, ThreadPoolExecutor(2) as pool:
        assert ask(service, "a").status == 200
        long = pool.submit(ask, service, "a", "fake: tokens=100 itl_ms=15", stream=True)
        wait_until(lambda: b'in_flight{engine="ea"} 1.0' in service.get("/metrics").body, "a runs", 5)
        assert ask(service, "b").status == 200
        assert long.done(), "b must not be served while a's stream still runs"
        assert long.result().body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("sleep", [True, False])
def test_a_drain_is_bounded_and_ends_running_streams_with_an_error(tmp_path: Path, sleep: bool) -> None:
    rules = {"max_wait_s": 0.1, "drain_timeout_s": 0.5}
    with (
        two_models(tmp_path / "cut", rules, first={"sleep": sleep}) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        assert ask(service, "a").status == 200
        long = pool.submit(ask, service, "a", "fake: tokens=3000 itl_ms=20", stream=True)
        wait_until(lambda: b'in_flight{engine="ea"} 1.0' in service.get("/metrics").body, "a runs", 5)
        assert ask(service, "b").status == 200
        cut = long.result(10).body
        last = json.loads(cut.rstrip().rsplit(b"\n\n", 1)[-1].removeprefix(b"data: "))
        assert last["error"]["message"] == "a was unloaded for another model; try again"
        assert b"[DONE]" not in cut
        assert ask(service, "a").status == 200
        assert metric(service, "swap_failures_total") == 0


def test_a_waiting_stream_gets_comments_and_its_position(tmp_path: Path) -> None:
    with serving_slow(tmp_path / "wait") as service:
        response = ask(service, "b", stream=True)
        assert response.status == 200
        assert response.body.startswith(b": waiting for an engine\n\n")
        assert response.body.endswith(b"data: [DONE]\n\n")
        assert response.headers["x-queue-position"] == "1"
        row = service.row(response)
        assert row["queue_ms"] >= 1500


@contextmanager
def serving_slow(folder: Path) -> Iterator[RunningService]:
    site = {
        "hosts": {"here": {"memory_gib": 8, "gpus": [CARD]}},
        "models": {"b": {"source": "./b"}},
        "engines": {"eb": engine("b", free_port(), options={"load-delay-s": 1.5})},
    }
    queue = {"keepalive_s": 0.4}
    with serving(folder, gateway={"engine_control": "child", "queue": queue}, **site) as service:
        yield service


def test_a_failed_load_restores_the_old_model_and_reports_the_reason(tmp_path: Path) -> None:
    with two_models(tmp_path / "fail", options={"fail-load": 1}) as service:
        assert control_client.status(service.data)["last_swap"] is None
        assert ask(service, "a").status == 200
        failed = ask(service, "b")
        assert failed.status == 503
        assert "b could not be loaded: eb ended while it was loading" in failed.json["error"]["message"]
        wait_until(lambda: not control_client.status(service.data)["last_swap"]["ok"], "the result of the swap", 30)
        last = control_client.status(service.data)["last_swap"]
        assert (last["engine"], last["unloaded"]) == ("eb", ["ea"])
        assert "eb ended while it was loading" in last["error"]
        assert 0 <= last["seconds"] < 60
        assert last["ago_s"] >= 0
        assert failed.headers["retry-after"] == "60"
        up = b'appliance_gateway_engine_up{engine="ea"} 1.0'
        wait_until(lambda: up in service.get("/metrics").body, "the old one is loaded again", 10)
        assert ask(service, "a").status == 200
        refused = ask(service, "b")
        assert (refused.status, refused.json) == (503, failed.json), "the same reason"
        assert 50 < int(refused.headers["retry-after"]) <= 60, "no second load has begun the minute anew"
        wait_until(lambda: int(ask(service, "b").headers["retry-after"]) < 59, "the rest of the minute", 10)
        assert metric(service, "swap_failures_total") == 1


def test_a_model_without_a_token_fails_its_canary_and_the_old_one_is_restored(tmp_path: Path) -> None:
    # It listens and returns nothing within its start timeout: the canary decides, not the port.
    with two_models(tmp_path / "mute", start_timeout_s=2, options={"ttft-ms": 60000}) as service:
        assert ask(service, "a").status == 200
        failed = ask(service, "b")
        assert failed.status == 503
        assert "generated no token within 2 s" in failed.json["error"]["message"]
        assert ask(service, "a").status == 200


def test_a_loading_engine_that_is_killed_is_reported(tmp_path: Path) -> None:
    with two_models(tmp_path / "kill", options={"load-delay-s": 30}) as service, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, service, "b")
        children = Path(f"/proc/{service.gateway.process.pid}/task/{service.gateway.process.pid}/children")
        wait_until(lambda: bool(children.read_text().split()), "the engine starts", 10)
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        assert waiting.result(20).status == 503
        assert ask(service, "a").status == 200


def test_a_sleeping_engine_wakes_and_is_not_started_again(tmp_path: Path) -> None:
    with two_models(tmp_path / "sleep", sleep=True) as service:
        assert ask(service, "b").status == 200
        port = json.loads(service.config.read_text())["engines"]["eb"]["port"]
        assert ask(service, "a").status == 200
        assert http(f"http://127.0.0.1:{port}/is_sleeping").json == {"is_sleeping": True}
        assert ask(service, "b").status == 200
        assert http(f"http://127.0.0.1:{port}/is_sleeping").json == {"is_sleeping": False}
        assert http(f"http://127.0.0.1:{port}/stats").json["requests"] >= 4, "it is the same process"


def test_an_engine_that_cannot_sleep_is_stopped(tmp_path: Path) -> None:
    """It returns 500 and sleeps all the same: the other model does not wait, and it does not count as awake."""
    with two_models(tmp_path / "insomnia", first={"sleep": True, "options": {"fail-sleep": 1}}) as service:
        for model in "abab":
            assert ask(service, model).status == 200
        assert metric(service, "swap_failures_total") == 0
        assert "ea did not sleep and is stopped instead" in service.gateway.log.read_text()


def test_an_operator_loads_a_model_without_a_request(tmp_path: Path) -> None:
    with two_models(tmp_path / "person") as service:
        argv = [sys.executable, "-m", "appliance", "models"]
        words = ["--config", str(service.config)]
        done = subprocess.run([*argv, "swap", "b", *words], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: state(service, "eb") == "ready", "b is loaded", 20)
        shown = subprocess.run([*argv, "status", *words], capture_output=True, text=True, check=False, timeout=60)
        lines = {line.split()[1]: line for line in shown.stdout.splitlines() if " b " in line or " a " in line}
        assert " up " in lines["eb"]
        assert " stopped " in lines["ea"]
        with pytest.raises(RequestError, match="b is loaded already"):
            control_client.swap(service.data, "b")
        assert metric(service, "swaps_total") == 1


def test_a_model_requested_while_it_loads_is_not_loaded_twice(tmp_path: Path) -> None:
    with two_models(tmp_path / "twice", options={"load-delay-s": 1.0}) as service, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, service, "b")
        wait_until(lambda: state(service, "eb") == "loading", "b loads", 5)
        control_client.swap(service.data, "b")
        assert first.result(20).status == 200
        assert [ask(service, "a").status for _ in range(3)] == [200] * 3
        assert metric(service, "swaps_total") == 2


def test_an_error_of_systemd_is_reported_to_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier engine runs, returns nothing and cannot be stopped: the other models still get their turns."""
    script = tmp_path / "systemctl"
    script.write_text(
        '#!/bin/sh\ncase "$1.$3" in\n'
        "  show.appliance-engine-ea.service) echo ActiveState=active ;;\n"
        "  show.*) echo ActiveState=inactive ;;\n"
        '  *) echo "Access denied"; exit 4 ;;\nesac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    settings = {"engine_control": "systemd", "canary_timeout_s": 0.5, "queue": {"max_wait_s": 20}}
    with two_models(tmp_path / "denied", gateway=settings) as service:
        wait_until(lambda: state(service, "ea") == "failed", "the stop fails", 10)
        for model, verb in (("a", "stop"), ("b", "start --no-block")):
            refused = ask(service, model)
            assert refused.status == 503
            message = refused.json["error"]["message"]
            unit = f"appliance-engine-e{model}.service"
            assert message.startswith(f"{model} could not be loaded: systemctl {verb} {unit}")
            assert "Access denied" in message


def state(service: RunningService, name: str) -> str:
    return str(control_client.status(service.data)["on_demand"][name]["state"])


def test_engines_that_fit_together_do_not_swap(tmp_path: Path) -> None:
    site = {
        "hosts": {"here": {"memory_gib": 8, "gpus": [CARD]}},
        "models": {"a": {"source": "./a"}, "b": {"source": "./b"}},
        "engines": {
            "ea": engine("a", free_port(), gpu_memory_utilization=0.4),
            "eb": engine("b", free_port(), gpu_memory_utilization=0.4),
        },
    }
    with serving(tmp_path / "beside", gateway={"engine_control": "child"}, **site) as service:
        for model in "abab":
            assert ask(service, model).status == 200
        assert metric(service, "swaps_total") == 2


def test_engines_on_the_processor_take_turns_by_its_memory(tmp_path: Path) -> None:
    """Each needs 5 GiB for its KV cache, on a host with 8 GiB."""
    own: dict[str, Any] = {"device": "cpu", "gpus": [], "kv_cache_gib": 5.0}
    with two_models(tmp_path / "ram", first=own, **own) as service:
        for model in "aba":
            assert ask(service, model).status == 200
        assert metric(service, "swaps_total") == 3


def test_a_site_whose_models_all_take_turns_is_ready_before_the_first_request(tmp_path: Path) -> None:
    with two_models(tmp_path / "ready") as service:
        before = service.get("/ready")
        assert (before.status, set(before.json["engines"].values())) == (200, {"not loaded"})
        assert ask(service, "a").status == 200
        wait_until(lambda: service.get("/ready").json["engines"]["ea"] == "ready", "a is loaded", 5)
        assert service.get("/ready").status == 200


# Waits for a swap. The queue's own bound is far shorter than a load in these tests.

IMPATIENT = {"queue": {"max_wait_s": 0.5, "keepalive_s": 0.3}}


def code(response: Any) -> str:
    return str(response.json["error"]["code"])


def test_requests_wait_for_a_load_longer_than_the_queues_bound(tmp_path: Path) -> None:
    with (
        two_models(tmp_path / "load", gateway=IMPATIENT, options={"load-delay-s": 2.0}) as service,
        ThreadPoolExecutor(3) as pool,
    ):
        assert ask(service, "a").status == 200
        first = pool.submit(ask, service, "b")
        wait_until(lambda: state(service, "eb") == "loading", "b loads", 5)
        stream = pool.submit(ask, service, "b", stream=True)
        assert first.result(20).status == 200
        assert int(first.result().headers["x-queue-wait-ms"]) > 2000
        streamed = stream.result(20)
        assert streamed.body.startswith(b": waiting for an engine\n\n" * 2)
        assert streamed.body.endswith(b"data: [DONE]\n\n")


def test_requests_wait_for_a_drain_longer_than_the_queues_bound(tmp_path: Path) -> None:
    with (
        two_models(tmp_path / "drained", {"max_wait_s": 0.01}, gateway=IMPATIENT) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        assert ask(service, "a").status == 200
        long = pool.submit(ask, service, "a", "fake: tokens=100 itl_ms=20", stream=True)
        wait_until(lambda: b'in_flight{engine="ea"} 1.0' in service.get("/metrics").body, "a runs", 5)
        assert ask(service, "b").status == 200
        assert long.result(20).body.endswith(b"data: [DONE]\n\n")


def test_only_the_time_outside_swaps_counts_against_the_queues_bound(tmp_path: Path) -> None:
    """Both wait for the swap and one gets the only slot: from then on, the other has the queue's whole bound."""
    settings = {"queue": {"max_wait_s": 0.7}}
    second: dict[str, Any] = {"concurrency": 1, "options": {"load-delay-s": 1.0}}
    with two_models(tmp_path / "after", gateway=settings, **second) as service, ThreadPoolExecutor(2) as pool:
        text = "fake: ttft_ms=3000"
        both = [pool.submit(ask, service, "b", text) for _ in range(2)]
        done = sorted((future.result(30) for future in both), key=lambda response: int(response.status))
        assert [response.status for response in done] == [200, 503]
        assert code(done[1]) == "queue_timeout"
        began, refused = [row["started_at"] + row["queue_ms"] / 1000 for row in map(service.row, done)]
        assert refused - began > 0.65, "the queue's bound, minus the time between the beginnings of both requests"


def test_requests_that_wait_for_a_failed_load_get_its_reason(tmp_path: Path) -> None:
    options = {"load-delay-s": 1.0, "fail-load": 1}
    with two_models(tmp_path / "fails", gateway=IMPATIENT, options=options) as service:
        refused = ask(service, "b")
        assert (refused.status, code(refused)) == (503, "engine_unavailable")
        assert "b could not be loaded: eb ended while it was loading" in refused.json["error"]["message"]
        assert ask(service, "a").status == 200


def test_before_a_swap_begins_the_queues_bound_applies(tmp_path: Path) -> None:
    with two_models(tmp_path / "never", {"min_residency_s": 600}, gateway=IMPATIENT) as service:
        assert ask(service, "a").status == 200
        refused = ask(service, "b")
        assert (refused.status, code(refused)) == (503, "queue_timeout")
        assert "within 0.5 s" in refused.json["error"]["message"]
        assert state(service, "eb") == "stopped"


def test_the_queues_bound_applies_to_an_unloaded_model_until_it_is_restored(tmp_path: Path) -> None:
    first = {"options": {"load-delay-s": 1.0}}
    options = {"load-delay-s": 2.0, "fail-load": 1}
    with (
        two_models(tmp_path / "back", gateway=IMPATIENT, first=first, options=options) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        assert ask(service, "a").status == 200
        fails = pool.submit(ask, service, "b")
        wait_until(lambda: state(service, "eb") == "loading", "b loads", 5)
        assert code(ask(service, "a")) == "queue_timeout"
        assert code(fails.result(20)) == "engine_unavailable"
        wait_until(lambda: state(service, "ea") == "loading", "a is loaded again", 5)
        assert ask(service, "a").status == 200


def test_requests_wait_for_a_failed_model_that_an_operator_loads(tmp_path: Path) -> None:
    """Its failure is reported for a minute, but not while it loads again."""
    with (
        two_models(tmp_path / "again", gateway=IMPATIENT, options={"load-delay-s": 1.5}) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        fails = pool.submit(ask, service, "b")
        children = Path(f"/proc/{service.gateway.process.pid}/task/{service.gateway.process.pid}/children")
        wait_until(lambda: bool(children.read_text().split()), "the engine starts", 10)
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        assert code(fails.result(20)) == "engine_unavailable"
        assert code(ask(service, "b")) == "engine_unavailable"
        control_client.swap(service.data, "b")
        wait_until(lambda: state(service, "eb") == "loading", "b loads again", 5)
        assert ask(service, "b").status == 200


# The name of a role selects its model, too.


def test_a_model_is_loaded_by_the_name_of_a_role(tmp_path: Path) -> None:
    roles = {"writer": {"model": "b", "system_prompt": "Write."}, "reader": {"model": "a"}}
    with two_models(tmp_path / "role", roles=roles) as service:
        argv = [sys.executable, "-m", "appliance", "models", "swap", "writer", "--config", str(service.config)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("the gateway loads b; ")
        wait_until(lambda: state(service, "eb") == "ready", "b is loaded", 20)
        with pytest.raises(RequestError, match="b is loaded already") as loaded:
            control_client.swap(service.data, "writer")
        assert (loaded.value.status, loaded.value.code) == (409, "already_loaded")
        assert control_client.swap(service.data, "reader")["model"] == "a"
        wait_until(lambda: state(service, "ea") == "ready", "a is loaded", 20)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("writr", "did you mean 'writer'"), ("zzz", "known: a, b, writer"), ("eb", "did you mean 'b'?")],
)
def test_an_unknown_name_is_404_with_the_nearest_one(swaps: RunningService, name: str, hint: str) -> None:
    with pytest.raises(RequestError, match="does not exist") as unknown:
        control_client.swap(swaps.data, name)
    assert (unknown.value.status, unknown.value.code, unknown.value.param) == (404, "model_not_found", "model")
    assert hint in str(unknown.value)


@pytest.fixture(scope="module")
def swaps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with two_models(tmp_path_factory.mktemp("swaps"), roles={"writer": {"model": "b"}}) as service:
        yield service
