"""A chat completion whose model may search the web: the engine is called until its message needs no search.

After eight calls with searches, the engine gets no function of ours. A message may also have calls of the client's
functions. The client gets these, and the searches of that message are dropped: a chat completion cannot carry both.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx

from appliance.assistant import ids
from appliance.assistant.caller import Caller
from appliance.assistant.inference import InferenceClient
from appliance.assistant.turns.chat_round import ChatCall, ChatCompletionState, EngineCallFrames, written_bytes
from appliance.assistant.turns.history import add_rejected_call, add_web_search
from appliance.assistant.turns.prompt_fit import PromptFit
from appliance.assistant.turns.search_results import source_citations
from appliance.assistant.web.result_text import CitedPage, web_text
from appliance.assistant.web.session import WebSession, with_sources
from appliance.errors import EngineFailedError, RequestError, openai_body

PATH = "/v1/chat/completions"
MAX_ROUNDS = 8
SEARCHING = b": searching the web\n\n"
CUT = ("length", "content_filter")
"""Reasons for which a message ends before the model has finished; a call at its end may be incomplete."""
LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(slots=True)
class ChatSearch:
    """One completion.

    ``sources`` are the numbered web pages. ``first`` is the number of the first one, after those of the memory.
    ``memory`` are the annotations of the memory.
    """

    inference: InferenceClient
    caller: Caller
    body: dict[str, Any]
    session: WebSession
    fit: PromptFit
    first: int = 1
    memory: Sequence[Mapping[str, Any]] = ()
    sources: dict[int, CitedPage] = field(default_factory=dict)
    state: ChatCompletionState = field(default_factory=ChatCompletionState)
    messages: list[dict[str, Any]] = field(default_factory=list)
    round: int = 0

    def __post_init__(self) -> None:
        """Take the messages of the request; allow the URLs that its user wrote."""
        self.messages = list(self.body["messages"])
        for message in self.messages:
            if isinstance(message, Mapping) and message.get("role") == "user":
                content = message.get("content")
                parts = content if isinstance(content, list) else [{"text": content}]
                for part in parts:
                    self.session.allow_text(str(part.get("text")) if isinstance(part, Mapping) else "")

    async def open(self, stack: AsyncExitStack) -> httpx.Response:
        """Return the response of the engine to the next call; ``stack`` closes it."""
        if self.round:
            await self._fit_results()
        return await stack.enter_async_context(self.inference.open(PATH, self._engine_body(), self.caller))

    async def whole(self) -> tuple[dict[str, Any], Mapping[str, str]]:
        """Return the completion, and the headers of the first call. Raises :class:`RequestError`."""
        headers: Mapping[str, str] = {}
        while True:
            async with AsyncExitStack() as stack:
                response = await self.open(stack)
                headers = headers or response.headers
                found = await _json(response)
            choice, message = _message(found)
            self.state.add_usage(found.get("usage"), size=written_bytes(message))
            calls = [_call(one) for one in message.get("tool_calls") or ()]
            text = message.get("content")
            spoken = text if isinstance(text, str) else ""
            self.state.text += spoken
            cut = choice.get("finish_reason") in CUT
            if not cut and await self._searched(calls, spoken):
                continue
            kept = [one.as_json() for one in calls if one.name not in self.session.names]
            message |= {"content": self.state.text or text, "annotations": self._annotations()}
            message.pop("tool_calls", None)
            if kept:
                message["tool_calls"] = kept
            choice["message"] = message
            if choice.get("finish_reason") == "tool_calls" and not kept:
                choice["finish_reason"] = "stop"
            usage = {"usage": self.state.usage} if self.state.has_usage else {}
            return {**found, "choices": [choice], **usage}, headers

    async def stream(self, response: httpx.Response, closing: AsyncExitStack) -> AsyncIterator[bytes]:
        """Yield the frames of the completion; ``response`` is that of the first call, which ``closing`` closes."""
        try:
            while True:
                found = EngineCallFrames(self.state, first=self.round == 1)
                async with closing:
                    async for piece in _pieces(response):
                        frames = found.feed(piece)
                        if frames:
                            yield frames
                found.end()
                calls = [found.calls[index] for index in sorted(found.calls)]
                if found.finish in CUT or not self._searches(calls):
                    break
                yield SEARCHING
                await self._searched(calls, found.text)
                closing = AsyncExitStack()
                response = await self.open(closing)
        except RequestError as error:
            # The HTTP response has begun: the error is a frame.
            yield b"data: " + openai_body(error) + b"\n\ndata: [DONE]\n\n"
            return
        finally:
            await closing.aclose()
        kept = [one for one in calls if one.name not in self.session.names]
        for index, one in enumerate(kept):
            yield self.state.delta({"tool_calls": [{"index": index, **one.as_json()}]})
        annotations = self._annotations()
        if annotations:
            yield self.state.delta({"annotations": annotations})
        yield self.state.delta({}, "stop" if found.finish == "tool_calls" and not kept else found.finish)
        options = self.body.get("stream_options")
        if isinstance(options, Mapping) and options.get("include_usage") and self.state.has_usage:
            yield self.state.frame(choices=[], usage=self.state.usage)
        yield b"data: [DONE]\n\n"

    @property
    def _model(self) -> str:
        return str(self.body.get("model"))

    async def _fit_results(self) -> None:
        """Remove the oldest results that do not fit in the context with the response."""
        most = next((self._left(name) for name in LIMITS if isinstance(self.body.get(name), int)), None)
        begin = len(self.body["messages"])
        fitting = await self.fit.fit_results(
            self.messages, begin, self._tools(), self._model, self.caller, max_tokens=most
        )
        if fitting is None:
            # Not even the calls fit: the model responds without the searches of this completion.
            self.round, fitting = max(self.round, MAX_ROUNDS), self.messages[:begin]
        self.messages = fitting

    def _tools(self) -> list[Mapping[str, Any]]:
        """Return the functions of the next call."""
        own = self.session.functions if self.round < MAX_ROUNDS else ()
        return [*(self.body.get("tools") or ()), *own]

    def _engine_body(self) -> dict[str, Any]:
        body = {name: value for name, value in self.body.items() if name != "web_search_options"}
        body["messages"] = self.messages
        if body.get("stream") is True:
            # The limit of tokens needs the usage of each call, also if the client requests none.
            options = body.get("stream_options")
            body["stream_options"] = {**(options if isinstance(options, Mapping) else {}), "include_usage": True}
        tools = self._tools()
        if tools:
            body["tools"] = tools
        if self.round and body.get("tool_choice") not in (None, "none"):
            # A forced choice holds for the first call: otherwise the model could never write its message.
            body["tool_choice"] = "auto"
        if not tools:
            body.pop("tool_choice", None)
            body.pop("tools", None)
        for name in LIMITS:
            # The limit holds for the completion, which all calls write.
            if isinstance(body.get(name), int):
                body[name] = self._left(name)
        self.round += 1
        return body

    def _left(self, name: str) -> int:
        """Return the tokens that are left of the limit ``name``."""
        return max(1, int(self.body[name]) - self.state.written)

    def _searches(self, calls: Sequence[ChatCall]) -> bool:
        """Return whether ``calls`` are searches, and further ones are allowed."""
        return bool(calls) and self.round <= MAX_ROUNDS and all(one.name in self.session.names for one in calls)

    async def _searched(self, calls: Sequence[ChatCall], text: str) -> bool:
        """Perform ``calls`` if they are searches; return whether the engine must be called again."""
        if not self._searches(calls):
            return False
        if text:
            self.messages.append({"role": "assistant", "content": text})
        for one in calls:
            call = self.session.read_call(one.name, one.arguments, self.sources)
            if isinstance(call, str):
                add_rejected_call(self.messages, one.call_id, one.name, one.arguments, call)
                continue
            outcome = await self.session.perform(call)
            item = {
                "id": one.call_id or ids.new_id(ids.WEB_SEARCH_CALL),
                "status": "completed" if outcome.error is None else "failed",
                "action": with_sources(call.action, outcome.results),
                "results": outcome.results,
                "error": outcome.error,
            }
            budget = self.session.tool.budget(self.fit.search_budget(self._model))
            found = web_text(item, max(self.sources, default=self.first - 1) + 1, budget)
            self.sources |= found.sources
            add_web_search(self.messages, item, found.text)
        return True

    def _annotations(self) -> list[Mapping[str, Any]]:
        cited = source_citations(self.state.text, dict(self.sources))
        return [*self.memory, *(_as_chat(one) for one in cited)]


def _as_chat(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``annotation`` as the chat API has it: one level deeper."""
    fields = {name: value for name, value in annotation.items() if name != "type"}
    return {"type": "url_citation", "url_citation": fields}


async def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        found = json.loads(await response.aread())
    except httpx.HTTPError as error:
        raise _early() from error
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EngineFailedError("the gateway's response is not JSON")
    return found


def _message(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        choice = dict(found["choices"][0])
        return choice, dict(choice["message"])
    except (KeyError, IndexError, TypeError, ValueError):
        raise EngineFailedError("the engine's response has no message") from None


def _call(found: Any) -> ChatCall:
    function = found.get("function") if isinstance(found, Mapping) else None
    if not isinstance(function, Mapping):
        return ChatCall()
    name, arguments = (str(function.get(part) or "") for part in ("name", "arguments"))
    return ChatCall(str(found.get("id") or ""), name, arguments)


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in response.aiter_raw():
            yield piece
    except httpx.HTTPError as error:
        raise _early() from error


def _early() -> EngineFailedError:
    return EngineFailedError("the gateway closed the connection early; its log has more")
