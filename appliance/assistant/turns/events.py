"""The events of one response, from the chunks of the engine's streams. Pure: no socket, no clock.

Ids, numbers and the final event are our own. Engines end a stream as completed although it was cut, and their ids
differ between events. One response has the chunks of several calls of the engine if the model searches.

An item is open from ``output_item.added`` to ``output_item.done``:

| open | chunk with | effect |
|---|---|---|
| any | reasoning | closes the text; opens the reasoning, or continues it |
| any | text | closes the reasoning; opens a message, or continues it |
| any | a call's piece | closes reasoning and text; opens the call once it has a name, or continues it |
| any | a call of a hosted tool | closes reasoning and text; no event until its search begins |
| any | finish ``stop`` or ``tool_calls`` | closes every item as completed |
| any | finish ``length`` or ``content_filter`` | the item opened last is incomplete, others completed |
| any | no finish: the stream was cut | open items are dropped, or incomplete if the client ended the turn |

White space before the first letter of a text opens no message: models emit it between reasoning and calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from appliance.assistant import ids
from appliance.assistant.turns.engine_stream import CallPiece, ChatChunk, ChatDelta, ChatUsage
from appliance.assistant.turns.search_results import CitedSource, shown_item, source_citations
from appliance.assistant.web.session import WebOutcome, with_sources

Event = dict[str, Any]
FinalStatus = Literal["completed", "incomplete", "failed", "cancelled"]


@dataclass(slots=True)
class RequestedSearch:
    """A call of a hosted tool by the model: file_search or one of the functions of web_search."""

    call_id: str
    name: str
    arguments: str
    partial: bool = False
    """Whether the call is not whole."""


@dataclass(slots=True)
class _OpenItem:
    """An item whose end was not received."""

    item: dict[str, Any]
    index: int
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(slots=True)
class _OpenCall:
    """A call whose pieces arrive; it has an item once it has a name that is not that of a hosted tool."""

    call_id: str
    name: str = ""
    held: str = ""
    """Arguments before the item was opened."""
    opened: _OpenItem | None = None


class ResponseEvents:
    """The state of one response; every method returns the events to send next.

    Args:
        response: The response object at its start, without output.
        hosted: Names of the functions that run here.
        include: Fields that clients get only if they request them, as ``include`` names them.
        sources: Numbered sources in the prompt, for citations.
    """

    def __init__(
        self,
        response: dict[str, Any],
        *,
        hosted: Set[str] = frozenset(),
        include: Set[str] = frozenset(),
        sources: Mapping[int, CitedSource] | None = None,
    ) -> None:
        self.response = response
        self.sources: dict[int, CitedSource] = dict(sources or {})
        self.finish_reason: str | None = None
        self.usage = {"input": 0, "cached": 0, "output": 0, "reasoning": 0}
        self.written = 0
        """Tokens of the model in all calls that ended; each byte counts as one in a call without usage."""
        self._call_tokens: int | None = None
        self._call_bytes = 0
        self.searches: list[RequestedSearch] = []
        """Searches that the model requested in the current call of the engine."""
        self.spoken = ""
        """Text of the current call of the engine, for the messages of the next one."""
        self.hosted = hosted
        self._include = include
        self._number = 0
        self._done: dict[int, dict[str, Any]] = {}
        self._next = 0
        self._text: _OpenItem | None = None
        self._reasoning: _OpenItem | None = None
        self._calls: dict[int, _OpenCall] = {}
        self._last_opened = -1
        self._blank = ""

    @property
    def output(self) -> list[dict[str, Any]]:
        """The items that are closed, in their order, with all results."""
        return [self._done[index] for index in sorted(self._done)]

    @property
    def has_function_calls(self) -> bool:
        """Whether the client must run a function."""
        return any(item["type"] == "function_call" for item in self._done.values())

    def created(self, *, queued: bool = False) -> list[Event]:
        """Return the events that open the stream."""
        self.response["status"] = "queued" if queued else "in_progress"
        events = [self._event("response.created", response=self.snapshot())]
        if queued:
            return [*events, self._event("response.queued", response=self.snapshot())]
        return [*events, self._event("response.in_progress", response=self.snapshot())]

    def started(self) -> list[Event]:
        """Return the event of a queued response that runs now."""
        self.response["status"] = "in_progress"
        return [self._event("response.in_progress", response=self.snapshot())]

    def feed(self, chunk: ChatChunk) -> list[Event]:
        """Return the events of one chunk of the engine."""
        if chunk.usage is not None:
            self._add_usage(chunk.usage)
        events: list[Event] = []
        for choice in chunk.choices:
            delta = choice.delta
            if delta is not None:
                reasoning = delta.reasoning or delta.reasoning_content
                self._call_bytes += _written_bytes(delta)
                if reasoning:
                    events += self._add_reasoning(reasoning)
                if delta.content:
                    events += self._add_text(delta.content)
                for piece in delta.tool_calls or ():
                    events += self._add_call(piece)
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
        return events

    def end_call(self) -> list[Event]:
        """Close the items of a call of the engine whose stream ended with a finish reason."""
        self.written += self._call_bytes if self._call_tokens is None else self._call_tokens
        self._call_tokens, self._call_bytes = None, 0
        cut = self._last_opened if self.finish_reason in ("length", "content_filter") else -1
        return self._close_all(cut=cut)

    def interrupt(self) -> list[Event]:
        """Close open items as incomplete: the client ended the turn."""
        return self._close_all(cut=None)

    def abandon(self) -> None:
        """Drop open items: the engine failed, so they will never be whole."""
        self._text = self._reasoning = None
        self._calls.clear()
        self.searches.clear()
        self._blank = ""

    def next_call(self) -> None:
        """Prepare for a further call of the engine."""
        self.finish_reason = None
        self.searches = []
        self.spoken = ""
        self._last_opened = -1

    def begin_search(self, queries: Sequence[str]) -> tuple[_OpenItem, list[Event]]:
        """Open the item of a search; return it with its events."""
        item: dict[str, Any] = {
            "id": ids.new_id(ids.FILE_SEARCH_CALL),
            "type": "file_search_call",
            "status": "in_progress",
            "queries": list(queries),
            "results": None,
        }
        opened, events = self._open(item)
        where = {"item_id": item["id"], "output_index": opened.index}
        events.append(self._event("response.file_search_call.in_progress", **where))
        events.append(self._event("response.file_search_call.searching", **where))
        return opened, events

    def end_search(self, opened: _OpenItem, results: list[dict[str, Any]] | None) -> list[Event]:
        """Close the item of a search; ``results`` is None if the search failed."""
        opened.item |= {"status": "failed" if results is None else "completed", "results": results or []}
        where = {"item_id": opened.item["id"], "output_index": opened.index}
        events = [] if results is None else [self._event("response.file_search_call.completed", **where)]
        return events + self._close(opened, opened.item["status"])

    def begin_web(self, action: Mapping[str, Any]) -> tuple[_OpenItem, list[Event]]:
        """Open the item of a web search or of an opened page; return it with its events."""
        item: dict[str, Any] = {
            "id": ids.new_id(ids.WEB_SEARCH_CALL),
            "type": "web_search_call",
            "status": "in_progress",
            "action": dict(action),
        }
        opened, events = self._open(item)
        where = {"item_id": item["id"], "output_index": opened.index}
        events.append(self._event("response.web_search_call.in_progress", **where))
        events.append(self._event("response.web_search_call.searching", **where))
        return opened, events

    def end_web(self, opened: _OpenItem, outcome: WebOutcome) -> list[Event]:
        """Close the item of a web search; a failed one has the error, and no event of completion."""
        opened.item |= {
            "status": "completed" if outcome.error is None else "failed",
            "action": with_sources(opened.item["action"], outcome.results),
            "results": outcome.results,
        }
        if outcome.error is not None:
            opened.item["error"] = outcome.error
        where = {"item_id": opened.item["id"], "output_index": opened.index}
        events = [] if outcome.error else [self._event("response.web_search_call.completed", **where)]
        return events + self._close(opened, opened.item["status"])

    def end(
        self,
        status: FinalStatus,
        *,
        completed_at: int | None,
        reason: str | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Set the final state of the response; :meth:`final` returns the event once it is stored."""
        self.response |= {
            "status": status,
            "completed_at": completed_at if status == "completed" else None,
            "incomplete_details": None if status != "incomplete" else {"reason": reason},
            "error": None if error is None else dict(error),
            "usage": self._usage(),
        }

    def final(self) -> Event:
        """Return the last event, by the status of the response."""
        return self._event(f"response.{self.response['status']}", response=self.snapshot())

    def snapshot(self) -> dict[str, Any]:
        """Return the response object as it is now."""
        return {**self.response, "output": [self._shown(item) for item in self.output]}

    def _add_reasoning(self, text: str) -> list[Event]:
        events = self._close_text()
        if self._reasoning is None:
            item: dict[str, Any] = {
                "id": ids.new_id(ids.REASONING),
                "type": "reasoning",
                "status": "in_progress",
                "summary": [],
                "content": [],
                "encrypted_content": None,
            }
            self._reasoning, opening = self._open(item)
            part = {"type": "reasoning_text", "text": ""}
            events += opening
            events.append(self._part_event("response.content_part.added", self._reasoning, part=part))
        self._reasoning.pieces.append(text)
        events.append(self._part_event("response.reasoning_text.delta", self._reasoning, delta=text))
        return events

    def _add_text(self, text: str) -> list[Event]:
        if self._text is None and not text.strip():
            self._blank += text
            return []
        events = self._close_reasoning()
        if self._text is None:
            item: dict[str, Any] = {
                "id": ids.new_id(ids.MESSAGE),
                "type": "message",
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }
            self._text, opening = self._open(item)
            events += opening
            part = _text_part("", [])
            events.append(self._part_event("response.content_part.added", self._text, part=part))
            text = self._blank + text
            self._blank = ""
        self._text.pieces.append(text)
        self.spoken += text
        events.append(self._part_event("response.output_text.delta", self._text, delta=text, logprobs=[]))
        return events

    def _add_call(self, piece: CallPiece) -> list[Event]:
        events = self._close_reasoning() + self._close_text()
        self._blank = ""
        call = self._calls.get(piece.index)
        if call is None:
            call = self._calls[piece.index] = _OpenCall(piece.id or ids.new_id("call"))
        function = piece.function
        if function is None:
            return events
        if function.name and call.opened is None:
            call.name += function.name
        arguments = function.arguments or ""
        if call.name in self.hosted:
            call.held += arguments
            return events
        if call.opened is None:
            call.held += arguments
            # A name may arrive in pieces; it is whole when arguments follow.
            return events + (self._open_call(call) if call.held and call.name else [])
        if arguments:
            events += self._add_arguments(call.opened, arguments)
        return events

    def _open_call(self, call: _OpenCall) -> list[Event]:
        item = {
            "id": ids.new_id(ids.FUNCTION_CALL),
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.call_id,
            "name": call.name,
            "arguments": "",
        }
        call.opened, events = self._open(item)
        return events + (self._add_arguments(call.opened, call.held) if call.held else [])

    def _add_arguments(self, opened: _OpenItem, text: str) -> list[Event]:
        opened.pieces.append(text)
        return [
            self._event(
                "response.function_call_arguments.delta",
                item_id=opened.item["id"],
                output_index=opened.index,
                delta=text,
            )
        ]

    def _close_all(self, *, cut: int | None) -> list[Event]:
        """Close every open item; that at index ``cut`` is incomplete, or each one if ``cut`` is None."""

        def whole(index: int) -> bool:
            return cut is not None and index != cut

        events: list[Event] = []
        if self._reasoning is not None:
            events += self._close_reasoning(whole=whole(self._reasoning.index))
        if self._text is not None:
            events += self._close_text(whole=whole(self._text.index))
        last = max(self._calls, default=-1)
        ended_early = cut is None or self.finish_reason in ("length", "content_filter")
        for number, call in sorted(self._calls.items()):
            if call.name in self.hosted:
                partial = ended_early and number == last
                self.searches.append(RequestedSearch(call.call_id, call.name, call.held, partial))
                continue
            if call.opened is None and call.name:
                events += self._open_call(call)
            if call.opened is not None:
                is_whole = _is_json(call.opened.text or "{}") and not (ended_early and number == last)
                events += self._close_call(call.opened, whole=is_whole)
        self._calls.clear()
        self._blank = ""
        return events

    def _close_reasoning(self, *, whole: bool = True) -> list[Event]:
        opened, self._reasoning = self._reasoning, None
        if opened is None:
            return []
        part = {"type": "reasoning_text", "text": opened.text}
        opened.item["content"] = [part]
        return [
            self._part_event("response.reasoning_text.done", opened, text=opened.text),
            self._part_event("response.content_part.done", opened, part=part),
            *self._close(opened, "completed" if whole else "incomplete"),
        ]

    def _close_text(self, *, whole: bool = True) -> list[Event]:
        opened, self._text = self._text, None
        if opened is None:
            return []
        annotations = list(source_citations(opened.text, self.sources))
        part = _text_part(opened.text, annotations)
        opened.item["content"] = [part]
        cited = [
            self._part_event(
                "response.output_text.annotation.added", opened, annotation_index=number, annotation=annotation
            )
            for number, annotation in enumerate(annotations)
        ]
        return [
            *cited,
            self._part_event("response.output_text.done", opened, text=opened.text, logprobs=[]),
            self._part_event("response.content_part.done", opened, part=part),
            *self._close(opened, "completed" if whole else "incomplete"),
        ]

    def _close_call(self, opened: _OpenItem, *, whole: bool) -> list[Event]:
        opened.item["arguments"] = opened.text
        done = self._event(
            "response.function_call_arguments.done",
            item_id=opened.item["id"],
            output_index=opened.index,
            name=opened.item["name"],
            arguments=opened.text,
        )
        return [done, *self._close(opened, "completed" if whole else "incomplete")]

    def _open(self, item: dict[str, Any]) -> tuple[_OpenItem, list[Event]]:
        opened = _OpenItem(item, self._next)
        self._next += 1
        self._last_opened = opened.index
        added = self._event("response.output_item.added", output_index=opened.index, item=self._shown(item))
        return opened, [added]

    def _close(self, opened: _OpenItem, status: str) -> list[Event]:
        opened.item["status"] = status
        self._done[opened.index] = opened.item
        return [self._event("response.output_item.done", output_index=opened.index, item=self._shown(opened.item))]

    def _shown(self, item: dict[str, Any]) -> dict[str, Any]:
        return shown_item(dict(item), self._include)

    def _part_event(self, kind: str, opened: _OpenItem, **more: Any) -> Event:
        return self._event(kind, item_id=opened.item["id"], output_index=opened.index, content_index=0, **more)

    def _event(self, kind: str, **more: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **more}
        self._number += 1
        return event

    def _add_usage(self, usage: ChatUsage) -> None:
        self.usage["input"] += usage.prompt_tokens or 0
        self.usage["output"] += usage.completion_tokens or 0
        self._call_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            self.usage["cached"] += usage.prompt_tokens_details.cached_tokens or 0
        if usage.completion_tokens_details is not None:
            self.usage["reasoning"] += usage.completion_tokens_details.reasoning_tokens or 0

    def _usage(self) -> dict[str, Any]:
        return usage_object(**self.usage)


def usage_object(*, input: int, cached: int, output: int, reasoning: int) -> dict[str, Any]:  # noqa: A002
    """Return token counts as OpenAI's API has them."""
    return {
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input + output,
    }


def _written_bytes(delta: ChatDelta) -> int:
    texts = [delta.content, delta.reasoning, delta.reasoning_content]
    for piece in delta.tool_calls or ():
        texts += [piece.function.name, piece.function.arguments] if piece.function is not None else []
    return sum(len(text.encode("utf-8", "replace")) for text in texts if text)


def _text_part(text: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
