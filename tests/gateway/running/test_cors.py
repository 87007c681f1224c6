"""Pages of other origins at a real gateway: only allowed ones can read a response, whatever its status."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.conftest import RunningService, chat, exchange, head, serving

PAGE = "http://notes.example.org:3000"
OTHER = "https://other.example.org"


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A gateway that allows two origins, with short limits."""
    settings = {
        "browser_origins": [PAGE, "app://obsidian.md"],
        "max_body_bytes": 4000,
        "header_timeout_s": 1,
        "body_timeout_s": 1,
    }
    with serving(tmp_path_factory.mktemp("paged"), gateway=settings) as service:
        yield service


def post(
    service: RunningService, origin: str | None, body: bytes, *lines: str, path: str = "/v1/chat/completions"
) -> bytes:
    more = [f"origin: {origin}"] if origin is not None else []
    return exchange(service, head(service, *more, f"content-length: {len(body)}", *lines, path=path) + body)


def parts(data: bytes) -> tuple[int, list[tuple[str, str]]]:
    """Return the status and the headers of the first response in ``data``."""
    first, *lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    pairs = [line.partition(": ") for line in lines]
    return int(first.split()[1]), [(name, value) for name, _, value in pairs]


def access(data: bytes) -> dict[str, str]:
    """Return the headers of the CORS protocol; each occurs at most once."""
    pairs = [(name, value) for name, value in parts(data)[1] if name.startswith("access-control") or name == "vary"]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


GOOD = json.dumps(chat()).encode()
STREAM = json.dumps(chat("fake: tokens=3", stream=True)).encode()

Case = tuple[int, str, tuple[str, ...], bytes]
CHATS, MORE = "POST /v1/chat/completions", "POST /v1/completions"
KEY, CLOSE, CHUNKS = "KEY", "connection: close", "transfer-encoding: chunked"
ANSWERS: dict[str, Case] = {
    "whole": (200, CHATS, (KEY, f"content-length: {len(GOOD)}"), GOOD),
    "a stream": (200, CHATS, (KEY, f"content-length: {len(STREAM)}", CLOSE), STREAM),
    "the models": (200, "GET /v1/models", (KEY,), b""),
    "a head": (405, "HEAD /v1/completions", (CLOSE,), b""),
    "health": (200, "GET /health", (), b""),
    "readiness, later": (200, "GET /ready", (), b""),
    "another task": (404, "POST /v1/embeddings", (KEY, "content-length: 28"), b'{"model":"fake","input":"a"}'),
    "no JSON": (400, CHATS, (KEY, "content-length: 1"), b"x"),
    "an encoding": (415, CHATS, (KEY, "content-encoding: br", "content-length: 1"), b"x"),
    "no key": (401, CHATS, ("content-length: 2",), b"{}"),
    "no such path": (404, "GET /v1/nothing", (), b""),
    "another method": (405, "GET /v1/completions", (), b""),
    "a body too large, by its length": (413, MORE, (KEY, "content-length: 5000"), b""),
    "a body too large, in chunks": (413, MORE, (KEY, CHUNKS), b"1388\r\n" + b"x" * 5000),
    "a head too large": (431, "GET /health", ("x-long: " + "x" * 40_000,), b""),
    "a header sent twice": (400, "GET /health", ("host: x",), b""),
    "no valid host": (400, "GET /health HTTP/1.1\r\nhost: x/y\r\nx-was:", (), b""),
    "a missing body": (408, MORE, (KEY, "content-length: 9"), b"{"),
    "invalid chunks": (400, MORE, (KEY, CHUNKS), b"zz\r\n"),
}


def sent(service: RunningService, name: str, origin: str | None) -> bytes:
    """Send the case ``name`` from a page of ``origin``; return the response."""
    _, first, lines, body = ANSWERS[name]
    page = [f"origin: {origin}"] if origin is not None else []
    more = [line if line != KEY else f"authorization: Bearer {service.key}" for line in lines]
    # The origin is the first header: the gateway rejects some heads before it has read them whole.
    text = "\r\n".join([f"{first} HTTP/1.1", *page, *([] if "host:" in first else ["host: x"]), *more, "", ""])
    return exchange(service, text.encode() + body)


