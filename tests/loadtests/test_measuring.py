"""The measuring client and its causes, before the mock engine with every kind of error."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.client import LoadClient, RequestSpec, Target
from loadtests.outcome import Cause, Ending, classify, doubled
from loadtests.sample import Sample
from loadtests.stream import GARBAGE, Reader
from loadtests.token_costs import WORDS, TokenCosts
from loadtests.tokenizer_probe import TokenizerUnavailableError, by_tokenizer, by_usage
from tests.conftest import StartedProcess, http, start_mock


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedProcess]:
    running = start_mock(tmp_path_factory.mktemp("fake") / "log")
    yield running
    running.stop()


def request(text: str, *, stream: bool = True, cancel_after: int | None = None, model: str = "fake") -> RequestSpec:
    body = {"messages": [{"role": "user", "content": f"fake: tokens=12 {text}"}], "max_tokens": 12}
    return RequestSpec(model, body, max_tokens=12, stream=stream, cancel_after=cancel_after)


def measured(
    engine: StartedProcess, directive: str, timeout_s: float = 20.0, *, stall_s: float = 20.0, stream: bool = True
) -> Sample:
    client = LoadClient(Target(engine.url, "sk-x", timeout_s, stall_s))
    try:
        return client.send(request(directive, stream=stream))
    finally:
        client.close()


def test_a_good_response(engine: StartedProcess) -> None:
    sample = measured(engine, "ttft_ms=100 itl_ms=10")
    assert sample.cause == ""
    assert (sample.completion_tokens, sample.chunks, sample.finish_reason) == (12, 12, "stop")
    assert sample.ttft is not None
    assert sample.tpot is not None
    assert sample.ttft >= 0.1
    assert sample.ttft + 11 * sample.tpot >= 0.21
    assert sample.ttft + 11 * sample.tpot <= sample.e2e
    assert sample.gaps.total == 11
    assert sample.gaps.longest >= sample.tpot
    whole = measured(engine, "ttft_ms=50", stream=False)
    assert (whole.cause, whole.ttft, whole.tpot, whole.completion_tokens) == ("", None, None, 12)
    assert whole.e2e >= 0.05


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("cut:5", Cause.TRUNCATED),
        ("cut:0", "no answer (ConnectionResetError)"),
        ("reset", "no answer (ConnectionResetError)"),
        ("no_done", Cause.NO_DONE),
        ("no_usage", Cause.NO_USAGE),
        ("no_finish", Cause.NO_FINISH),
        ("garbage:3", Cause.GARBAGE),
        ("error:3", Cause.ERROR_EVENT),
        ("error_body", Cause.ERROR_BODY),
        ("content_type", Cause.CONTENT_TYPE),
        ("status:429", Cause.TOO_MANY),
        ("status:503", Cause.UNAVAILABLE),
        ("status:418", "status 418"),
        ("stall:1", Cause.STALLED),
        ("stall:0", Cause.TIMEOUT),
        ("hang", Cause.TIMEOUT),
        ("double", Cause.DOUBLED),
        ("split", ""),
        ("merge", ""),
        ("late_end", ""),
    ],
)
def test_each_error_of_an_engine_has_its_cause(engine: StartedProcess, fault: str, cause: str) -> None:
    timeout_s = 0.7 if fault in ("stall:0", "hang") else 20
    stall_s = 0.7 if fault == "stall:1" else 20
    sample = measured(engine, f"fault={fault}", timeout_s, stall_s=stall_s)
    assert sample.cause == cause
    assert sample.e2e < 15, "a stall ends a request long before its timeout"


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("cut:3", Cause.TRUNCATED),
        ("error_body", Cause.ERROR_BODY),
        ("status:503", Cause.UNAVAILABLE),
        ("hang", Cause.TIMEOUT),
    ],
)
def test_responses_without_streaming_have_a_cause_as_well(engine: StartedProcess, fault: str, cause: str) -> None:
    assert measured(engine, f"fault={fault}", timeout_s=0.5 if fault == "hang" else 20, stream=False).cause == cause


def test_an_early_empty_chunk_does_not_hide_a_slow_first_token(engine: StartedProcess) -> None:
    sample = measured(engine, "ttft_ms=300 fault=early_empty")
    assert sample.cause == ""
    assert sample.ttft is not None
    assert sample.ttft >= 0.3


def test_several_tokens_in_a_chunk_are_counted_by_the_engine(engine: StartedProcess) -> None:
    sample = measured(engine, "itl_ms=30 fault=merge")
    assert (sample.cause, sample.completion_tokens, sample.chunks) == ("", 12, 5)
    assert sample.gaps.total == 4
    assert sample.first_token_at is not None
    assert sample.last_token_at is not None
    assert sample.tpot is not None
    # Four gaps hold eleven tokens: per token, not per chunk.
    assert 11 * sample.tpot == pytest.approx(sample.last_token_at - sample.first_token_at)
    assert sample.gaps.longest >= (sample.last_token_at - sample.first_token_at) / 4


def test_a_closed_port_is_a_refused_connection() -> None:
    sample = LoadClient(Target("http://127.0.0.1:1", "k")).send(request(""))
    assert sample.cause == "no answer (ConnectionRefusedError)"


def test_a_cancelled_request_is_aborted_by_the_engine(engine: StartedProcess) -> None:
    before = http(engine.url + "/stats").json["aborted"]
    client = LoadClient(Target(engine.url, "k"))
    sample = client.send(request("itl_ms=50", cancel_after=3))
    assert (sample.cause, sample.chunks) == (Cause.CANCELLED, 3)
    assert client.send(request("")).cause == "", "the next request is not affected"
    client.close()
    assert http(engine.url + "/stats").json["aborted"] == before + 1


def test_a_connection_is_kept_and_a_stale_one_replaced(engine: StartedProcess) -> None:
    client = LoadClient(Target(engine.url, "k"))
    assert [client.send(request("")).reconnected for _ in range(2)] == [False, False]
    assert client.send(request("fault=reset")).cause == "no answer (ConnectionResetError)"
    assert client.send(request("")).cause == ""
    client.close()


def one_response(*pieces: bytes) -> tuple[str, threading.Thread]:
    """Start a server of one response; return its URL and thread."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", thread


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
LAST = (
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"completion_tokens":1,"prompt_tokens":3}}\n\n'
)


