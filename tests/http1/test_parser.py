"""The parser of requests alone: the same events for any split of any bytes, phases as in the table, limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BodyTooLargeError, NotFoundError, RequestError
from appliance.http1.parser import MAX_HEADERS, HeadersTooLargeError, ParserPhase, RequestParser
from appliance.http1.types import Request

BODY_LIMIT = 1000

ParserEvent = tuple[object, ...]


class RecordedEvents:
    """The events of one parser, as comparable tuples."""

    def __init__(self, refused: RequestError | None = None) -> None:
        self.events: list[ParserEvent] = []
        self.refused = refused
        """Raised on the head of a request to ``/refused``."""
        self.refused_request: Request | None = None
        ids = count()
        self.parser = RequestParser(self, lambda: str(next(ids)))

    def on_head(self, request: Request) -> int:
        self.events.append(("on_head", request.method, request.target, dict(request.headers), request.close))
        if self.refused is not None and request.target == b"/refused":
            raise self.refused
        return BODY_LIMIT

    def on_continue(self) -> None:
        self.events.append(("on_continue",))

    def on_too_large(self, request: Request, error: RequestError) -> RequestError:
        return error

    def on_request(self, request: Request) -> None:
        self.events.append(("on_request", request.target, request.body))

    def on_error(self, request: Request, error: Exception) -> None:
        self.refused_request = request
        # The bytes at hand decide how much is known of an incomplete head, so only a complete one is compared.
        self.events.append(("on_error", request.target if request.method else b"", type(error), str(error)))


class ClosingEvents(RecordedEvents):
    """Events that close the parser after the first request, as a server does after the last response."""

    def on_request(self, request: Request) -> None:
        super().on_request(request)
        self.parser.close()


def parse(*pieces: bytes) -> list[ParserEvent]:
    """Return the events of a new parser that is fed ``pieces``."""
    recorded = RecordedEvents()
    for piece in pieces:
        recorded.parser.feed(piece)
    return recorded.events


def without_messages(events: list[ParserEvent]) -> list[ParserEvent]:
    """Return ``events`` without the messages of errors.

    A head with two errors is rejected for one of them; the split decides which error the parser finds first.
    """
    return [event[:-1] if event[0] == "on_error" else event for event in events]


def last_error(*pieces: bytes) -> str:
    """Return the message of the error in which ``pieces`` end."""
    name, *_, message = parse(*pieces)[-1]
    assert name == "on_error"
    return str(message)


def bodies(*pieces: bytes) -> list[object]:
    """Return the targets and bodies of the complete requests in ``pieces``."""
    return [event[1:] for event in parse(*pieces) if event[0] == "on_request"]


def split(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Yield ``data`` in pieces of ``sizes``, and the rest."""
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


def head(*lines: str, target: str = "/x", method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "host: x", *lines, "", ""]).encode("latin1")


def chunked(body: bytes, sizes: Iterable[int], trailer: bytes = b"", extension: bytes = b"") -> bytes:
    chunks = [b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in split(body, sizes) if part]
    return b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"


# Any bytes, any split.

FRAGMENTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"GET /y HTTP/1.0\r\n", b"CONNECT a:1 HTTP/1.1\r\n",
        b"host: x\r\n", b"host: y\r\n", b"host: a b\r\n", b"x: y\r\n", b"content-type: a\r\n",
        b"content-length: 3\r\n", b"content-length: 2000\r\n", b"transfer-encoding: chunked\r\n",
        b"connection: close\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n", b"expect: 100-continue\r\n",
        b"\r\n", b"abc", b"3\r\nabc\r\n", b"3;x=y\r\nabc\r\n", b"0\r\n", b"0\r\n\r\n", b"POST /y", b"z HTTP/1.1",
        b"\n", b"\r", b"\x00", b"\x16\x03\x01", b"7ff\r\n",
    ]
)  # fmt: skip
STREAMS = st.one_of(
    st.binary(max_size=80),
    st.lists(st.one_of(FRAGMENTS, st.binary(max_size=3)), max_size=16).map(b"".join),
)
SIZES = st.lists(st.integers(1, 20), max_size=30)


