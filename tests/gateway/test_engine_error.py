"""The content of an engine's error identifies the client's mistakes, in any form of the error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.gateway.engine_error import read_error
from appliance.gateway.sse import SseFilter

KINDS = {
    "BadRequestError": 400,
    "NotFoundError": 404,
    "UnprocessableEntityError": 422,
    "invalid_request_error": 400,
}


def forms(error: dict[str, object]) -> list[dict[str, object]]:
    return [
        {"error": error},
        {"type": "error", "error": error},
        {"object": "error", **error},
        {"type": "response.failed", "sequence_number": 1, "response": {"id": "r", "error": error}},
    ]


@given(st.integers(400, 599), st.booleans(), st.sampled_from(["", "BadRequestError", "internal_error"]))
def test_a_code_decides_in_every_form(code: int, as_text: bool, kind: str) -> None:
    error: dict[str, object] = {"message": "m", "code": str(code) if as_text else code, "param": None}
    error |= {"type": kind} if kind else {}
    for form in forms(error)[:2]:
        found = read_error(json.dumps(form).encode())
        assert found is not None
        assert (found.status, found.clients, found.message) == (code, code < 500, "m")


@pytest.mark.parametrize(("kind", "status"), KINDS.items())
def test_without_a_code_the_type_decides(kind: str, status: int) -> None:
    for form in forms({"message": "m", "type": kind})[:2]:
        found = read_error(json.dumps(form).encode())
        assert found is not None
        assert (found.status, found.clients) == (status, True)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "m", "type": "internal_error"}},
        {"error": {"message": "m", "code": "engine_dead"}},
        {"error": {"message": "m", "code": 200}},
        {"error": "m"},
        {"detail": "m"},
        {"type": "error", "code": None, "message": "m"},
    ],
)
def test_an_error_without_a_known_status_is_not_the_clients(body: dict[str, object]) -> None:
    found = read_error(json.dumps(body).encode())
    assert found is not None
    assert (found.message, found.status, found.clients) == ("m", None, False)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"7", b"{}", b'{"error":null}', b'{"choices":[]}', b"\xff", b"<html>"]
)
def test_other_bodies_are_not_errors(body: bytes) -> None:
    assert read_error(body) is None


def test_an_error_without_a_message_gets_one() -> None:
    found = read_error(b'{"error":{"code":500}}')
    assert found is not None
    assert "no reason" in found.message


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"])
@given(data=st.data())
def test_an_error_event_is_read_in_every_split_of_a_stream(endpoint: str, data: st.DataObject) -> None:
    code = data.draw(st.sampled_from([400, 404, 422, 500, 503]))
    error = {"error": {"message": 'write "data: {\\"error\\"" or \n\n', "code": code}}
    event = b"data: " + json.dumps(error).encode() + b"\n\n"
    if endpoint == "/v1/messages":
        event = b"event: error\ndata: " + json.dumps({"type": "error"} | error).encode() + b"\n\n"
    begun = data.draw(st.booleans())
    text = (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' if begun else b"") + event + b"data: [DONE]\n\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    stream = SseFilter(strip_usage=False, endpoint=endpoint)
    passed = b""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if start < end:
            passed += stream.feed(text[start:end])
    assert passed + stream.finish() == text
    assert stream.failed
    assert stream.error is not None
    assert (stream.error.status, stream.error.clients) == (code, code < 500)


@pytest.mark.parametrize("text", ['write "error"', 'event: error\ndata: {"error": 1}', 'data: {"type":"error"'])
def test_text_that_resembles_an_error_is_not_one(text: str) -> None:
    for endpoint in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
        stream = SseFilter(strip_usage=False, endpoint=endpoint)
        stream.feed(b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n")
        stream.feed(b'data: {"choices":[],"error":null}\n\n')
        assert not stream.failed
