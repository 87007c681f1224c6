"""The reader of an SSE response: any split of its bytes yields the same frames and the same results."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import EngineFailedError
from appliance.gateway import sse
from appliance.gateway.sse import SseFilter, read_usage


def frame(value: object) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def delta(text: str | None = None, finish: str | None = None, **more: object) -> dict[str, object]:
    content = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": {**content, **more}, "finish_reason": finish}]}


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
USAGE_FRAME = frame({"choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"
OPENING = frame(delta("", role="assistant"))


def filtered(pieces: list[bytes], *, strip: bool) -> tuple[bytes, SseFilter]:
    one = SseFilter(strip_usage=strip)
    out = b"".join(one.feed(piece) for piece in pieces)
    return out + one.finish(), one


@given(
    st.lists(st.text(min_size=1, max_size=12), max_size=6),
    st.lists(st.integers(0, 10_000), max_size=20),
    st.booleans(),
)
def test_cuts_anywhere_change_nothing(texts: list[str], cuts: list[int], strip: bool) -> None:
    tokens = b"".join(frame(delta(text)) for text in texts)
    whole = OPENING + tokens + USAGE_FRAME + DONE
    places = sorted({cut % len(whole) for cut in cuts} | {0, len(whole)})
    pieces = [whole[a:b] for a, b in pairwise(places)]
    out, one = filtered(pieces, strip=strip)
    assert out == (OPENING + tokens + DONE if strip else whole)
    assert one.usage is not None
    assert (one.usage.prompt, one.usage.completion, one.usage.cached) == (5, 2, 3)
    assert one.done
    assert one.began is bool(texts)


@given(
    st.lists(
        st.binary(max_size=30)
        | st.sampled_from(
            [
                OPENING,
                USAGE_FRAME,
                DONE,
                b"\n",
                b"\n\n",
                b": x\n\n",
                b"data: ",
                b'"usage":{',
                b'"choices":[]',
                b"\xc3",
            ]
        ),
        max_size=12,
    )
)
def test_every_stream_is_unchanged_except_for_the_usage_frame(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert filtered(pieces, strip=False)[0] == whole
    if USAGE_FRAME not in whole:
        assert filtered(pieces, strip=True)[0] == whole


@given(st.text())
def test_text_is_never_read_as_a_mark(text: str) -> None:
    nasty = text + '"choices":[] "usage":{} data: [DONE] data: {"error"'
    out, one = filtered([OPENING + frame(delta(nasty))], strip=True)
    assert out == OPENING + frame(delta(nasty))
    assert (one.usage, one.done, one.failed) == (None, False, False)


@pytest.mark.parametrize(
    "first",
    [delta("x"), delta(reasoning_content="x"), delta(reasoning="x"), delta(tool_calls=[{"index": 0}]),
     {"choices": [{"text": "x"}]}, {"type": "response.output_text.delta", "delta": "x"}],
)  # fmt: skip
def test_the_first_token_has_content_of_any_kind(first: object) -> None:
    _, one = filtered([OPENING, b": keep-alive\n\n", frame({"type": "response.created"})], strip=False)
    assert not one.began
    one.feed(frame(first))
    assert one.began


def test_tokens_are_estimated_from_frames() -> None:
    _, one = filtered([OPENING, *(frame(delta(str(i))) for i in range(7))], strip=True)
    assert one.estimated_tokens == 7
    assert SseFilter(strip_usage=True).estimated_tokens == 0


def test_an_incomplete_frame_is_held() -> None:
    one = SseFilter(strip_usage=True)
    assert one.feed(frame(delta("a")) + b'data: {"choi') == frame(delta("a"))
    assert one.feed(b"ces") == b""


def test_an_error_frame_is_detected() -> None:
    _, one = filtered([OPENING + frame({"error": {"message": "x"}}) + DONE], strip=True)
    assert one.failed


def test_invalid_json_is_forwarded_and_a_frame_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    out, one = filtered([b'data: {no json "usage":{\n\n'], strip=True)
    assert out == b'data: {no json "usage":{\n\n'
    assert one.usage is None
    monkeypatch.setattr(sse, "MAX_FRAME", 100)
    with pytest.raises(EngineFailedError, match="a frame without an end"):
        filtered([b"x" * 101], strip=True)


def test_usage_of_whole_responses() -> None:
    usage = read_usage(b'{"id":"x","usage":{"input_tokens":3,"output_tokens":4}}')
    assert usage is not None
    assert (usage.prompt, usage.completion, usage.cached) == (3, 4, 0)
    assert read_usage(b"no json") is None
    assert read_usage(b"{}") is None


def foreign(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\r\n\r\n"


FOREIGN = [
    foreign(delta("", role="assistant")),
    foreign(delta("Hi")),
    foreign({"choices": [], "usage": USAGE}),
    b"data: [DONE]\r\n\r\n",
]


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_a_stream_with_other_line_ends_and_spaces_is_read_as_that_of_vllm(cuts: list[int]) -> None:
    data = b"".join(FOREIGN)
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    one = SseFilter(strip_usage=True, foreign=True)
    out = b"".join(one.feed(data[start:end]) for start, end in pairwise(places)) + one.finish()
    assert out == b"".join(FOREIGN[:2] + FOREIGN[3:]).replace(b"\r\n", b"\n")
    assert (one.began, one.done, one.frames) == (True, True, 3)
    assert one.usage is not None
    assert (one.usage.prompt, one.usage.completion, one.usage.cached) == (5, 2, 3)
