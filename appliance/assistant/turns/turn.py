"""The life cycle of one response.

The engine is called by ``POST /v1/chat/completions``, streamed. It is the API that vLLM, llama.cpp and the mock
engine share. vLLM's own ``/v1/responses`` drops hosted tools in silence, ends a cut stream as completed, and cannot
continue after a search of ours.

| state | event | next state | effect |
|---|---|---|---|
| waiting | the turn before it ended | reading | |
| waiting, reading | error | refused | HTTP error; nothing is stored |
| waiting, reading | stop | refused | nothing is stored |
| reading | history read | calling | the response and its input are stored while the engine is called |
| calling | engine refuses, no event sent | refused | HTTP error; the stored response is removed |
| calling | stream begins, response stored | streaming | created, in_progress |
| streaming | the model searches | streaming | the search runs; a further call of the engine, at most 8 |
| streaming | stream ends whole | completed | or incomplete: too few tokens, a call that is not whole |
| streaming | stream is cut, error | failed | items that are not whole are dropped |
| streaming | client disconnects | incomplete | open items are incomplete |
| any | cancel | cancelled | background only |
| any | process stops | failed | |

A background response is stored as ``queued`` before its first state, so each of its errors is ``failed``. The same
holds for a foreground stream whose wait lasted so long that its HTTP response has begun. Output, status and the
append to the conversation are one transaction; the final event follows it. If the database refuses it, the final
event is ``failed``, and :meth:`RunningTurns.repair` stores that once the database has room again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal

from appliance.assistant import ids
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.role_context import RoleMemory
from appliance.assistant.memory.search import StoreSearch
from appliance.assistant.store.responses import OwnInput, ResponseStore, TurnHistory
from appliance.assistant.turns.buffer import EventBuffer
from appliance.assistant.turns.engine_stream import ChatStream
from appliance.assistant.turns.events import FinalStatus, RequestedSearch, ResponseEvents
from appliance.assistant.turns.file_search import FUNCTION, read_queries, run_search
from appliance.assistant.turns.history import (
    ChatPrompt,
    Message,
    add_rejected_call,
    add_search,
    add_web_search,
    check_outputs,
)
from appliance.assistant.turns.prompt_fit import PromptFit
from appliance.assistant.turns.request import SEARCH_NAME, TurnRequest
from appliance.assistant.turns.search_results import search_text
from appliance.assistant.turns.turn_prompt import turn_prompt
from appliance.assistant.turns.turn_queue import TurnQueue
from appliance.assistant.web.access import WebAccess
from appliance.assistant.web.result_text import web_text
from appliance.assistant.web.session import WebSession
from appliance.errors import (
    ApplianceError,
    EngineFailedError,
    InternalError,
    RequestError,
    StoreError,
)

LOG = logging.getLogger(__name__)

MAX_ROUNDS = 8
"""Calls of the engine with hosted tools in one response; the last call has no tools of ours."""
CHAT = "/v1/chat/completions"

StopReason = Literal["client_disconnected", "cancelled", "shutdown", "deleted"]


@dataclass(frozen=True, slots=True)
class TurnServices:
    """The parts that every turn uses."""

    context: AssistantContext
    store: ResponseStore
    queue: TurnQueue
    fit: PromptFit
    searching: StoreSearch
    memory: RoleMemory

    async def read_history(self, caller: Caller, request: TurnRequest, stores: Sequence[str] = ()) -> TurnHistory:
        """Return the history of a turn that searches ``stores``; raises as :meth:`ResponseStore.read_history`."""
        return await asyncio.to_thread(
            self.store.read_history,
            caller.user,
            request.items,
            conversation=request.conversation,
            previous=request.previous,
            stores=stores,
        )


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended."""

    status: FinalStatus
    reason: str | None = None
    error: RequestError | None = None


_SHUT_DOWN = TurnEnd("failed", error=InternalError("The service stops; try again shortly."))
_STOPPED: Mapping[str, TurnEnd] = {
    "client_disconnected": TurnEnd("incomplete", "client_disconnected"),
    "cancelled": TurnEnd("cancelled"),
    "deleted": TurnEnd("cancelled"),
}