@settings(max_examples=500, deadline=None)
@given(STREAMS, SIZES)
def test_any_split_of_any_bytes_gives_the_same_events(data: bytes, sizes: list[int]) -> None:
    at_once = without_messages(parse(data))
    assert without_messages(parse(*split(data, sizes))) == at_once
    assert without_messages(parse(*(data[index : index + 1] for index in range(len(data))))) == at_once


@settings(deadline=None)
@given(STREAMS, SIZES, STREAMS)
def test_no_event_follows_an_error(data: bytes, sizes: list[int], more: bytes) -> None:
    recorded = RecordedEvents()
    for piece in split(data, sizes):
        recorded.parser.feed(piece)
    recorded.parser.fail(NotFoundError("stop"))
    events = [*recorded.events]
    assert events[-1][0] == "on_error"
    assert [event[0] for event in events].count("on_error") == 1
    recorded.parser.feed(more)
    recorded.parser.fail(NotFoundError("again"))
    assert recorded.parser.close() is None
    assert recorded.events == events


@settings(deadline=None)
@given(STREAMS, STREAMS)
def test_no_event_follows_close(data: bytes, more: bytes) -> None:
    recorded = RecordedEvents()
    recorded.parser.feed(data)
    recorded.parser.close()
    events = [*recorded.events]
    recorded.parser.feed(more)
    recorded.parser.fail(NotFoundError("late"))
    assert recorded.events == events


def test_close_inside_an_event_stops_the_current_read() -> None:
    recorded = ClosingEvents()
    recorded.parser.feed(head(method="GET") * 3)
    assert [event[0] for event in recorded.events] == ["on_head", "on_request"]


# Phases.


def table() -> set[tuple[str, str, str]]:
    """Return the rows of the docstring's table as ``(phase, event, next)``; an empty event is none."""
    block = (ParserPhase.__doc__ or "").split("::\n\n")[1].split("\n\n")[0].splitlines()
    columns = [block[0].index(name) for name in ("phase", "input", "event", "next")]
    cells = [[line[begin:end].strip() for begin, end in pairwise([*columns, 100])] for line in block[1:]]
    return {(phase, event, following) for phase, _, event, following in cells}


def walk(phase: str, events: list[str], after: str) -> set[tuple[str, str, str]]:
    """Return the rows that lead from ``phase`` by ``events`` to ``after``; none if the table has no such walk."""
    for row in table():
        before, event, following = row
        if before != phase:
            continue
        if event == "" and (before, events) == (following, []) and following == after:
            return {row}
        if event and events[:1] == [event]:
            rest = walk(following, events[1:], after) if (events[1:], following) != ([], after) else {row}
            if rest:
                return {row} | rest
        if event == "" and following not in (before, "CLOSED"):
            rest = walk(following, events, after) if (events, following) != ([], after) else {row}
            if rest:
                return {row} | rest
    return set()


def walks(data: bytes, *, failing: bool) -> set[tuple[str, str, str]]:
    """Return the rows that ``data`` uses, byte by byte, and then ``fail()`` or ``close()``."""
    recorded = RecordedEvents()
    used: set[tuple[str, str, str]] = set()
    for index in range(len(data)):
        phase, seen = recorded.parser.phase.name, len(recorded.events)
        recorded.parser.feed(data[index : index + 1])
        events = [str(event[0]) for event in recorded.events[seen:] if event[0] != "on_continue"]
        rows = walk(phase, events, recorded.parser.phase.name)
        assert rows, (phase, events, recorded.parser.phase.name)
        used |= rows
    phase = recorded.parser.phase.name
    if failing:
        recorded.parser.fail(NotFoundError("stop"))
        row = (phase, "on_error" if phase != "CLOSED" else "", "CLOSED")
    else:
        recorded.parser.close()
        row = (phase, "", "CLOSED")
    assert recorded.parser.phase is ParserPhase.CLOSED
    assert row in table()
    return used | {row}


@settings(max_examples=300, deadline=None)
@given(STREAMS, st.booleans())
def test_phases_change_only_as_in_the_table(data: bytes, failing: bool) -> None:
    walks(data, failing=failing)


