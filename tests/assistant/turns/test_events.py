"""Events of a response, for streams of the engine in pieces of any size and with a cut at any place."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from appliance.assistant.turns.engine_stream import ChatStream
from appliance.assistant.turns.events import ResponseEvents
from appliance.assistant.turns.request import read_turn
from appliance.assistant.turns.search_results import CitedFile
from appliance.assistant.turns.turn import response_object
from appliance.errors import EngineFailedError, RequestError

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

delta = st.one_of(
    st.builds(lambda text: {"reasoning": text}, st.text(min_size=1, max_size=6)),
    st.builds(lambda text: {"content": text}, st.text(min_size=1, max_size=6)),
    st.builds(
        lambda index, text: {"tool_calls": [{"index": index, "function": {"arguments": text}}]},
        st.integers(0, 2),
        st.sampled_from(['{"a":', "1}", "{}", " "]),
    ),
)


def frames(deltas: list[dict[str, Any]], finish: str | None) -> bytes:
    known: set[int] = set()
    chunks: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    for one in deltas:
        for piece in one.get("tool_calls", ()):
            if piece["index"] not in known:
                known.add(piece["index"])
                named = {"index": piece["index"], "id": f"call_{piece['index']}", "function": {"name": "weather"}}
                chunks.append({"choices": [{"delta": {"tool_calls": [named]}}]})
        chunks.append({"choices": [{"delta": one}]})
    if finish is not None:
        chunks.append({"choices": [{"delta": {}, "finish_reason": finish}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}})
    body = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    return body + (b"data: [DONE]\n\n" if finish is not None else b"")


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def events_of(data: list[bytes], *, interrupted: bool = False) -> tuple[ResponseEvents, list[dict[str, Any]]]:
    events = ResponseEvents(response_object(read_turn({"model": "m", "input": "x"})))
    stream = ChatStream()
    seen = events.created()
    for piece in data:
        for chunk in stream.feed(piece):
            seen += events.feed(chunk)
    if interrupted:
        seen += events.interrupt()
        events.end("incomplete", completed_at=None, reason="client_disconnected")
    elif events.finish_reason is None:
        events.abandon()
        events.end("failed", completed_at=None, error={"code": "server_error", "message": "cut"})
    else:
        seen += events.end_call()
        events.end("completed", completed_at=1)
    return events, [*seen, events.final()]


def check(seen: list[dict[str, Any]]) -> None:
    """Check the order and the numbers of the events, and that the last one has what the others had."""
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    assert [event["type"] for event in seen[:2]] == ["response.created", "response.in_progress"]
    final = seen[-1]
    assert final["type"].removeprefix("response.") == final["response"]["status"]
    open_items: dict[int, dict[str, Any]] = {}
    done: dict[int, dict[str, Any]] = {}
    texts: dict[int, str] = {}
    for event in seen:
        kind, index = event["type"], event.get("output_index", -1)
        if kind == "response.output_item.added":
            assert index not in open_items
            assert index not in done
            assert index == len(open_items) + len(done)
            open_items[index] = event["item"]
        elif kind == "response.output_item.done":
            assert open_items.pop(index)["id"] == event["item"]["id"]
            done[index] = event["item"]
            item = event["item"]
            whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
            assert whole == texts.get(index, "")
        elif index >= 0:
            assert event["item_id"] == open_items[index]["id"]
            if kind.endswith(".delta"):
                texts[index] = texts.get(index, "") + event["delta"]
    assert final["response"]["output"] == [done[index] for index in sorted(done)]
    if final["response"]["status"] != "failed":
        assert not open_items


def test_events_and_the_response_have_the_types_of_the_sdk() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}
    _, seen = events_of([frames([{"reasoning": "hm"}, {"content": "ab"}, call], "tool_calls")])
    for event in seen:
        EVENT.validate_python(event)
    Response.model_validate(seen[-1]["response"])


@settings(deadline=None, max_examples=60)
@given(
    deltas=st.lists(delta, max_size=12),
    finish=st.sampled_from(["stop", "tool_calls", "length"]),
    cuts=st.lists(st.integers(0, 5000), max_size=20),
)
def test_every_chunking_gives_the_same_numbered_events(
    deltas: list[dict[str, Any]], finish: str, cuts: list[int]
) -> None:
    data = frames(deltas, finish)
    _, whole = events_of([data])
    _, cut = events_of(pieces(data, cuts))
    check(whole)
    check(cut)

    def shape(seen: list[dict[str, Any]]) -> list[Any]:
        return [(event["type"], event.get("delta"), event.get("output_index")) for event in seen]

    assert shape(whole) == shape(cut)


@settings(deadline=None, max_examples=60)
@given(deltas=st.lists(delta, min_size=1, max_size=8), interrupted=st.booleans(), data=st.data())
def test_a_cut_at_any_byte_gives_whole_items_only_or_incomplete_ones(
    deltas: list[dict[str, Any]], interrupted: bool, data: st.DataObject
) -> None:
    body = frames(deltas, None)
    until = data.draw(st.integers(0, len(body)))
    events, seen = events_of([body[:until]], interrupted=interrupted)
    check(seen)
    statuses = {item["status"] for item in events.output}
    assert statuses <= ({"completed", "incomplete"} if interrupted else {"completed"})


def test_a_text_that_the_limit_cut_is_incomplete() -> None:
    events, _ = events_of([frames([{"reasoning": "hm"}, {"content": "ab"}], "length")])
    assert [item["status"] for item in events.output] == ["completed", "incomplete"]


@pytest.mark.parametrize("finish", ["length", "tool_calls"])
def test_a_call_that_is_not_whole_is_incomplete(finish: str) -> None:
    calls = [
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"a":'}}]},
    ]
    events, _ = events_of([frames(calls, finish)])
    assert [item["status"] for item in events.output] == ["completed", "incomplete"]


def test_white_space_between_reasoning_and_a_call_opens_no_message() -> None:
    piece = {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}
    events, _ = events_of([frames([{"reasoning": "hm"}, {"content": "\n\n"}, piece], "tool_calls")])
    assert [item["type"] for item in events.output] == ["reasoning", "function_call"]


def test_a_number_in_the_text_cites_its_file() -> None:
    events = ResponseEvents(
        response_object(read_turn({"input": "x"})), sources={1: CitedFile(file_id="file-1", filename="a.md")}
    )
    for chunk in ChatStream().feed(frames([{"content": "Rome [1], "}, {"content": "[7] [x]"}], "stop")):
        events.feed(chunk)
    seen = events.end_call()
    annotation = {"type": "file_citation", "index": 5, "file_id": "file-1", "filename": "a.md"}
    assert [event["annotation"] for event in seen if "annotation" in event] == [annotation]
    assert events.output[0]["content"][0]["annotations"] == [annotation]


def test_an_error_in_the_stream_has_its_status() -> None:
    body = b'data: {"error": {"message": "the quota is used", "code": "rate_limit_exceeded"}}\n\n'
    with pytest.raises(RequestError, match="quota") as raised:
        ChatStream().feed(body)
    assert raised.value.status == 429


@pytest.mark.parametrize("body", [b"data: {not json\n\n", b'data: {"choices": 5}\n\n'])
def test_a_frame_that_is_not_valid_ends_the_stream(body: bytes) -> None:
    with pytest.raises(EngineFailedError):
        ChatStream().feed(body)
