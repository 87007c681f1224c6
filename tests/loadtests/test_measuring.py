"""The measured client and what it calls things, against an engine that is sabotaged in every way we know."""

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


def ask(text: str, *, stream: bool = True, cancel_after: int | None = None, model: str = "fake") -> RequestSpec:
    body = {"messages": [{"role": "user", "content": f"fake: tokens=12 {text}"}], "max_tokens": 12}
    return RequestSpec(model, body, max_tokens=12, stream=stream, cancel_after=cancel_after)


def asked(
    engine: StartedProcess, directive: str, timeout_s: float = 20.0, *, stall_s: float = 20.0, stream: bool = True
) -> Sample:
    client = LoadClient(Target(engine.url, "sk-x", timeout_s, stall_s))
    try:
        return client.ask(ask(directive, stream=stream))
    finally:
        client.close()


def test_a_good_answer(engine: StartedProcess) -> None:
    sample = asked(engine, "ttft_ms=100 itl_ms=10")
    assert sample.cause == ""
    assert (sample.completion_tokens, sample.chunks, sample.finish_reason) == (12, 12, "stop")
    assert sample.ttft is not None
    assert sample.tpot is not None
    assert sample.ttft >= 0.1
    assert sample.tpot >= 0.009
    assert sample.gaps.total == 11
    assert sample.gaps.longest >= sample.tpot
    whole = asked(engine, "ttft_ms=50", stream=False)
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
def test_each_sabotage_is_named(engine: StartedProcess, fault: str, cause: str) -> None:
    timeout_s = 0.7 if fault in ("stall:0", "hang") else 20
    stall_s = 0.7 if fault == "stall:1" else 20
    sample = asked(engine, f"fault={fault}", timeout_s, stall_s=stall_s)
    assert sample.cause == cause
    assert sample.e2e < 15, "silence ends a request long before its time is over"


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("cut:3", Cause.TRUNCATED),
        ("error_body", Cause.ERROR_BODY),
        ("status:503", Cause.UNAVAILABLE),
        ("hang", Cause.TIMEOUT),
    ],
)
def test_answers_in_one_piece_are_judged_as_well(engine: StartedProcess, fault: str, cause: str) -> None:
    assert asked(engine, f"fault={fault}", timeout_s=0.5 if fault == "hang" else 20, stream=False).cause == cause


def test_an_early_empty_chunk_does_not_hide_a_slow_first_token(engine: StartedProcess) -> None:
    sample = asked(engine, "ttft_ms=300 fault=early_empty")
    assert sample.cause == ""
    assert sample.ttft is not None
    assert sample.ttft >= 0.3


def test_several_tokens_in_a_chunk_count_as_what_the_engine_says(engine: StartedProcess) -> None:
    sample = asked(engine, "itl_ms=30 fault=merge")
    assert (sample.cause, sample.completion_tokens, sample.chunks) == ("", 12, 5)
    assert sample.gaps.total == 4
    assert sample.tpot is not None
    # Four gaps of 30 ms hold eleven tokens: per token, not per chunk.
    assert sample.tpot >= 0.12 / 11
    assert sample.gaps.longest >= 0.03


def test_nobody_listens() -> None:
    sample = LoadClient(Target("http://127.0.0.1:1", "k")).ask(ask(""))
    assert sample.cause == "no answer (ConnectionRefusedError)"


def test_leaving_is_our_doing_and_the_engine_notices(engine: StartedProcess) -> None:
    before = http(engine.url + "/stats").json["aborted"]
    client = LoadClient(Target(engine.url, "k"))
    sample = client.ask(ask("itl_ms=50", cancel_after=3))
    assert (sample.cause, sample.chunks) == (Cause.CANCELLED, 3)
    assert client.ask(ask("")).cause == "", "the next request is none the worse for it"
    client.close()
    assert http(engine.url + "/stats").json["aborted"] == before + 1


