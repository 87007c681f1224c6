"""The outcome of a request. Pure: from its sample to one cause, the first error that explains the outcome.

A response is good only with content, ``finish_reason``, usage and ``[DONE]``: a truncated stream lacks one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from loadtests.sample import Sample
from loadtests.stream import ERROR, GARBAGE, Fault


class Ending(StrEnum):
    """The end of the transport."""

    WHOLE = "whole"
    CUT = "cut"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    CANCELLED = "cancelled"


class Cause(StrEnum):
    """Causes of a failed request; other statuses are ``status N``, a failed connection is ``no answer (ERROR)``."""

    TOO_MANY = "429"
    UNAVAILABLE = "503"
    TRUNCATED = "truncated"
    NO_DONE = "no [DONE]"
    NO_USAGE = "no usage"
    NO_FINISH = "no finish_reason"
    NO_CONTENT = "no content"
    ERROR_EVENT = "error event"
    ERROR_BODY = "error body with 200"
    GARBAGE = "garbage"
    CONTENT_TYPE = "wrong content type"
    STALLED = "stalled"
    DOUBLED = "doubled tokens"
    OVER_MAX = "more tokens than asked"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled by us"
    CLIENT_LIMIT = "not sent (client limit)"


NOT_ERRORS = frozenset({Cause.CANCELLED})
"""Actions of the load test; neither good responses nor failures of the service."""


def no_answer(error_name: str) -> str:
    """Return the cause of a request whose connection failed with the error of this name."""
    return f"no answer ({error_name})"


def classify(
    sample: Sample, ending: Ending, *, content_type: str, fault: Fault, texts: Sequence[str], error_name: str = ""
) -> str:
    """Return the cause, empty for a good response; ``error_name`` names the error of a failed connection."""
    if ending is Ending.CANCELLED:
        return Cause.CANCELLED
    if sample.status == 0:
        return no_answer(error_name) if ending is not Ending.TIMEOUT else Cause.TIMEOUT
    if sample.status != 200:
        return {429: Cause.TOO_MANY, 503: Cause.UNAVAILABLE}.get(sample.status, f"status {sample.status}")
    return _of_200(sample, ending, content_type=content_type, fault=fault, texts=texts)


def _of_200(sample: Sample, ending: Ending, content_type: str, fault: Fault, texts: Sequence[str]) -> str:
    wanted = "text/event-stream" if sample.streamed else "application/json"
    begun = sample.first_token_at is not None
    as_event = sample.streamed and content_type == wanted
    for holds, cause in (
        (fault == ERROR, Cause.ERROR_EVENT if as_event else Cause.ERROR_BODY),
        (content_type != wanted, Cause.CONTENT_TYPE),
        (ending is Ending.CUT and not sample.done, Cause.TRUNCATED),
        (fault == GARBAGE, Cause.GARBAGE),
        # After [DONE] the response is complete, even if the connection hangs or fails. A stream without a first
        # token timed out; after its first token it stalled.
        (ending in (Ending.STALLED, Ending.TIMEOUT) and not sample.done and not begun, Cause.TIMEOUT),
        (ending is Ending.STALLED and not sample.done, Cause.STALLED),
        (ending is Ending.TIMEOUT and not sample.done, Cause.TIMEOUT),
    ):
        if holds:
            return cause
    return _of_whole(sample, texts)


def _of_whole(sample: Sample, texts: Sequence[str]) -> str:
    tokens = sample.completion_tokens
    for missing, cause in (
        (sample.first_token_at is None, Cause.NO_CONTENT),
        (sample.finish_reason is None, Cause.NO_FINISH),
        (tokens is None, Cause.NO_USAGE),
        (not sample.done, Cause.NO_DONE),
    ):
        if missing:
            return cause
    if sample.streamed and doubled(texts, tokens or 0):
        return Cause.DOUBLED
    if sample.max_tokens and (tokens or 0) > sample.max_tokens:
        return Cause.OVER_MAX
    return ""


def doubled(texts: Sequence[str], tokens: int) -> bool:
    """Return whether a stream contains each token twice.

    A chunk holds at least one token, so more content chunks than counted tokens prove it. One more is allowed,
    because a token can be split between reasoning and content. With several tokens in a chunk, the chunks must be
    equal in pairs. At least four different ones are required, since a model can repeat itself.
    """
    pairs = list(zip(texts[::2], texts[1::2], strict=False))
    paired = len(texts) % 2 == 0 and all(one == other for one, other in pairs)
    return len(texts) > tokens + 1 or (paired and (len(texts) > tokens or len(set(texts)) >= 4))