def test_every_row_of_the_table_happens() -> None:
    whole = b"\r\n" + head("content-length: 3") + b"abc"
    used: set[tuple[str, str, str]] = set()
    for data in (b"", whole, b"\x00", b"GET /\r\n", whole + b"GET / HTTP/1.1\r\nho", whole[:-1], whole + b"\x00"):
        used |= walks(data, failing=True) | walks(data, failing=False)
    assert used == table()


# Requests, alone and pipelined.

REQUESTS = st.tuples(
    st.binary(max_size=40),
    st.sampled_from(["length", "chunked", "chunked with extensions", "none"]),
    SIZES,
    st.booleans(),
    st.booleans(),
)


def encode(number: int, body: bytes, framing: str, sizes: list[int], upgrade: bool, trailer: bool) -> bytes:
    """Return a request to ``/number`` as bytes."""
    lines = ["connection: upgrade", "upgrade: h2c"] if upgrade else []
    if framing == "none":
        return head(*lines, target=f"/{number}", method="GET")
    if framing == "length":
        return head(*lines, f"content-length: {len(body)}", target=f"/{number}") + body
    extension = b";a=b" if framing.endswith("extensions") else b""
    rest = chunked(body, sizes, b"authorization: Bearer stolen\r\nx: y\r\n" if trailer else b"", extension)
    return head(*lines, "transfer-encoding: chunked", target=f"/{number}") + rest


@settings(max_examples=300, deadline=None)
@given(st.lists(REQUESTS, max_size=6), SIZES)
def test_pipelined_requests_are_parsed_apart(
    requests: list[tuple[bytes, str, list[int], bool, bool]], sizes: list[int]
) -> None:
    """Each has its own body, in order, with trailers and upgrades among them; no trailer becomes a header."""
    data = b"".join(encode(number, *request) for number, request in enumerate(requests))
    expected = [
        (b"/%d" % number, b"" if framing == "none" else body) for number, (body, framing, *_) in enumerate(requests)
    ]
    assert bodies(data) == bodies(*split(data, sizes)) == expected
    headers = [event[3] for event in parse(data) if event[0] == "on_head"]
    assert not [found for found in headers if isinstance(found, dict) and found.keys() & {b"authorization", b"x"}]


def test_a_request_has_its_head_and_its_body() -> None:
    data = head("Content-Length: 3", "X: a", "x: b", target="/v1%2Fmodels?a=b") + b"abc"
    headers = {b"host": b"x", b"content-length": b"3", b"x": b"a, b"}
    assert parse(data) == [
        ("on_head", "POST", b"/v1%2Fmodels?a=b", headers, False),
        ("on_request", b"/v1%2Fmodels?a=b", b"abc"),
    ]


def test_an_upgrade_is_parsed_as_a_request_without_it() -> None:
    data = head("connection: upgrade", "upgrade: websocket", "http2-settings: x", "y: z", method="GET")
    assert parse(data)[0] == ("on_head", "GET", b"/x", {b"host": b"x", b"y": b"z"}, False)


def test_100_continue_follows_the_head_unless_the_body_is_over_the_limit() -> None:
    names = [event[0] for event in parse(head("expect: 100-Continue", "content-length: 3"))]
    assert names == ["on_head", "on_continue"]
    names = [event[0] for event in parse(head("expect: 100-continue", f"content-length: {BODY_LIMIT + 1}"))]
    assert names == ["on_head", "on_error"]


@pytest.mark.parametrize(
    ("lines", "close"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n", False),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n", True),
        (b"GET / HTTP/1.0\r\n", True),
        (b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n", True),
    ],
)
def test_the_head_decides_whether_the_connection_closes(lines: bytes, close: bool) -> None:
    assert parse(lines + b"\r\n")[0][-1] is close


# Refusals.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "Host is missing"),
        (b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n", "Host has no valid host"),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", "HTTP/2.0 is not supported"),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", "not a proxy"),
        (head("authorization: a", "authorization: a"), "authorization occurs twice"),
        (head("content-type: a", "content-type: b"), "content-type occurs twice"),
        (head("content-length: 1", "transfer-encoding: chunked"), "not an HTTP/1.1 request"),
        (b"\x16\x03\x01\x02", "not an HTTP/1.1 request"),
    ],
)
def test_an_invalid_head_is_refused(data: bytes, message: str) -> None:
    assert message in last_error(data)