@pytest.mark.parametrize(
    ("pieces", "cause"),
    [
        ([HEAD, TOKEN, LAST, b"data: [DONE]\n\n"], ""),
        ([HEAD, TOKEN.replace(b"\n", b"\r\n"), LAST.replace(b"\n", b"\r\n"), b"data: [DONE]\r\n\r\n"], ""),
        ([HEAD, b": keep-alive\n\n", b"event: ping\ndata: {}\n\n", TOKEN, LAST, b"data: [DONE]\n\n"], ""),
        ([HEAD, TOKEN, LAST], Cause.NO_DONE),
        ([HEAD, LAST, b"data: [DONE]\n\n"], Cause.NO_CONTENT),
        ([HEAD, b"data: [DONE]\n\n"], Cause.NO_CONTENT),
        ([HEAD, b'data: "words"\n\n'], Cause.GARBAGE),
        ([HEAD, b'data: {"choices":"none"}\n\n'], Cause.GARBAGE),
        ([HEAD, b"data: \xff\xfe\n\n"], Cause.GARBAGE),
        ([HEAD, TOKEN, b'data: {"object":"error","message":"oom"}\n\n'], Cause.ERROR_EVENT),
        ([HEAD, TOKEN, LAST.replace(b":1,", b":13,"), b"data: [DONE]\n\n"], Cause.OVER_MAX),
        ([HEAD, TOKEN, TOKEN, LAST, b"data: [DONE]\n\n"], Cause.DOUBLED),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "no answer (HttpParserInvalidMethodError)"),
        ([HEAD.replace(b"\r\n\r\n", b"\r\ncontent-length: 900\r\n\r\n"), TOKEN, LAST], Cause.TRUNCATED),
    ],
)
def test_responses_byte_for_byte(pieces: list[bytes], cause: str) -> None:
    url, thread = one_response(*pieces)
    sample = LoadClient(Target(url, "k", 10, 10)).send(request(""))
    thread.join()
    if cause.startswith("no answer"):
        assert sample.cause.startswith("no answer (HttpParser")
    else:
        assert sample.cause == cause