def test_a_connection_is_kept_and_a_stale_one_replaced(engine: StartedProcess) -> None:
    client = LoadClient(Target(engine.url, "k"))
    assert [client.ask(ask("")).reconnected for _ in range(2)] == [False, False]
    assert client.ask(ask("fault=reset")).cause == "no answer (ConnectionResetError)"
    assert client.ask(ask("")).cause == ""
    client.close()


def answering(*pieces: bytes) -> tuple[str, threading.Thread]:
    """A server of one answer, byte for byte."""
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
def test_answers_byte_for_byte(pieces: list[bytes], cause: str) -> None:
    url, thread = answering(*pieces)
    sample = LoadClient(Target(url, "k", 10, 10)).ask(ask(""))
    thread.join()
    if cause.startswith("no answer"):
        assert sample.cause.startswith("no answer (HttpParser")
    else:
        assert sample.cause == cause


@given(st.data())
def test_a_stream_reads_the_same_however_it_is_cut(data: st.DataObject) -> None:
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
def test_no_bytes_break_the_reader(noise: bytes) -> None:
    sample = Sample(0.0, status=200)
    reader = Reader(sample)
    reader.feed(noise, 1.0)
    cause = classify(sample, Ending.WHOLE, content_type="text/event-stream", fault=reader.fault, texts=reader.texts)
    assert cause, "noise is no good answer"


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40))
def test_doubling_is_seen_and_repetition_is_not(texts: list[str]) -> None:
    assert doubled([t for t in texts for _ in range(2)], len(texts))
    assert not doubled(texts[:1] * 20, 20), "a model may say the same word twenty times"


def test_garbage_after_a_cut_is_a_cut() -> None:
    sample = Sample(0.0, status=200)
    assert (
        classify(sample, Ending.CUT, content_type="text/event-stream", fault=GARBAGE, texts=()) == Cause.TRUNCATED
    )


# Sizes in tokens.


def test_the_engines_tokenizer_sizes_words(engine: StartedProcess) -> None:
    token_costs = by_tokenizer(engine.url, "fake")
    assert (token_costs.cost("sea"), token_costs.cost("mountain"), token_costs.overhead) == (1, 2, 10)
    assert engine.url in token_costs.source


def test_without_a_tokenizer_the_usage_of_two_probes_does(engine: StartedProcess) -> None:
    with pytest.raises(TokenizerUnavailableError, match="ConnectionRefusedError"):
        by_tokenizer("http://127.0.0.1:1", "fake")
    with pytest.raises(TokenizerUnavailableError, match="404"):
        by_tokenizer(engine.url + "/elsewhere", "fake")
    token_costs = by_usage(Target(engine.url, "k"), "fake")
    # The fake counts a token for eight bytes of body.
    assert 0.3 < token_costs.default_cost < 1.2
    assert "two probes" in token_costs.source
    assert "estimated" in by_usage(Target(engine.url, "k"), "nobody").source


@given(st.integers(1, 3000), st.dictionaries(st.sampled_from(WORDS), st.integers(1, 4).map(float)), st.integers())
def test_text_has_the_size_that_was_wanted(tokens: int, costs: dict[str, float], seed: int) -> None:
    token_costs = TokenCosts(costs, default_cost=1.0)
    text = token_costs.text(random.Random(seed), tokens)
    assert abs(sum(token_costs.cost(word) for word in text.split()) - tokens) <= 3
    assert text == token_costs.text(random.Random(seed), tokens)


def test_json_of_a_body_is_what_was_asked(engine: StartedProcess) -> None:
    client = LoadClient(Target(engine.url, "sk-secret"))
    client.ask(
        RequestSpec("fake", {"messages": [{"role": "user", "content": "grün"}], "max_tokens": 3}, chat_id="c-1")
    )
    client.close()
    seen = http(engine.url + "/last").json
    body = json.loads(seen["body"])
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"][0]["content"] == "grün"
    assert "x-chat-id: c-1" in seen["head"]
    assert "sk-secret" not in repr(client.target), "a key shows in no message"
