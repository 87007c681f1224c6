"""The memory in a plain chat completion: the queries of a chat, its context, the annotations of its response. Pure.

The context is a system message after those of the request; the gateway puts the role's own before them and merges
all into one. Retrieved text is data in a fence (:mod:`appliance.assistant.retrieval.context`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from appliance.assistant import ids
from appliance.assistant.retrieval.context import ContextBlock, build_context
from appliance.assistant.retrieval.ranking import RankedPassage

MAX_TOKENS = 3000
"""Tokens of a context, unless a quarter of the engine's context is less."""
LETTERS_PER_TOKEN = 3
"""Letters of a token, estimated low: Russian has about 3, English 4."""
QUERY_LETTERS = 2000
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_PREFIX = b"data:"
_LEADING = ("system", "developer")


def chat_queries(messages: Sequence[Any]) -> list[str]:
    """Return the last message of the user; then, if there is one before, both together.

    A short message, such as "and when?", is found only with the message before it.
    """
    texts = [text for one in messages if (text := _user_text(one).strip())]
    if not texts or not _is_user(messages[-1]):
        return []
    last = texts[-1][:QUERY_LETTERS]
    return [last] if len(texts) == 1 else [last, f"{texts[-2][:QUERY_LETTERS]}\n{last}"]


def _is_user(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") == "user"


def _user_text(message: object) -> str:
    """Return the text of a user's message; empty for every other one."""
    if not isinstance(message, dict) or message.get("role") != "user":
        return ""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def context_block(
    passages: Sequence[RankedPassage], context: int, *, now: datetime, first: int = 1
) -> ContextBlock:
    """Return the block of ``passages`` for an engine with ``context`` tokens; empty if none fits."""
    budget = min(MAX_TOKENS, context // 4)
    return build_context(passages, budget, lambda text: len(text) // LETTERS_PER_TOKEN + 1, now=now, first=first)


def with_context(messages: Sequence[Any], text: str) -> list[Any]:
    """Return ``messages`` with ``text`` as a system message after those at the beginning."""
    at = 0
    while at < len(messages) and isinstance(messages[at], dict) and messages[at].get("role") in _LEADING:
        at += 1
    return [*messages[:at], {"role": "system", "content": text}, *messages[at:]]


@dataclass(frozen=True, slots=True)
class MemoryCitation:
    """A passage of a context: the number by which a response cites it, and its file or its past chat."""

    number: int
    group: str
    """The id of the file or of the conversation."""
    source: str
    """The name of the file or the title of the chat."""
    date: str | None = None

    def annotation(self, *, index: int) -> dict[str, Any]:
        """Return the annotation at ``index``."""
        if self.group.startswith(f"{ids.CONVERSATION}_"):
            about = {"conversation_id": self.group, "title": self.source, "date": self.date}
            return {"type": "conversation_citation", **about, "index": index}
        return {"type": "file_citation", "file_id": self.group, "filename": self.source, "index": index}


def citations(block: ContextBlock, passages: Sequence[RankedPassage]) -> list[MemoryCitation]:
    """Return a citation for each passage of ``block``."""
    dates = {one.passage.key: one.passage.date for one in passages}
    return [
        MemoryCitation(one.number, one.group, one.source, None if date is None else f"{date:%Y-%m-%d}")
        for one in block.citations
        for date in (dates[one.key],)
    ]


def annotate(response: Mapping[str, Any], cited: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a whole chat completion with ``cited`` in the message of each choice."""
    choices = response.get("choices")
    if not isinstance(choices, list):
        return dict(response)
    return {**response, "choices": [_annotated(one, cited) for one in choices]}


def _annotated(choice: Any, cited: Sequence[Mapping[str, Any]]) -> Any:
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        return choice
    given = choice["message"].get("annotations")
    kept = given if isinstance(given, list) else []
    return {**choice, "message": {**choice["message"], "annotations": [*kept, *cited]}}


class StreamAnnotator:
    """Puts a chunk with the annotations before the last chunk of each choice of a stream.

    Every byte of the stream passes unchanged; pieces may be cut anywhere.
    """

    def __init__(self, cited: Sequence[Mapping[str, Any]]) -> None:
        self._cited = [*cited]
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the whole lines of the stream up to the end of ``piece``, with the added chunks."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return b"".join(self._before(line) + line + b"\n" for line in lines)

    def end(self) -> bytes:
        """Return the bytes of a line without an end."""
        rest, self._rest = self._rest, b""
        return rest

    def _before(self, line: bytes) -> bytes:
        """Return the chunk before ``line``, an event's data; empty unless it ends a choice."""
        if not line.startswith(_PREFIX) or not _FINISHED.search(line):
            return b""
        try:
            chunk = json.loads(line[len(_PREFIX) :])
        except ValueError:
            return b""
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        ended = [one for one in choices or () if isinstance(one, dict) and one.get("finish_reason")]
        if not ended:
            return b""
        added = {name: chunk[name] for name in ("id", "object", "created", "model") if name in chunk}
        added["choices"] = [
            {"index": one.get("index", 0), "delta": {"annotations": self._cited}, "finish_reason": None}
            for one in ended
        ]
        return b"data: " + json.dumps(added, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"