@pytest.mark.parametrize("name", ANSWERS)
def test_only_allowed_pages_can_read_a_response(paged: RunningService, name: str) -> None:
    status = ANSWERS[name][0]
    allowed = sent(paged, name, PAGE)
    assert parts(allowed)[0] == status
    found = access(allowed)
    assert (found["access-control-allow-origin"], found["vary"]) == (PAGE, "origin")
    assert "x-request-id" in found["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in found
    if status != 408:
        for origin in (OTHER, None):
            refused = sent(paged, name, origin)
            assert (parts(refused)[0], access(refused)) == (status, {}), "the response itself is the same"


def test_pipelined_requests_get_their_own_origins(paged: RunningService) -> None:
    origins = [PAGE, OTHER, "app://obsidian.md", None, PAGE]
    text = b"".join(
        f"GET /v1/nothing/{number} HTTP/1.1\r\nhost: x\r\n{f'origin: {origin}' if origin else 'x: y'}\r\n"
        f"{'connection: close' if number == 4 else 'x: z'}\r\n\r\n".encode()
        for number, origin in enumerate(origins)
    )
    responses = exchange(paged, text, to_the_end=True).split(b"HTTP/1.1 ")[1:]
    named = [access(b"HTTP/1.1 " + response).get("access-control-allow-origin") for response in responses]
    assert named == [PAGE, None, "app://obsidian.md", None, PAGE]


def test_a_rejected_head_does_not_inherit_the_origin_of_the_request_before(paged: RunningService) -> None:
    good = f"GET /health HTTP/1.1\r\nhost: x\r\norigin: {PAGE}\r\n\r\n".encode()
    responses = exchange(paged, good + b"GET / HTTP/1.1\r\nbroken\r\n\r\n", to_the_end=True)
    second = responses[responses.index(b"HTTP/1.1 400 ") :]
    assert (access(responses)["access-control-allow-origin"], access(second)) == (PAGE, {})


def test_a_recorded_response_has_the_origin_of_each_reader(paged: RunningService) -> None:
    for origin in (PAGE, "app://obsidian.md", OTHER):
        response = post(paged, origin, GOOD, "idempotency-key: pages")
        assert access(response).get("access-control-allow-origin") == (origin if origin != OTHER else None)


# Preflights.


def preflight(service: RunningService, path: str, origin: str | None, *lines: str) -> bytes:
    first = [f"OPTIONS {path} HTTP/1.1", "host: x", *([f"origin: {origin}"] if origin is not None else [])]
    text = "\r\n".join(
        [*first, "access-control-request-method: POST", *lines, "connection: close", "", ""]
    ).encode()
    return exchange(service, text, to_the_end=True)


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/messages", "/v1/messages?beta=true", "/v1/models", "/v1/models/fake", "/health"],
)
def test_a_preflight_needs_no_key_and_no_engine(paged: RunningService, path: str) -> None:
    before = paged.stats()["requests"]
    requested = "access-control-request-headers: authorization,x-stainless-os"
    response = preflight(paged, path, PAGE, requested, "access-control-request-private-network: true")
    status, headers = parts(response)
    assert (status, response.partition(b"\r\n\r\n")[2]) == (204, b"")
    assert not {"content-length", "content-type", "transfer-encoding"} & dict(headers).keys()
    found = access(response)
    assert found["access-control-allow-origin"] == PAGE
    assert found["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert found["access-control-allow-methods"] == "GET, HEAD, POST, OPTIONS"
    assert found["access-control-allow-private-network"] == "true"
    assert paged.stats()["requests"] == before


def test_a_preflight_of_another_origin_is_403_and_names_the_setting(paged: RunningService) -> None:
    response = preflight(paged, "/v1/models", OTHER)
    assert (parts(response)[0], access(response)) == (403, {})
    error = json.loads(response.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "origin_not_allowed"
    assert error["message"] == (
        f"Pages of the origin '{OTHER}' may not use this service; add it to gateway.browser_origins"
    )


@pytest.mark.parametrize(
    ("path", "origin", "status"),
    [("/v1/nothing", PAGE, 404), ("/sleep", PAGE, 404), ("//v1/models", PAGE, 404), ("/v1/models", None, 204)],
)
def test_a_preflight_for_an_unknown_path_is_404_and_without_an_origin_grants_nothing(
    paged: RunningService, path: str, origin: str | None, status: int
) -> None:
    response = preflight(paged, path, origin)
    assert parts(response)[0] == status
    assert origin is not None or access(response) == {}


def test_a_connection_stays_open_after_a_preflight(paged: RunningService) -> None:
    first = f"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: {PAGE}\r\n\r\n".encode()
    then = head(paged, f"origin: {PAGE}", f"content-length: {len(STREAM)}", "connection: close") + STREAM
    with socket.create_connection(("127.0.0.1", paged.gateway.port), timeout=20) as connection:
        connection.sendall(first)
        assert connection.recv(65536).startswith(b"HTTP/1.1 204 No Content\r\n")
        connection.sendall(then)
        seen = b""
        while piece := connection.recv(65536):
            seen += piece
    assert b"[DONE]" in seen
    assert access(seen)["access-control-allow-origin"] == PAGE


def test_without_the_setting_no_page_is_allowed(service: RunningService) -> None:
    response = preflight(service, "/v1/chat/completions", PAGE)
    assert (parts(response)[0], access(response)) == (403, {})
    response = post(service, PAGE, GOOD)
    assert (parts(response)[0], access(response)) == (200, {})
