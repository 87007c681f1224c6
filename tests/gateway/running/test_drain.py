"""Drains of single replicas and pauses of the gateway: running requests finish, new ones get the reason."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import main
from appliance.errors import RequestError
from appliance.gateway import control_client
from appliance.gateway.drains import NAME
from tests.conftest import (
    Response,
    RunningService,
    StartedProcess,
    chat,
    head,
    http,
    serving,
    start,
    start_mock,
    wait_until,
)
from tests.gateway.running.conftest import one_engine, send
from tests.gateway.running.test_swap import ask, state, two_models
from tests.smalldisk import SmallDisk

SHORT = "fake: tokens=1"
HELD = "fake: tokens=20 itl_ms=1 hold=5"
"""A stream that waits after 5 tokens until the test releases it."""
HOT = "card 0 is at 92 °C"


class Pair:
    """A gateway before two replicas ``left`` and ``right`` of one model, each in its own process."""

    def __init__(self, service: RunningService, engines: dict[str, StartedProcess]) -> None:
        self.service = service
        self.engines = engines

    def serves(self, count: int = 4) -> set[str]:
        """The replicas that serve ``count`` new chats of different conversations, all of which must succeed."""
        found = set()
        for number in range(count):
            response = self.service.post("/v1/chat/completions", chat(f"{SHORT} #{number}"))
            assert response.status == 200, response.body
            found.add(self.service.row(response)["engine"])
        return found

    def status(self) -> dict[str, Any]:
        return control_client.status(self.service.data)

    def in_flight(self) -> dict[str, int]:
        return {name: one["in_flight"] for name, one in self.status()["engines"].items()}

    def drain(self, *names: str, reason: str = HOT) -> None:
        for name in names:
            found = control_client.drain(self.service.data, name, reason)
            assert (found["draining"], found["saved"]) == (reason, True)

    def undrain(self, *names: str) -> None:
        for name in names:
            found = control_client.undrain(self.service.data, name)
            assert (found["draining"], found["saved"]) == (None, True)

    def hold(self, pool: ThreadPoolExecutor) -> tuple[Future[Response], str]:
        """Begin a stream that runs until it is released; return it and its replica."""
        held = send(pool, self.service, HELD, stream=True)
        wait_until(lambda: sum(self.in_flight().values()) == 1, "the stream runs", 10)
        return held, next(name for name, count in self.in_flight().items() if count)

    def release(self, name: str) -> None:
        http(self.engines[name].url + "/release", method="POST")

    def ready(self) -> Response:
        return self.service.get("/ready")

    def restart(self) -> None:
        """Stop the gateway and start it again with the same folder."""
        service = self.service
        assert service.gateway.stop() == 0
        argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(service.config)]
        service.gateway.process = start(argv, service.gateway.port, service.gateway.log).process


@contextmanager
def a_pair(folder: Path, slots: int = 8, **gateway: Any) -> Iterator[Pair]:
    folder.mkdir(parents=True, exist_ok=True)
    engines = {name: start_mock(folder / f"{name}.log") for name in ("left", "right")}
    try:
        sections = {name: one_engine(slots) | {"port": engine.port} for name, engine in engines.items()}
        with serving(folder, engines=sections, gateway=gateway) as service:
            yield Pair(service, engines)
    finally:
        for engine in engines.values():
            engine.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with a_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture
def pair(shared: Pair) -> Iterator[Pair]:
    """The shared pair; each test leaves it open and empty."""
    yield shared
    shared.undrain("left", "right")
    control_client.resume(shared.service.data)
    wait_until(lambda: shared.status()["in_flight"] == 0, "no request is left over", 10)


def other(name: str) -> str:
    return {"left": "right", "right": "left"}[name]


def assert_refused(response: Response, reason: str, code: str = "draining") -> None:
    assert (response.status, response.json["error"]["code"]) == (503, code)
    assert reason in response.json["error"]["message"]
    assert int(response.headers["retry-after"]) >= 1


def test_a_stream_ends_whole_while_its_replica_drains(pair: Pair) -> None:
    with ThreadPoolExecutor(1) as pool:
        held, own = pair.hold(pool)
        pair.drain(own)
        assert pair.serves() == {other(own)}
        assert pair.in_flight()[own] == 1, "the drain cut nothing"
        assert pair.status()["engines"][own]["draining"] == HOT
        pair.release(own)
        body = held.result(20).body
        assert body.endswith(b"data: [DONE]\n\n")
        assert body.count(b'"content"') >= 20
        assert pair.service.row(held.result())["outcome"] == "ok"


def test_a_chat_moves_to_the_other_replica_and_back(pair: Pair) -> None:
    body = chat(SHORT, prompt_cache_key="one conversation")
    own = pair.service.row(pair.service.post("/v1/chat/completions", body))["engine"]
    pair.drain(own)
    assert pair.service.row(pair.service.post("/v1/chat/completions", body))["engine"] == other(own)
    pair.undrain(own)
    assert pair.service.row(pair.service.post("/v1/chat/completions", body))["engine"] == own


def test_without_an_open_replica_requests_get_the_reason(pair: Pair) -> None:
    pair.drain("left", reason="fans failed")
    pair.drain("right")
    refused = pair.service.post("/v1/chat/completions", chat(SHORT))
    assert_refused(refused, f"fake accepts no new requests: fans failed; {HOT}")
    assert refused.headers["retry-after"] == "30"
    row = pair.service.row(refused)
    assert (row["outcome"], row["status"], row["engine"]) == ("draining", 503, "")
    counted = b'requests_total{endpoint="/v1/chat/completions",model="fake",outcome="draining"}'
    assert counted in pair.service.get("/metrics").body
    anthropic = pair.service.post("/v1/messages", {**chat(SHORT), "max_tokens": 5})
    assert (anthropic.status, anthropic.json["type"]) == (503, "error")
    pair.undrain("right")
    assert pair.serves() == {"right"}


def test_waiting_requests_get_the_reason_when_the_last_replica_drains(tmp_path: Path) -> None:
    with a_pair(tmp_path / "queue", slots=1, queue={"headroom": 0.0}) as pair, ThreadPoolExecutor(4) as pool:
        running = [send(pool, pair.service, HELD, stream=True) for _ in range(2)]
        wait_until(lambda: pair.in_flight() == {"left": 1, "right": 1}, "both slots are in use", 10)
        waiting = [send(pool, pair.service, SHORT) for _ in range(2)]
        wait_until(lambda: pair.status()["models"]["fake"]["waiting"] == 2, "two wait", 10)
        pair.drain("left")
        assert pair.status()["models"]["fake"]["waiting"] == 2, "the other replica may still serve them"
        pair.drain("right")
        for response in waiting:
            assert_refused(response.result(10), HOT)
        assert pair.status()["models"]["fake"]["waiting"] == 0
        for name in pair.engines:
            pair.release(name)
        assert all(response.result(20).body.endswith(b"data: [DONE]\n\n") for response in running)


def test_an_undrain_starts_the_waiting_requests_at_once(tmp_path: Path) -> None:
    with a_pair(tmp_path / "pump", slots=1, queue={"headroom": 0.0}) as pair, ThreadPoolExecutor(2) as pool:
        pair.drain("right")
        held = send(pool, pair.service, HELD, stream=True)
        wait_until(lambda: pair.in_flight()["left"] == 1, "the only slot is in use", 10)
        waiting = send(pool, pair.service, SHORT)
        wait_until(lambda: pair.status()["models"]["fake"]["waiting"] == 1, "one waits", 10)
        pair.undrain("right")
        assert waiting.result(10).status == 200
        assert pair.service.row(waiting.result())["engine"] == "right"
        pair.release("left")
        assert held.result(20).status == 200


def test_drains_are_idempotent_and_may_run_at_the_same_time(pair: Pair) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            calls = [pool.submit(pair.drain, name) for name in ("left", "right") * 4]
            for call in calls:
                call.result(20)
            assert_refused(pair.service.post("/v1/chat/completions", chat(SHORT)), HOT)
            assert json.loads((pair.service.data / NAME).read_text()) == {"left": HOT, "right": HOT}
            for call in [pool.submit(pair.undrain, name) for name in ("left", "right") * 4]:
                call.result(20)
            assert json.loads((pair.service.data / NAME).read_text()) == {}
    pair.drain("left", reason="one reason")
    pair.drain("left", reason="another reason")
    assert pair.status()["engines"]["left"]["draining"] == "another reason"


def test_a_request_does_not_fail_over_to_a_drained_replica(pair: Pair) -> None:
    pair.drain("right")
    response = pair.service.post("/v1/chat/completions", chat("fake: fault=status:500"))
    assert (response.status, pair.service.row(response)["engine"]) == (500, "left")


def test_unknown_replicas_and_invalid_bodies_are_rejected(pair: Pair) -> None:
    folder = pair.service.data
    unknown: list[Callable[[], object]] = [
        lambda: control_client.drain(folder, "lef", HOT),
        lambda: control_client.undrain(folder, "lef"),
    ]
    for call in unknown:
        with pytest.raises(RequestError, match=r"Replica 'lef' does not exist; did you mean 'left'\?") as caught:
            call()
        assert (caught.value.status, caught.value.code) == (404, "replica_not_found")
    invalid: list[Callable[[], object]] = [
        lambda: control_client.drain(folder, "left", ""),
        lambda: control_client.drain(folder, "left", "x" * 301),
        lambda: control_client.drain(folder, "left", "two\nlines"),
        lambda: control_client.pause(folder, "", 10),
        lambda: control_client.pause(folder, HOT, 0),
        lambda: control_client.pause(folder, HOT, 1e9),
    ]
    for call in invalid:
        with pytest.raises(RequestError, match="The body is not") as caught:
            call()
        assert caught.value.status == 400
    status = pair.status()
    assert (status["paused"], status["engines"]["left"]["draining"]) == (None, None)
    assert pair.serves(1) <= {"left", "right"}


def test_readiness_names_drains_and_the_models_without_a_replica(pair: Pair) -> None:
    pair.drain("left")
    ready = pair.ready()
    assert (ready.status, ready.json["engines"]) == (200, {"left": f"draining: {HOT}", "right": "ready"})
    pair.drain("left", reason="fans failed")
    assert pair.ready().json["engines"]["left"] == "draining: fans failed"
    pair.drain("right")
    ready = pair.ready()
    assert (ready.status, ready.json["status"], ready.json["unserved"]) == (503, "not ready", ["fake"])
    pair.undrain("left")
    assert (pair.ready().status, pair.ready().json["engines"]["left"]) == (200, "ready")


def test_a_drained_replica_has_its_canary(tmp_path: Path) -> None:
    watch: dict[str, Any] = {"canary_interval_s": 0.3, "canary_timeout_s": 1.0}
    with a_pair(tmp_path / "canary", **watch) as pair:
        pair.drain("left")
        before = pair.engines["left"].process
        before.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: pair.status()["engines"]["left"]["state"] == "down", "it is down", 15)
            text = pair.service.get("/metrics").body.decode()
            assert 'appliance_gateway_replica_down{engine="left",reason="timeout"} 1.0' in text
            assert 'appliance_gateway_replica_down{engine="right",reason="timeout"} 0.0' in text
            assert 'appliance_gateway_engine_up{engine="left"} 0.0' in text
            assert pair.ready().status == 200
        finally:
            before.send_signal(signal.SIGCONT)
        wait_until(lambda: pair.status()["engines"]["left"]["state"] == "up", "it is up", 20)
        assert 'reason="timeout"} 1.0' not in pair.service.get("/metrics").body.decode()
        assert pair.serves() == {"right"}


def test_a_drain_outlives_a_restart_and_a_pause_does_not(tmp_path: Path) -> None:
    with a_pair(tmp_path / "restart") as pair:
        pair.drain("left")
        file = pair.service.data / NAME
        file.write_text(json.dumps({**json.loads(file.read_text()), "sold": "an old card"}))
        control_client.pause(pair.service.data, HOT, 5)
        pair.restart()
        assert (pair.status()["engines"]["left"]["draining"], pair.status()["paused"]) == (HOT, None)
        assert pair.serves() == {"right"}
        log = pair.service.gateway.log.read_text()
        assert f"left is still drained: {HOT}" in log
        assert "the site has no replica sold any more" in log
        pair.drain("left")
        assert json.loads(file.read_text()) == {"left": HOT}, "the unknown replica is dropped"
        pair.undrain("left")
        pair.restart()
        assert pair.serves(8) == {"left", "right"}


def test_a_damaged_file_is_kept_aside_and_drains_nothing(tmp_path: Path) -> None:
    content = b'{"left": "hot'
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / NAME).write_bytes(content)
    with serving(folder) as service:
        assert service.post("/v1/chat/completions", chat(SHORT)).status == 200
        assert f"{NAME} is damaged" in service.gateway.log.read_text()
        assert (folder / "drained.damaged").read_bytes() == content
        assert not (folder / NAME).exists()
        assert control_client.drain(folder, "chat", HOT)["saved"]


def test_a_drain_takes_effect_on_a_full_disk(tmp_path: Path, small_disk: SmallDisk) -> None:
    """The drain holds until a restart, and a later call saves it."""
    with serving(small_disk.folder / "data") as service:
        small_disk.fill()
        assert control_client.drain(service.data, "chat", HOT)["saved"] is False
        assert_refused(service.post("/v1/chat/completions", chat(SHORT)), HOT)
        small_disk.free()
        assert control_client.drain(service.data, "chat", HOT)["saved"] is True
        assert json.loads((service.data / NAME).read_text()) == {"chat": HOT}


def test_a_drain_that_cannot_be_saved_is_logged_once(pair: Pair) -> None:
    obstacle = pair.service.data / f".{NAME}.new"
    obstacle.mkdir()
    for _ in range(3):
        assert control_client.drain(pair.service.data, "left", HOT)["saved"] is False
    assert pair.serves() == {"right"}
    assert pair.service.gateway.log.read_text().count("forgets the drains") == 1
    obstacle.rmdir()
    pair.drain("left")


def test_a_pause_rejects_new_requests_and_lets_running_ones_finish(pair: Pair) -> None:
    reason = "the site is on battery power"
    with ThreadPoolExecutor(1) as pool:
        held, own = pair.hold(pool)
        for _ in range(3):
            found = control_client.pause(pair.service.data, reason, 120)
            assert found == {"paused": reason, "in_flight": 1}
        refused = pair.service.post("/v1/chat/completions", chat(SHORT))
        assert_refused(refused, f"The service is paused: {reason}", "paused")
        assert refused.headers["retry-after"] == "120"
        assert pair.service.row(refused)["outcome"] == "draining"
        assert pair.service.post("/v1/chat/completions", chat(SHORT), key="sk-invalid").status == 401
        assert pair.service.get("/v1/models").status == 401
        ready = pair.ready()
        assert (ready.status, ready.json) == (503, {"status": f"paused: {reason}", "engines": {}})
        assert pair.status()["paused"] == reason
        assert f'appliance_gateway_paused{{reason="{reason}"}} 1.0' in pair.service.get("/metrics").body.decode()
        pair.release(own)
        assert held.result(20).body.endswith(b"data: [DONE]\n\n")
        wait_until(lambda: pair.status()["in_flight"] == 0, "the stream ended", 10)
        for _ in range(2):
            assert control_client.resume(pair.service.data) == {"paused": None, "in_flight": 0}
        assert pair.serves(1) <= {"left", "right"}
        assert b'appliance_gateway_paused{reason=""} 0.0' in pair.service.get("/metrics").body


def test_a_pause_rejects_waiting_requests_and_bodies_that_arrive_later(tmp_path: Path) -> None:
    with a_pair(tmp_path / "pause", slots=1, queue={"headroom": 0.0}) as pair, ThreadPoolExecutor(3) as pool:
        service = pair.service
        running = [send(pool, service, HELD, stream=True) for _ in range(2)]
        wait_until(lambda: pair.in_flight() == {"left": 1, "right": 1}, "both slots are in use", 10)
        waiting = send(pool, service, SHORT)
        wait_until(lambda: pair.status()["models"]["fake"]["waiting"] == 1, "one waits", 10)
        data = json.dumps(chat(SHORT)).encode()
        with socket.create_connection(("127.0.0.1", service.gateway.port), timeout=20) as late:
            late.sendall(head(service, f"content-length: {len(data)}", "expect: 100-continue"))
            assert late.recv(65536).startswith(b"HTTP/1.1 100")
            control_client.pause(service.data, HOT, 5)
            late.sendall(data)
            assert late.recv(65536).startswith(b"HTTP/1.1 503")
        assert_refused(waiting.result(10), HOT, "paused")
        for name in pair.engines:
            pair.release(name)
        assert all(response.result(20).body.endswith(b"data: [DONE]\n\n") for response in running)
        assert sorted(row["outcome"] for row in service.wait_rows(4)) == ["draining", "draining", "ok", "ok"]


def test_no_request_is_lost_and_no_slot_leaks_while_drains_toggle(tmp_path: Path) -> None:
    """50 chats over two replicas with 8 slots each, while each replica drains and returns 30 times in turn."""
    with a_pair(tmp_path / "load", queue={"headroom": 0.0}) as pair, ThreadPoolExecutor(26) as pool:
        service = pair.service

        def client(number: int) -> list[Response]:
            text = f"fake: tokens={5 + number % 20} itl_ms=3 #{number}"
            return [service.post("/v1/chat/completions", chat(text, stream=number % 2 == 0)) for _ in range(2)]

        clients = [pool.submit(client, number) for number in range(25)]
        for turn in range(30):
            name = ("left", "right")[turn % 2]
            pair.drain(name)
            pair.undrain(name)
        responses = [response for one in clients for response in one.result(60)]
        assert len(responses) == 50
        assert {response.status for response in responses} == {200}
        assert all(
            response.body.endswith(b"data: [DONE]\n\n") for response in responses if b"data: " in response.body[:6]
        )
        wait_until(lambda: pair.status()["in_flight"] == 0, "nothing is left over", 10)
        assert pair.in_flight() == {"left": 0, "right": 0}
        assert {row["outcome"] for row in service.wait_rows(50)} == {"ok"}
        assert pair.serves(8) == {"left", "right"}


# Models on demand.


def test_a_swap_that_needs_a_drained_engine_is_refused(tmp_path: Path) -> None:
    with two_models(tmp_path / "swap") as service:
        assert ask(service, "a").status == 200
        control_client.drain(service.data, "eb", HOT)
        with pytest.raises(RequestError, match=f"b is not loaded, because eb is drained: {HOT}") as caught:
            control_client.swap(service.data, "b")
        assert (caught.value.status, caught.value.code) == (409, "draining")
        assert_refused(ask(service, "b"), f"b accepts no new requests: {HOT}")
        assert state(service, "eb") == "stopped"
        assert ask(service, "a").status == 200
        control_client.undrain(service.data, "eb")
        assert ask(service, "b").status == 200


def test_a_drain_of_a_loaded_model_holds_over_its_unloading(tmp_path: Path) -> None:
    """The drained model is unused: it makes room for another one, and is not loaded again for its requests."""
    with two_models(tmp_path / "loaded") as service:
        assert ask(service, "a").status == 200
        control_client.drain(service.data, "ea", HOT)
        assert_refused(ask(service, "a"), HOT)
        assert service.get("/ready").json["engines"]["ea"] == f"draining: {HOT}"
        assert ask(service, "b").status == 200
        assert_refused(ask(service, "a"), HOT)
        assert (state(service, "ea"), state(service, "eb")) == ("stopped", "ready")
        control_client.undrain(service.data, "ea")
        assert ask(service, "a").status == 200


def test_requests_that_wait_for_a_load_get_the_reason_of_a_drain(tmp_path: Path) -> None:
    with two_models(tmp_path / "loading", options={"load-delay-s": 2.0}) as service, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, service, "b")
        wait_until(lambda: state(service, "eb") == "loading", "b loads", 10)
        control_client.drain(service.data, "eb", HOT)
        assert_refused(first.result(10), HOT)
        wait_until(lambda: state(service, "eb") == "ready", "the load ends", 20)
        assert_refused(ask(service, "b"), HOT)
        control_client.undrain(service.data, "eb")
        assert ask(service, "b").status == 200


# The command line.


def test_an_operator_drains_and_pauses(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(["models", *words, "--config", str(pair.service.config)])
        return (code, *capsys.readouterr())

    assert run("drain", "left", "--reason", "new fans [today]") == (
        0,
        "left gets no new requests; 0 still run\n",
        "",
    )
    assert run("pause", "--reason", "move of the rack", "--retry-after", "2m") == (
        0,
        "the gateway rejects new requests; 0 still run\n",
        "",
    )
    _, shown, _ = run("status")
    assert "up, draining" in shown
    assert "new fans [today]" in shown
    assert "paused: move of the rack; 0 requests still run" in shown
    assert pair.service.post("/v1/chat/completions", chat(SHORT)).headers["retry-after"] == "120"
    assert run("resume")[1] == "the gateway accepts requests\n"
    assert run("undrain", "left")[1] == "left gets requests again\n"
    assert pair.status()["engines"]["left"]["draining"] is None
    code, _, message = run("drain", "rigt")
    assert (code, "did you mean 'right'?" in message) == (1, True)
    assert run("pause", "--retry-after", "soon")[0] == 2