@given(st.data())
def test_a_stream_in_any_pieces_is_parsed_the_same(data: st.DataObject) -> None:
    stream = TOKEN * 3 + b": comment\n\n" + LAST.replace(b":1,", b":3,") + b"data: [DONE]\n\n"
    whole, pieces = Sample(0.0), Sample(0.0)
    Reader(whole).feed(stream, 1.0)
    reader = Reader(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(stream[begin:end], 1.0)
    assert pieces == whole
    assert (pieces.chunks, pieces.completion_tokens, pieces.done) == (3, 3, True)


@given(st.binary(max_size=200))
def test_the_reader_accepts_any_bytes(noise: bytes) -> None:
    sample = Sample(0.0, status=200)
    reader = Reader(sample)
    reader.feed(noise, 1.0)
    cause = classify(sample, Ending.WHOLE, content_type="text/event-stream", fault=reader.fault, texts=reader.texts)
    assert cause, "noise is not a good response"


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40))
def test_doubled_tokens_are_detected_and_repeated_words_are_not(texts: list[str]) -> None:
    assert doubled([t for t in texts for _ in range(2)], len(texts))
    assert not doubled(texts[:1] * 20, 20), "a model can repeat a word twenty times"


def test_garbage_in_a_truncated_stream_is_truncated() -> None:
    sample = Sample(0.0, status=200)
    assert (
        classify(sample, Ending.CUT, content_type="text/event-stream", fault=GARBAGE, texts=()) == Cause.TRUNCATED
    )


# Sizes in tokens.


def test_the_engines_tokenizer_gives_the_costs_of_words(engine: StartedProcess) -> None:
    token_costs = by_tokenizer(engine.url, "fake")
    assert (token_costs.cost("sea"), token_costs.cost("mountain"), token_costs.overhead) == (1, 2, 10)
    assert engine.url in token_costs.source


def test_two_probes_give_the_costs_without_a_tokenizer(engine: StartedProcess) -> None:
    with pytest.raises(TokenizerUnavailableError, match="ConnectionRefusedError"):
        by_tokenizer("http://127.0.0.1:1", "fake")
    with pytest.raises(TokenizerUnavailableError, match="404"):
        by_tokenizer(engine.url + "/other", "fake")
    token_costs = by_usage(Target(engine.url, "k"), "fake")
    # The mock engine counts a token for eight bytes of body.
    assert 0.3 < token_costs.default_cost < 1.2
    assert "two probes" in token_costs.source
    assert "estimated" in by_usage(Target(engine.url, "k"), "unknown").source


@given(st.integers(1, 3000), st.dictionaries(st.sampled_from(WORDS), st.integers(1, 4).map(float)), st.integers())
def test_text_has_the_requested_size(tokens: int, costs: dict[str, float], seed: int) -> None:
    token_costs = TokenCosts(costs, default_cost=1.0)
    text = token_costs.text(random.Random(seed), tokens)
    assert abs(sum(token_costs.cost(word) for word in text.split()) - tokens) <= 3
    assert text == token_costs.text(random.Random(seed), tokens)


def test_the_engine_receives_the_body_of_the_request(engine: StartedProcess) -> None:
    client = LoadClient(Target(engine.url, "sk-secret"))
    client.send(
        RequestSpec("fake", {"messages": [{"role": "user", "content": "grün"}], "max_tokens": 3}, chat_id="c-1")
    )
    client.close()
    received = http(engine.url + "/last").json
    body = json.loads(received["body"])
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"][0]["content"] == "grün"
    assert "x-chat-id: c-1" in received["head"]
    assert "sk-secret" not in repr(client.target), "a key is in no message"