class ResponseTurn:
    """One response. :meth:`run` ends with a stored response, or with :attr:`refusal`."""

    def __init__(self, services: TurnServices, caller: Caller, request: TurnRequest) -> None:
        self.caller = caller
        self.request = request
        self.buffer = EventBuffer(waits=not request.background)
        self.refusal: RequestError | None = None
        self.opened = asyncio.Event()
        """Set once the stream has its first event, or the turn has ended."""
        self.done = asyncio.Event()
        self.committed = request.background
        """Whether an error must be an event, because the HTTP response has begun or the response is stored."""
        self.unstored = False
        """Whether the database refused the end: it has the response as running until that is repaired."""
        self._services = services
        self._stop: StopReason | None = None
        self._work: asyncio.Task[TurnEnd] | None = None
        self._begun: asyncio.Task[None] | None = None
        self._own = OwnInput([])
        self._web: WebSession | None = None
        self._events = ResponseEvents(
            response_object(request),
            hosted=frozenset({SEARCH_NAME} if request.search is not None else ()),
            include=request.include,
        )

    @property
    def id(self) -> str:
        """The id of the response."""
        return str(self._events.response["id"])

    def snapshot(self) -> dict[str, Any]:
        """Return the response object as it is now."""
        return self._events.snapshot()

    async def enqueue(self) -> None:
        """Store a background response as queued, so that it can be returned before it runs."""
        history = await self._services.read_history(self.caller, self.request, self._stores)
        self._own = history.own
        self._events.response["model"] = self._services.fit.model_of(self.request.model, history.metadata)
        self._emit(self._events.created(queued=True))
        await self._store_begin()

    async def run(self) -> None:
        """Run the turn to its end."""
        async with AsyncExitStack() as stack:
            self._work = asyncio.create_task(self._serve(stack))
            if self._stop is not None:
                self._work.cancel()
            await asyncio.wait({self._work})
            try:
                await self._finish(self._how_it_ended(self._work))
            finally:
                self.buffer.close()
                self.opened.set()
                self.done.set()

    def stop(self, reason: StopReason) -> None:
        """Stop the turn; :attr:`done` is set once its end is stored. Has no effect on a turn that ends already."""
        if self._stop is None:
            self._stop = reason
            if self._work is not None:
                self._work.cancel()

    async def _serve(self, stack: AsyncExitStack) -> TurnEnd:
        request, services = self.request, self._services
        if request.conversation is not None and request.store:
            await stack.enter_async_context(services.queue.turn(self.caller.user, request.conversation))
        history = await self._services.read_history(self.caller, self.request, self._stores)
        if request.background:
            # The queued response has its input already; only the history is read anew.
            history = TurnHistory(history.items, self._own, history.metadata)
        self._own = history.own
        check_outputs(history.items, history.own.items)
        response = self._events.response
        response["model"] = services.fit.model_of(request.model, history.metadata)
        self._web = self._web_session(history)
        if self._web is not None:
            self._events.hosted |= self._web.names
        prompt = await turn_prompt(services.fit, services.memory, request, history, self._model, self.caller)
        self._events.sources |= prompt.sources
        if request.background:
            self._emit(self._events.started())
            await asyncio.to_thread(services.store.mark_running, self.caller.user, self.id, response)
        elif request.store:
            response["status"] = "in_progress"
            self._begun = asyncio.create_task(self._store_begin())
        return await self._converse(prompt)

    def _web_session(self, history: TurnHistory) -> WebSession | None:
        """Return the web calls of this turn, if the request or the role has web search."""
        tool = self._services.fit.web_tool(self.request, self._model)
        if tool is None:
            return None
        session = WebSession(self._services.context.shared(WebAccess), tool, self.caller)
        session.allow_items([*history.items, *history.own.items])
        return session

    async def _converse(self, prompt: ChatPrompt) -> TurnEnd:
        """Call the engine until its message needs no search of ours."""
        messages, hosted = list(prompt.messages), 0
        for number in range(MAX_ROUNDS + 1):
            left = self._tokens_left()
            if left is not None and left <= 0:
                return TurnEnd("incomplete", "max_output_tokens")
            most = self.request.max_tool_calls
            searches = number < MAX_ROUNDS and (most is None or hosted < most)
            if number:
                fitting = await self._fit_results(messages, len(prompt.messages), left, searches=searches)
                if fitting is None:
                    # Not even the calls fit: the model responds without the searches of this turn.
                    searches, fitting = False, list(prompt.messages)
                messages = fitting
            await self._call_engine(self._engine_body(messages, left, first=number == 0, searches=searches))
            finish = self._events.finish_reason
            wanted, text = list(self._events.searches), self._events.spoken
            if finish in ("length", "content_filter"):
                return TurnEnd("incomplete", "max_output_tokens" if finish == "length" else "content_filter")
            if any(item.get("status") == "incomplete" for item in self._events.output):
                return TurnEnd("incomplete", "invalid_tool_call")
            if not wanted or not searches:
                return TurnEnd("completed")
            if text:
                messages.append({"role": "assistant", "content": text})
            allowed = wanted if most is None else wanted[: most - hosted]
            for search in allowed:
                await self._search(search, messages)
            hosted += len(allowed)
            if self._events.has_function_calls:
                # The client must run its functions before the model can continue.
                return TurnEnd("completed")
            self._events.next_call()
        return TurnEnd("completed")

    async def _fit_results(
        self, messages: list[Message], begin: int, left: int | None, *, searches: bool
    ) -> list[Message] | None:
        """Return ``messages`` as they fit in the context; None if they do not without the results either."""
        tools = self._functions(searches=searches)
        return await self._services.fit.fit_results(
            messages, begin, tools, self._model, self.caller, max_tokens=left
        )

    async def _call_engine(self, body: Mapping[str, Any]) -> None:
        inference, stream = self._services.context.inference, ChatStream()
        async with inference.stream(CHAT, body, self.caller, background=self.request.unattended) as pieces:
            await self._open()
            async for piece in pieces:
                for chunk in stream.feed(piece):
                    events = self._events.feed(chunk)
                    if events:
                        self._emit(events)
                await self.buffer.room()
        if self._events.finish_reason is None:
            raise EngineFailedError("the engine's stream ended early; see its log")
        self._emit(self._events.end_call())

    async def _open(self) -> None:
        """Send the first events, once the response is stored."""
        if self._begun is not None:
            await asyncio.shield(self._begun)
        if not self.opened.is_set():
            if not self.request.background:
                self._emit(self._events.created())
            self.opened.set()

    async def _search(self, search: RequestedSearch, messages: list[Message]) -> None:
        if search.name == SEARCH_NAME:
            await self._search_files(search, messages)
        elif self._web is not None:
            await self._search_web(self._web, search, messages)

    async def _search_web(self, web: WebSession, search: RequestedSearch, messages: list[Message]) -> None:
        call = web.read_call(search.name, search.arguments, self._events.sources)
        if search.partial or isinstance(call, str):
            reason = call if isinstance(call, str) else "The call is not whole."
            add_rejected_call(messages, search.call_id, search.name, search.arguments, reason)
            return
        opened, events = self._events.begin_web(call.action)
        self._emit(events)
        outcome = await web.perform(call)
        self._emit(self._events.end_web(opened, outcome))
        budget = web.tool.budget(self._services.fit.search_budget(self._model))
        found = web_text(opened.item, max(self._events.sources, default=0) + 1, budget)
        self._events.sources |= found.sources
        add_web_search(messages, opened.item, found.text)

    async def _search_files(self, search: RequestedSearch, messages: list[Message]) -> None:
        tool = self.request.search
        queries = read_queries(search.arguments)
        if tool is None or not queries or search.partial:
            call = {"id": search.call_id, "queries": []}
            add_search(messages, call, "The arguments are not valid: pass a list of queries.")
            return
        opened, events = self._events.begin_search(queries)
        self._emit(events)
        results = await run_search(self._services.searching, self.caller, tool, queries)
        self._emit(self._events.end_search(opened, results))
        found = search_text(
            opened.item, max(self._events.sources, default=0) + 1, self._services.fit.search_budget(self._model)
        )
        self._events.sources |= found.sources
        add_search(messages, opened.item, found.text)

    def _functions(self, *, searches: bool) -> list[Mapping[str, Any]]:
        """Return the functions of a call of the engine; with ``searches``, also those of this service."""
        tools = list(self.request.functions)
        if self.request.search is not None and searches:
            tools.append(FUNCTION)
        if self._web is not None and searches:
            tools += self._web.functions
        return tools

    def _engine_body(
        self, messages: list[Message], left: int | None, *, first: bool, searches: bool
    ) -> dict[str, Any]:
        request = self.request
        tools = self._functions(searches=searches)
        body: dict[str, Any] = {
            **request.engine_fields,
            "model": self._model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if left is not None:
            body["max_tokens"] = left
        if tools:
            body["tools"] = tools
            # A forced choice holds for the first call: otherwise the model could never write its message.
            body["tool_choice"] = request.choice if first or request.choice == "none" else "auto"
        return body

    @property
    def _model(self) -> str:
        return str(self._events.response["model"])

    @property
    def _stores(self) -> Sequence[str]:
        search = self.request.search
        return search.store_ids if search is not None else ()

    def _tokens_left(self) -> int | None:
        most = self.request.max_tokens
        return None if most is None else most - self._events.written

    async def _store_begin(self) -> None:
        await asyncio.to_thread(
            self._services.store.begin,
            self.caller.user,
            self.caller.key_id,
            {**self._events.response},
            self._own,
            conversation=self.request.conversation,
        )

    def _how_it_ended(self, work: asyncio.Task[TurnEnd]) -> TurnEnd:
        if work.cancelled():
            return _STOPPED.get(self._stop or "shutdown", _SHUT_DOWN)
        error = work.exception()
        if error is None:
            return work.result()
        if isinstance(error, RequestError):
            return TurnEnd("failed", error=error)
        if isinstance(error, StoreError):
            LOG.error("request %s: a response cannot be stored: %s", self.caller.request_id, error)
            return TurnEnd("failed", error=_unstored())
        LOG.error("request %s: a turn failed", self.caller.request_id, exc_info=error)
        return TurnEnd(
            "failed", error=InternalError("The assistant failed on this response; its log has the reason")
        )

    async def _finish(self, end: TurnEnd) -> None:
        stored = await self._is_stored()
        if not self.opened.is_set() and not self.committed:
            self.refusal = end.error
            if stored:
                await self._in_store(self._services.store.delete, self.caller.user, self.id)
            return
        if not self.opened.is_set() and not self.request.background:
            self._emit(self._events.created())
        if end.status in ("incomplete", "cancelled"):
            self._emit(self._events.interrupt())
        else:
            self._events.abandon()
        now = time.time()
        self._events.end(
            end.status,
            completed_at=int(now),
            reason=end.reason,
            error=None if end.error is None else _failure(end.error),
        )
        if stored and self._stop != "deleted":
            kept = await self._in_store(
                self._services.store.finish,
                self.caller.user,
                self.caller.key_id,
                self._events.response,
                self._own,
                self._events.output,
                now,
            )
            if not kept:
                self._events.end("failed", completed_at=None, error=_failure(_unstored()))
        self._emit([self._events.final()])

    async def _is_stored(self) -> bool:
        """Wait until the beginning is stored; return whether it is."""
        if self._begun is None:
            return self.request.background
        await asyncio.wait({self._begun})
        return self._begun.exception() is None

    async def _in_store(self, function: Any, *arguments: Any) -> bool:
        try:
            return bool(await asyncio.to_thread(function, *arguments))
        except ApplianceError as error:
            LOG.error("request %s: the end of a response is not stored: %s", self.caller.request_id, error)  # noqa: TRY400
            self.unstored = True
            return False

    def _emit(self, events: list[dict[str, Any]]) -> None:
        self.buffer.add(events)


def _unstored() -> RequestError:
    rejection = RequestError("The response cannot be stored now, or was deleted.", code="storage_failed")
    rejection.status = 503
    rejection.retry_after = 30
    return rejection


def _failure(error: RequestError) -> dict[str, Any]:
    """Return ``error`` as the field ``error`` of a response, whose codes are few."""
    if error.status == 429:
        code = "rate_limit_exceeded"
    elif 400 <= error.status < 500 and error.status not in (408, 409):
        code = "invalid_prompt"
    else:
        code = "server_error"
    return {"code": code, "message": str(error)}


def response_object(request: TurnRequest) -> dict[str, Any]:
    """Return the response object at the start of a turn."""
    return {
        "id": ids.new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "queued" if request.background else "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": request.model,
        "usage": None,
        **json.loads(json.dumps(request.shown)),
    }
