"""Frames of the assistant's streams: forwarded whole, for any split of the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import AssistantFailedError
from appliance.gateway import passed_stream
from appliance.gateway.passed_stream import PassedStream

FRAMES = [
    b'event: response.created\ndata: {"sequence_number":4,"response":{"id":"resp_1","output":[]}}\n\n',
    b": a comment\n\n",
    b'event: x\ndata: {"sequence_number":5,"delta":"\xd1\x84\\n\\n"}\n\n',
    b'data: {"sequence_number":6}\r\n\r\n',
    b"data: not json\n\n",
]
CUT = AssistantFailedError("it ended")


def event(text: bytes) -> dict[str, Any]:
    assert text.endswith(b"\n\n")
    found: dict[str, Any] = json.loads(text.partition(b"data: ")[2])
    return found


@given(st.lists(st.sampled_from(FRAMES), max_size=6), st.binary(max_size=9), st.data())
def test_only_whole_frames_are_forwarded_and_nothing_is_lost(
    frames: list[bytes], rest: bytes, data: st.DataObject
) -> None:
    rest = rest.replace(b"\n", b"")
    text = b"".join(frames) + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    stream, seen = PassedStream(), b""
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if end > begin:
            ready = stream.feed(text[begin:end])
            assert not ready or ready.endswith((b"\n\n", b"\r\n\r\n"))
            seen += ready
    assert seen == b"".join(frames)
    assert seen + stream.finish() == text
    assert stream.finish() == b""


def test_the_error_continues_the_numbers_and_the_response_of_the_stream() -> None:
    stream = PassedStream()
    for frame in FRAMES:
        stream.feed(frame)
    stream.feed(b"data: {")
    found = event(stream.error_event(CUT, "/v1/responses"))
    assert found["type"] == "response.failed"
    assert (found["sequence_number"], found["response"]["id"]) == (7, "resp_1")
    assert found["response"]["error"] == {"code": "assistant_failed", "message": "it ended"}
    assert found["error"]["code"] == "assistant_failed"


def test_a_stream_without_events_has_the_id_of_its_path() -> None:
    found = event(PassedStream().error_event(CUT, "/v1/responses/resp_7"))
    assert (found["type"], found["sequence_number"], found["response"]["id"]) == ("response.failed", 0, "resp_7")
    assert event(PassedStream().error_event(CUT, "/v1/responses"))["response"]["id"] == "resp_failed"


def test_a_chat_gets_the_error_of_its_api() -> None:
    found = event(PassedStream().error_event(CUT, "/v1/chat/completions"))
    assert found == {"error": found["error"]}


def test_a_frame_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passed_stream, "MAX_FRAME", 10)
    stream = PassedStream()
    assert stream.feed(b"123456789\n") == b""
    assert stream.feed(b"\n12345") == b"123456789\n\n"
    with pytest.raises(AssistantFailedError):
        stream.feed(b"6789012")
