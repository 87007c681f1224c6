"""Requests that the gateway passes to the assistant: a real gateway before a stand-in process with uvicorn."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from appliance.gateway import control_client
from appliance.store.keys import KeyStore
from tests.conftest import (
    Response,
    RunningService,
    chat,
    exchange,
    http,
    resident_mib,
    serving,
    wait_until,
)
from tests.gateway.running.conftest import create_key, metric
from tests.gateway.running.stand_in import StandIn, content, stand_in

FILE_BYTES = 24 * 2**20


@contextmanager
def with_assistant(folder: Path, **more: Any) -> Iterator[tuple[RunningService, StandIn]]:
    with stand_in(folder / "a") as assistant:
        section = assistant.section | more.pop("assistant", {})
        with serving(folder / "g", assistant=section, **more) as service:
            yield service, assistant


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, StandIn]]:
    roles = {
        "plain": {"model": "fake"},
        "writer": {"model": "fake", "memory": ["chats"]},
    }
    gateway = {"browser_origins": ["https://chat.example.org"]}
    folder = tmp_path_factory.mktemp("passing")
    section = {"max_file_bytes": FILE_BYTES}
    with with_assistant(folder, roles=roles, gateway=gateway, assistant=section) as found:
        yield found


@pytest.fixture
def service(both: tuple[RunningService, StandIn]) -> RunningService:
    return both[0]


@pytest.fixture
def assistant(both: tuple[RunningService, StandIn]) -> StandIn:
    """The stand-in, running and with no request so far."""
    if both[1].process is None:
        both[1].start()
    both[1].forget()
    return both[1]


def do(kind: str, **more: Any) -> dict[str, Any]:
    """Return the body of a response with state for which the stand-in does ``kind``."""
    return {"model": "fake", "input": "hi", "stream": True, "metadata": {"do": kind, **more}}


def raw(service: RunningService, method: str, target: str, *lines: str, body: bytes = b"") -> Response:
    """Send a request with these header lines, written by hand."""
    head = [f"{method} {target} HTTP/1.1", "host: x", f"content-length: {len(body)}", "connection: close", *lines]
    seen = exchange(service, "\r\n".join([*head, "", ""]).encode("latin1") + body, to_the_end=True)
    first, _, rest = seen.partition(b"\r\n\r\n")
    status, *names = first.decode("latin1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in names)
    return Response(int(status.split()[1]), headers, rest)


def passed(service: RunningService, endpoint: str, outcome: str) -> float:
    text = service.get("/metrics").body.decode()
    name = f'appliance_gateway_passed_total{{endpoint="{endpoint}",outcome="{outcome}"}} '
    return next((float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)), 0.0)


# The request.


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/conversations?query=a%20b&limit=3"), ("POST", "/v1/conversations"),
        ("GET", "/v1/conversations/conv_1"), ("DELETE", "/v1/conversations/conv_1"),
        ("GET", "/v1/conversations/conv_1/items/msg_1"), ("GET", "/v1/files"), ("DELETE", "/v1/files/file_1"),
        ("POST", "/v1/vector_stores/vs_1/search"), ("PATCH", "/v1/vector_stores/vs_1"),
        ("GET", "/v1/responses/resp_1?stream=true&starting_after=3"), ("POST", "/v1/responses/resp_1/cancel"),
        ("POST", "/v1/responses/compact"), ("POST", "/v1/responses"),
    ],
)  # fmt: skip
def test_paths_with_state_reach_the_assistant_with_their_user(
    service: RunningService, assistant: StandIn, method: str, target: str
) -> None:
    body = json.dumps({"model": "fake", "input": "hi"}).encode() if method in ("POST", "PATCH") else b""
    key = f"authorization: Bearer {service.key}"
    response = raw(service, method, target, key, "content-type: application/json", body=body)
    assert response.status == 200, response.body
    seen = response.json
    path, _, query = target.partition("?")
    assert (seen["method"], seen["path"], seen["query"]) == (method, path, query)
    assert (seen["length"], seen["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert seen["headers"]["x-appliance-user"] == "ada"
    assert seen["headers"]["x-appliance-key"] == service.key.split("-")[1]
    assert seen["headers"]["x-request-id"] == response.headers["x-request-id"]
    assert service.stats()["requests"] == service.stats()["canaries"], "no engine has it"


def test_credentials_and_headers_that_name_a_caller_end_at_the_gateway(
    service: RunningService, assistant: StandIn
) -> None:
    eve = create_key(service, "eve")
    seen = raw(
        service, "GET", "/v1/conversations", f"x-api-key: {eve}", "api-key: sk-nonsense", "cookie: session=1",
        "proxy-authorization: Basic YTpi", "x-appliance-user: ada", "X-Appliance-User: ada",
        "X_Appliance_User: ada", "x-appliance-key: 000000000000", "x-appliance-background: 1",
        "x-request-id: of the client", "connection: x-appliance-user, close", "te: trailers",
        "accept-encoding: gzip", "openai-beta: responses=v1",
    ).json  # fmt: skip
    assert seen["headers"]["x-appliance-user"] == "eve"
    assert seen["headers"]["x-appliance-key"] == eve.split("-")[1]
    assert seen["headers"]["openai-beta"] == "responses=v1"
    assert sorted(seen["names"]) == [
        "connection", "host", "openai-beta", "x-appliance-key", "x-appliance-user", "x-request-id",
    ]  # fmt: skip
    assert (seen["headers"]["connection"], seen["headers"]["host"]) == ("close", "assistant")


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ("/v1/conversations/a%2Fb", "/v1/conversations/a/b"),
        ("/v1%2Fconversations/a%20%3F%23", "/v1/conversations/a%20%3F%23"),
        ("http://other.example/v1/files/%D1%84", "/v1/files/%D1%84"),
        ("/v1/files/%252e%252e", "/v1/files/%252e%252e"),
        ("/v1/files/a%0d%0ax-appliance-user:%20ada", "/v1/files/a%0D%0Ax-appliance-user:%20ada"),
    ],
)
def test_a_path_is_decoded_once_and_encoded_anew(
    service: RunningService, assistant: StandIn, sent: str, received: str
) -> None:
    response = raw(service, "GET", sent, f"authorization: Bearer {service.key}")
    assert (response.status, response.json["raw"]) == (200, received)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/files/../conversations", "/v1/files/%2e%2e/internal", "/v1/files//x", "/v1/files/", "/v1/files/./x",
        "/v1/filesystem", "/v1/responses/", "/internal", "/v1/assistants",
    ],
)  # fmt: skip
def test_other_paths_do_not_reach_the_assistant(service: RunningService, assistant: StandIn, target: str) -> None:
    assert raw(service, "GET", target, f"authorization: Bearer {service.key}").status == 404
    assert assistant.seen() == []


def test_without_a_key_nothing_reaches_the_assistant(service: RunningService, assistant: StandIn) -> None:
    for method, target in (("GET", "/v1/conversations"), ("POST", "/v1/files"), ("DELETE", "/v1/files/file_1")):
        response = raw(service, method, target, "x-appliance-user: ada", "x-appliance-key: 000000000000")
        assert (response.status, response.json["error"]["code"]) == (401, "invalid_api_key")
    assert assistant.seen() == []


def test_a_preflight_needs_no_key_and_names_the_methods(service: RunningService, assistant: StandIn) -> None:
    origin = "origin: https://chat.example.org"
    preflight = raw(service, "OPTIONS", "/v1/files/file_1", origin, "access-control-request-method: DELETE")
    assert preflight.status == 204
    assert "delete" in preflight.headers["access-control-allow-methods"]
    response = raw(service, "GET", "/v1/files/file_1", origin, f"authorization: Bearer {service.key}")
    assert response.headers["access-control-allow-origin"] == "https://chat.example.org"
    assert [one["method"] for one in assistant.seen()] == ["GET"]


@pytest.mark.parametrize(
    ("body", "stateful"),
    [
        ({"store": False}, False),
        ({"store": False, "tools": [{"type": "function", "name": "f", "parameters": {}}]}, False),
        ({}, True),
        ({"store": False, "previous_response_id": "resp_1"}, True),
        ({"store": False, "tools": [{"type": "web_search_2025_08_26"}]}, True),
    ],
)
def test_only_a_response_with_state_reaches_the_assistant(
    service: RunningService, assistant: StandIn, body: dict[str, Any], stateful: bool
) -> None:
    response = service.post("/v1/responses", {"model": "fake", "input": "fake: tokens=1", **body})
    assert response.status == 200, response.body
    assert bool(assistant.seen("/v1/responses")) is stateful


@pytest.mark.parametrize(("model", "stateful"), [("writer", True), ("plain", False), ("fake", False)])
def test_only_a_chat_of_a_role_with_memory_reaches_the_assistant(
    service: RunningService, assistant: StandIn, model: str, stateful: bool
) -> None:
    body = json.dumps(chat('fake: tokens=1 writer "writer"') | {"model": model}).encode()
    assert service.post("/v1/chat/completions", body).status == 200
    assert bool(assistant.seen("/v1/chat/completions")) is stateful
    escaped = body.replace(b'"model": "w', b'"model": "\\u0077')
    assistant.forget()
    assert service.post("/v1/chat/completions", escaped).status == 200
    assert bool(assistant.seen()) is stateful


# The response.


def test_headers_of_the_response_are_kept_except_those_of_the_gateway(
    service: RunningService, assistant: StandIn
) -> None:
    response = service.get("/v1/conversations", key=service.key)
    assert response.headers["openai-version"] == "2020-10-01"
    assert response.headers["x-request-id"] != "of the assistant"
    assert not {"set-cookie", "access-control-allow-origin", "server"} & response.headers.keys()
    download = service.get("/v1/files/file_1/content?size=3000000", key=service.key)
    assert download.headers["content-disposition"] == 'attachment; filename="a.bin"'
    assert download.headers["content-type"] == "application/octet-stream"
    assert download.body == content(3_000_000)


@pytest.mark.parametrize("status", [400, 404, 409, 500])
def test_statuses_of_the_assistant_are_kept(service: RunningService, assistant: StandIn, status: int) -> None:
    outcome = "rejected" if status < 500 else "error"
    before = passed(service, "/v1/responses", outcome)
    assert service.post("/v1/responses", do("status", count=status)).status == status
    assert passed(service, "/v1/responses", outcome) == before + 1


def test_a_head_request_has_no_body(service: RunningService, assistant: StandIn) -> None:
    response = raw(service, "HEAD", "/v1/conversations", f"authorization: Bearer {service.key}")
    assert (response.status, response.body) == (200, b"")


def test_a_stream_is_complete_and_leaves_no_usage_row(service: RunningService, assistant: StandIn) -> None:
    rows, before = len(service.rows()), passed(service, "/v1/responses", "ok")
    response = service.post("/v1/responses", do("stream", count=50))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in response.body.decode().splitlines() if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == [*range(52)]
    assert passed(service, "/v1/responses", "ok") == before + 1
    assert metric(service, "passed_in_flight") == 0
    service.row(service.post("/v1/chat/completions", chat("fake: tokens=1")))
    assert len(service.rows()) == rows + 1, "that of the chat"


# Failures.


@contextmanager
def begin_stream(service: RunningService, body: dict[str, Any], key: str | None = None) -> Iterator[HTTPResponse]:
    """Send a request with state; yield its response once the head has arrived."""
    connection = HTTPConnection("127.0.0.1", service.gateway.port, timeout=20)
    headers = {"authorization": f"Bearer {key or service.key}", "content-type": "application/json"}
    with closing(connection):
        connection.request("POST", "/v1/responses", json.dumps(body), headers)
        with closing(connection.getresponse()) as response:
            yield response


def until(response: HTTPResponse, words: bytes) -> bytes:
    """Read the lines of a stream up to the one with ``words``."""
    seen = b""
    while words not in seen:
        line = response.readline()
        assert line, seen
        seen += line
    return seen


def last_data(text: bytes) -> dict[str, Any]:
    assert text.endswith(b"\n\n"), text[-200:]
    found: dict[str, Any] = json.loads(text.rstrip().rsplit(b"\ndata: ", 1)[-1])
    return found


def test_the_end_of_the_assistant_is_the_last_event_of_a_stream(
    service: RunningService, assistant: StandIn
) -> None:
    before = passed(service, "/v1/responses", "failed")
    with begin_stream(service, do("stream", count=3, hold=1)) as response:
        until(response, b"word 3")
        assistant.kill()
        rest = response.read()
    event = last_data(rest)
    assert (event["type"], event["sequence_number"]) == ("response.failed", 4)
    assert (event["response"]["id"], event["response"]["status"]) == ("resp_1", "failed")
    assert event["response"]["error"]["code"] == event["error"]["code"] == "assistant_failed"
    assert b"half of" not in rest, "the cut frame is not forwarded"
    assert passed(service, "/v1/responses", "failed") == before + 1


def test_an_end_before_the_response_is_502_and_an_absent_assistant_503(
    service: RunningService, assistant: StandIn
) -> None:
    assert assistant.process is not None
    died = service.post("/v1/responses", do("die"))
    assert (died.status, died.json["error"]["code"]) == (502, "assistant_failed")
    assistant.process.wait(10)
    absent = service.get("/v1/conversations", key=service.key)
    assert (absent.status, absent.json["error"]["code"]) == (503, "assistant_unavailable")
    assert int(absent.headers["retry-after"]) >= 1
    assert service.post("/v1/chat/completions", chat("fake: tokens=1")).status == 200, "engines are not affected"
    log = "does not accept connections"
    wait_until(lambda: log in service.gateway.log.read_text(), "the operator sees it", 5)
    logged = service.gateway.log.read_text().count(log)
    assert service.get("/v1/conversations", key=service.key).status == 503
    assert service.gateway.log.read_text().count(log) == logged, "once"
    assistant.kill()
    assistant.start()
    assert service.get("/v1/conversations", key=service.key).status == 200


def test_the_end_of_the_assistant_cuts_a_download(service: RunningService, assistant: StandIn) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", service.gateway.port))
        target = f"/v1/files/f/content?size={64 * 2**20}"
        connection.sendall(
            f"GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        assistant.kill()
        seen = b""
        try:
            while piece := connection.recv(2**20):
                seen = seen[-100:] + piece
        except ConnectionResetError:
            pass
        assert not seen.endswith(b"\r\n0\r\n\r\n"), "the last chunk is missing"


def test_an_event_stream_without_events_ends_as_an_error(service: RunningService, assistant: StandIn) -> None:
    with begin_stream(service, do("garbage", count=17 * 2**20)) as response:
        assert last_data(b"\n" + response.read())["error"]["code"] == "assistant_failed"
    wait_until(lambda: metric(service, "passed_in_flight") == 0, "it is released", 5)
    assistant.release()


def test_a_slow_reader_holds_the_download_back_and_gets_all_of_it(
    service: RunningService, assistant: StandIn
) -> None:
    size, before = 64 * 2**20, resident_mib(service)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", service.gateway.port))
        connection.sendall(
            f"GET /v1/files/f/content?size={size} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            f"authorization: Bearer {service.key}\r\n\r\n".encode()
        )
        connection.recv(1)
        wait_until(lambda: assistant.sent() > 0, "the download proceeds", 10)
        # Other clients are served, and the download does not proceed meanwhile.
        for _ in range(60):
            assert service.get("/v1/conversations", key=service.key).status == 200
        assert resident_mib(service) - before < 20
        assert assistant.sent() < size // 2
        with closing(connection.makefile("rb")) as file:
            text = file.read()
    _, _, body = text.partition(b"\r\n\r\n")
    digest, total = hashlib.sha256(), 0
    rest = memoryview(body)
    while rest:
        line, _, _ = bytes(rest[:20]).partition(b"\r\n")
        begin, end = len(line) + 2, len(line) + 2 + int(line, 16)
        digest.update(rest[begin:end])
        total += end - begin
        rest = rest[end + 2 :]
    assert (total, digest.hexdigest()) == (size, hashlib.sha256(content(size)).hexdigest())


def test_a_disconnect_of_the_client_reaches_the_assistant(service: RunningService, assistant: StandIn) -> None:
    before = passed(service, "/v1/responses", "aborted")
    with begin_stream(service, do("stream", count=1, hold=1)) as response:
        until(response, b"word 1")
    wait_until(lambda: assistant.disconnected() == 1, "the assistant sees the disconnect", 10)
    assert passed(service, "/v1/responses", "aborted") == before + 1


def test_a_revoked_key_ends_its_stream_within_a_second_and_no_other(
    service: RunningService, assistant: StandIn
) -> None:
    mallory = create_key(service, "mallory")
    with (
        begin_stream(service, do("stream", count=1, hold=1), mallory) as revoked,
        begin_stream(service, do("stream", count=1, hold=1)) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        until(revoked, b"word 1")
        until(other, b"word 1")
        rest = pool.submit(revoked.read)
        store = KeyStore(service.data)
        store.revoke(mallory)
        store.close()
        wait_until(rest.done, "the revocation takes effect", 2)
        assert last_data(rest.result())["error"]["code"] == "invalid_api_key"
        wait_until(lambda: assistant.disconnected() == 1, "the assistant sees it", 5)
        assistant.release()
        assert last_data(other.read())["type"] == "response.completed"


# Uploads.


def form(data: bytes) -> tuple[str, bytes]:
    """Return the content type and the body of an upload of ``data``."""
    border = "b" * 32
    head = f'--{border}\r\ncontent-disposition: form-data; name="file"; filename="ф.bin"\r\n\r\n'.encode()
    return f"multipart/form-data; boundary={border}", head + data + f"\r\n--{border}--\r\n".encode()


def upload(service: RunningService, data: bytes, *lines: str, coded: bytes | None = None) -> Response:
    kind, body = form(data)
    body = coded if coded is not None else body
    connection = HTTPConnection("127.0.0.1", service.gateway.port, timeout=60)
    headers = {"authorization": f"Bearer {service.key}", "content-type": kind}
    with closing(connection):
        connection.request("POST", "/v1/files", body, headers | dict(line.split(": ") for line in lines))
        response = connection.getresponse()
        return Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def test_a_file_of_20_mb_arrives_whole(service: RunningService, assistant: StandIn) -> None:
    data = os.urandom(20_000_000)
    kind, body = form(data)
    response = upload(service, data)
    assert response.status == 200
    assert (response.json["length"], response.json["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert response.json["headers"]["content-type"] == kind
    assert metric(service, "upload_bytes") == 0


def test_a_compressed_upload_is_expanded(service: RunningService, assistant: StandIn) -> None:
    _, body = form(bytes(10_000_000))
    response = upload(service, b"", "content-encoding: gzip", coded=gzip.compress(body, 1))
    assert (response.status, response.json["sha256"]) == (200, hashlib.sha256(body).hexdigest())
    assert "content-encoding" not in response.json["headers"]
    bomb = gzip.compress(bytes(FILE_BYTES + 2**21), 1)
    assert upload(service, b"", "content-encoding: gzip", coded=bomb).status == 413
    damaged = upload(service, b"", "content-encoding: gzip", coded=b"not gzip")
    assert (damaged.status, damaged.json["error"]["code"]) == (400, "invalid_encoding")
    assert metric(service, "upload_bytes") == 0


def test_a_file_over_the_limit_is_413_before_it_is_sent(service: RunningService, assistant: StandIn) -> None:
    key = f"authorization: Bearer {service.key}"
    limit = FILE_BYTES + 2**20
    seen = exchange(
        service,
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\n{key}\r\nexpect: 100-continue\r\n"
        f"content-length: {limit + 1}\r\n\r\n".encode(),
    )
    assert seen.startswith(b"HTTP/1.1 413 ")
    assert assistant.seen() == []
    assert metric(service, "upload_bytes") == 0
    assert service.post("/v1/conversations", b"x" * (16 * 2**20 + 1)).status == 413, "other paths keep their limit"


def test_uploads_beyond_the_memory_are_503_and_a_lost_one_releases_it(
    service: RunningService, assistant: StandIn
) -> None:
    key = f"authorization: Bearer {service.key}"
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\n{key}\r\ncontent-length: {FILE_BYTES}\r\n\r\n".encode()
    address = ("127.0.0.1", service.gateway.port)
    most = 256 * 2**20 // FILE_BYTES
    begun = [socket.create_connection(address, timeout=20) for _ in range(most)]
    try:
        for connection in begun:
            connection.sendall(head + b"x")
        wait_until(lambda: metric(service, "upload_bytes") == most * FILE_BYTES, "all have begun", 20)
        refused = upload(service, bytes(FILE_BYTES))
        assert (refused.status, refused.json["error"]["code"]) == (503, "uploads_busy")
        assert int(refused.headers["retry-after"]) >= 1
    finally:
        for connection in begun:
            connection.close()
    wait_until(lambda: metric(service, "upload_bytes") == 0, "the memory is released", 10)
    assert upload(service, b"small").status == 200


# Idempotency, pauses, and a site without the section.


def test_an_idempotency_key_runs_once(service: RunningService, assistant: StandIn) -> None:
    body = json.dumps({"model": "fake", "input": "hi"}).encode()
    key = f"authorization: Bearer {service.key}"
    lines = (key, "content-type: application/json", "idempotency-key: turn-1")
    first, second = (raw(service, "POST", "/v1/responses", *lines, body=body) for _ in range(2))
    assert (first.status, first.body) == (second.status, second.body)
    assert len(assistant.seen("/v1/responses")) == 1
    other = raw(service, "POST", "/v1/responses", *lines, body=body.replace(b"hi", b"ho"))
    assert (other.status, other.json["error"]["code"]) == (422, "idempotency_key_reused")
    failing = json.dumps(do("status", count=409)).encode()
    lines = (key, "content-type: application/json", "idempotency-key: turn-2")
    for _ in range(2):
        assert raw(service, "POST", "/v1/responses", *lines, body=failing).status == 409
    assert len(assistant.seen("/v1/responses")) == 3, "a rejection is not kept"


def test_a_pause_rejects_new_work_and_leaves_old_chats_readable(
    service: RunningService, assistant: StandIn
) -> None:
    control_client.pause(service.data, "new fans", 7)
    try:
        for path in ("/v1/responses", "/v1/conversations", "/v1/files"):
            response = service.post(path, {"model": "fake", "input": "hi"})
            assert (response.status, response.json["error"]["code"]) == (503, "paused")
        assert service.get("/v1/conversations", key=service.key).status == 200
    finally:
        control_client.resume(service.data)
    assert [one["method"] for one in assistant.seen()] == ["GET"]


def test_a_rejected_request_leaves_a_row_without_ids(service: RunningService, assistant: StandIn) -> None:
    body = b"x" * (16 * 2**20 + 1)
    service.post("/v1/conversations/conv_1/items", body)
    wait_until(lambda: service.rows()[-1]["endpoint"] == "/v1/conversations", "the row of the rejection", 5)
    assert "conv_1" not in service.get("/metrics").body.decode()


def test_without_the_section_nothing_changes(tmp_path: Path) -> None:
    with serving(tmp_path / "plain") as service:
        for path in ("/v1/conversations", "/v1/files", "/v1/vector_stores", "/v1/responses/resp_1"):
            assert http(service.url + path, key=service.key).status == 404
        assert service.post("/v1/responses", {"model": "fake", "input": "fake: tokens=1"}).status == 200
        assert service.stats()["requests"] - service.stats()["canaries"] == 1
        text = service.get("/metrics").body.decode()
        assert not {"passed_total", "passed_in_flight", "upload_bytes", "acting_refused"} & {*text.split("_")}
        assert "passed" not in text