def test_equal_content_types_are_one() -> None:
    assert bodies(head("content-type: a", "content-type: a", method="GET")) == [(b"/x", b"")]


@pytest.mark.parametrize("reads", [1, 7, 100_000])
def test_a_body_over_its_limit_is_refused(reads: int) -> None:
    for body in (b"x" * (BODY_LIMIT + 1), b"x" * 50_000):
        data = head("transfer-encoding: chunked") + chunked(body, [300] * 200)
        events = parse(*split(data, [reads] * (len(data) // reads)))
        assert [event[0] for event in events] == ["on_head", "on_error"]
        assert events[-1][2] is BodyTooLargeError
        assert events[-1][3] == f"The body is over the limit of {BODY_LIMIT} bytes"


def test_an_error_of_on_head_refuses_the_request() -> None:
    for error in (NotFoundError("not here"), ValueError("unexpected")):
        recorded = RecordedEvents(refused=error)  # type: ignore[arg-type]
        recorded.parser.feed(head(target="/refused", method="GET") + head(method="GET"))
        assert [event[0] for event in recorded.events] == ["on_head", "on_error"]
        assert recorded.events[-1][2:] == (type(error), str(error))


def test_a_timeout_refuses_what_is_known_of_the_request() -> None:
    recorded = RecordedEvents()
    recorded.parser.feed(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nanthropic-version: 1\r\nx: ")
    recorded.parser.fail(NotFoundError("late"))
    assert recorded.events == [("on_error", b"", NotFoundError, "late")]
    assert recorded.refused_request is not None
    assert recorded.refused_request.target == b"/v1/models"
    assert recorded.refused_request.headers[b"anthropic-version"] == b"1"


def test_close_returns_the_request_without_its_body() -> None:
    recorded = RecordedEvents()
    recorded.parser.feed(head("content-length: 3") + b"a")
    unfinished = recorded.parser.close()
    assert unfinished is not None
    assert unfinished.target == b"/x"


# Limits.


def reads(data: bytes, size: int) -> list[bytes]:
    return [data[index : index + size] for index in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 1000, 1_000_000])
@pytest.mark.parametrize("value", [100, 5000])
def test_the_limit_of_a_head_is_the_same_for_any_split(size: int, value: int) -> None:
    line = f"x: {'a' * value}"
    most = (MAX_HEADERS - 100) // (len(line) + 2)
    assert bodies(*reads(head(*[line] * most, method="GET"), size)) == [(b"/x", b"")]
    too_many = (MAX_HEADERS + 100) // (len(line) + 1) + 1
    assert parse(*reads(head(*[line] * too_many), size))[-1][2] is HeadersTooLargeError


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_a_target_over_the_limit_is_refused(size: int) -> None:
    assert parse(*reads(head(target="/" + "a" * MAX_HEADERS), size))[-1][2] is HeadersTooLargeError


@pytest.mark.parametrize(
    "endless", [b"0\r\n" + b"name: value\r\n" * 5000, b"5;x=" + b"a" * 40_000, b"0\r\nx: " + b"a" * 40_000]
)
def test_a_trailer_or_a_chunk_extension_without_end_is_refused(endless: bytes) -> None:
    events = parse(head("transfer-encoding: chunked"), *reads(endless, 1000))
    assert events[-1][2] is HeadersTooLargeError


def test_trailers_do_not_count_for_the_next_head() -> None:
    trailer = b"x: " + b"a" * (MAX_HEADERS - 1000) + b"\r\n"
    one = head("transfer-encoding: chunked") + chunked(b"abc", [], trailer)
    other = head(f"y: {'a' * (MAX_HEADERS - 1000)}", method="GET")
    for size in (1000, 1_000_000):
        assert bodies(*reads(one + other, size)) == [(b"/x", b"abc"), (b"/x", b"")]


def test_a_small_body_in_many_reads_is_never_too_large() -> None:
    body = b"x" * BODY_LIMIT
    data = head("transfer-encoding: chunked") + chunked(body, [1] * BODY_LIMIT, extension=b";a=" + b"b" * 60)
    assert len(data) > MAX_HEADERS
    assert bodies(*reads(data, 1)) == [(b"/x", body)]
