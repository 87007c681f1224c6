"""What an answer was. Pure: from what was seen of it to one name, the first fault that explains it.

An answer is good only with content, ``finish_reason``, usage and ``[DONE]``: a stream cut anywhere lacks one.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from loadtests.sample import Sample
from loadtests.stream import ERROR, GARBAGE, Fault


class Ending(StrEnum):
    """How the transport ended."""

    WHOLE = "whole"
    CUT = "cut"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    CANCELLED = "cancelled"
    NO_ANSWER = "no answer"
    STOPPED = "stopped"


class Cause(StrEnum):
    """Why an answer is not a good one. Other statuses are ``status N``, a failed connect ``no answer (WHY)``."""

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
    STOPPED = "unfinished at the end"
    CLIENT_LIMIT = "not sent (client limit)"


NOT_ERRORS = frozenset({Cause.CANCELLED, Cause.STOPPED})
"""What we did ourselves; neither good answers nor the service's failures."""


def classify(
    sample: Sample, ending: Ending, *, content_type: str, fault: Fault, texts: Sequence[str], why: str = ""
) -> str:
    """The cause, or an empty string for a good answer. ``why`` is the reason of a connection that failed."""
    if ending is Ending.CANCELLED:
        return Cause.CANCELLED
    if ending is Ending.STOPPED:
        return Cause.STOPPED
    if sample.status == 0:
        return f"no answer ({why})" if ending is not Ending.TIMEOUT else Cause.TIMEOUT
    if sample.status != 200:
        return {429: Cause.TOO_MANY, 503: Cause.UNAVAILABLE}.get(sample.status, f"status {sample.status}")
    return _of_200(sample, ending, content_type, fault, texts)


def _of_200(sample: Sample, ending: Ending, content_type: str, fault: Fault, texts: Sequence[str]) -> str:
    wanted = "text/event-stream" if sample.streamed else "application/json"
    begun = sample.first_token_at is not None
    as_event = sample.streamed and content_type == wanted
    for seen, cause in (
        (fault == ERROR, Cause.ERROR_EVENT if as_event else Cause.ERROR_BODY),
        (content_type != wanted, Cause.CONTENT_TYPE),
        (ending is Ending.CUT and not sample.done, Cause.TRUNCATED),
        (fault == GARBAGE, Cause.GARBAGE),
        # Silence or a break after [DONE] takes nothing from an answer. Silent after its first token, a stream
        # stalled; before it, nothing ever came.
        (ending in (Ending.STALLED, Ending.TIMEOUT) and not sample.done and not begun, Cause.TIMEOUT),
        (ending is Ending.STALLED and not sample.done, Cause.STALLED),
        (ending is Ending.TIMEOUT and not sample.done, Cause.TIMEOUT),
    ):
        if seen:
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
    """Whether a stream brought its tokens twice.

    More content chunks than the engine counted tokens cannot be: a chunk holds one token or more (one to spare,
    where reasoning and answer part inside a token). Where chunks hold several tokens, every chunk must equal its
    neighbour in pairs, with at least four different ones, or a model that repeats itself would look like it.
    """
    pairs = list(zip(texts[::2], texts[1::2], strict=False))
    paired = len(texts) % 2 == 0 and all(one == other for one, other in pairs)
    return len(texts) > tokens + 1 or (paired and (len(texts) > tokens or len(set(texts)) >= 4))
