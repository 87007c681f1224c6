"""The model of a turn, and a prompt that fits in its context.

Tokens are counted by the engine only if the prompt could be too long. A token has at least one byte. So a prompt
with fewer bytes than the context has tokens always fits.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from appliance.assistant.caller import Caller
from appliance.assistant.inference import InferenceClient
from appliance.assistant.store.responses import TurnHistory
from appliance.assistant.turns.file_search import FUNCTION
from appliance.assistant.turns.history import ChatPrompt, build_prompt, split_rounds, without_oldest
from appliance.assistant.turns.request import TurnRequest
from appliance.assistant.turns.results_fit import without_oldest_results
from appliance.assistant.web.tool import NAMES, WebTool, web_functions, web_tool_of
from appliance.contract.model import Site
from appliance.errors import InvalidRequestError, RequestError

LOG = logging.getLogger(__name__)

SEARCH_TOKENS = 8000
"""Most tokens of the results of one file search."""
RESERVED_TOKENS = 1024
"""Tokens for the response that `truncation: auto` keeps free, if the request has no limit."""
DEFAULT_CONTEXT = 32_768
BYTES_PER_TOKEN = 3
"""Estimate if the engine cannot count."""


class PromptFit:
    """Models and contexts of a site, and the counting of tokens."""

    def __init__(self, site: Site, inference: InferenceClient) -> None:
        self._site = site
        self._inference = inference

    def model_of(self, requested: str | None, metadata: Mapping[str, str]) -> str:
        """Return the model or role of a turn.

        The role of the conversation's metadata applies if the request names no model, or the model of that role.

        Raises :class:`InvalidRequestError` if neither names one.
        """
        role = self._site.roles.get(metadata.get("role", ""))
        if role is not None and requested in (None, role.model, role.served_name):
            return metadata["role"]
        if requested is None:
            raise InvalidRequestError(
                "model: name a model or a role, or set a role in the metadata of the conversation", param="model"
            )
        return requested

    def context_of(self, model: str) -> int:
        """Return the shortest context of the engines that serve ``model``, in tokens."""
        role = self._site.roles.get(model)
        name = (role.model if role is not None else model).partition(":")[0]
        contexts = [engine.context for engine in self._site.engines.values() if engine.model == name]
        return min(contexts, default=DEFAULT_CONTEXT)

    def search_budget(self, model: str) -> int:
        """Return the most tokens of the results of one search."""
        return min(SEARCH_TOKENS, self.context_of(model) // 4)

    def functions(self, request: TurnRequest, model: str) -> list[Mapping[str, Any]]:
        """Return all functions that the model sees: those of the client and of the hosted tools."""
        web = web_functions(self.web_tool(request, model), self._site.search)
        return [*request.functions, *([FUNCTION] if request.search is not None else []), *web]

    def web_tool(self, request: TurnRequest, model: str) -> WebTool | None:
        """Return the web search of a turn: that of the request, or that of the role.

        A function of the client has precedence over the search of the role.
        """
        taken = {str(one["function"]["name"]) for one in request.functions}
        if request.choice == "none" or (request.web is None and taken & NAMES):
            return None
        return web_tool_of(request.web, self._site, model)

    def whole_prompt(self, request: TurnRequest, history: TurnHistory, model: str) -> ChatPrompt:
        """Return the messages of a turn with its whole history, whether they fit or not."""
        instructions = [history.metadata.get("instructions"), request.instructions]
        return build_prompt(instructions, [*history.items, *history.own.items], self.search_budget(model))

    async def prompt(self, request: TurnRequest, history: TurnHistory, model: str, caller: Caller) -> ChatPrompt:
        """Return the messages of a turn.

        Raises :class:`InvalidRequestError` if they do not fit in the context, or do not without the whole history.
        """
        tools = self.functions(request, model)
        prompt = self.whole_prompt(request, history, model)
        context = self.context_of(model)
        reserved = request.max_tokens or (min(RESERVED_TOKENS, context // 4) if request.truncate else 1)
        limit = context - reserved
        size = _size(prompt.messages, tools)
        if size <= limit:
            return prompt
        count = await self.count(model, prompt.messages, tools, caller)
        if count <= limit:
            return prompt
        rounds = len(split_rounds(history.items))
        if not request.truncate or not rounds:
            raise _too_long(count, context, reserved)
        dropped = 0
        while dropped < rounds and count > limit:
            # A long prompt loses several rounds before it is counted anew.
            target = size * limit / count
            while dropped < rounds and size > target:
                dropped += 1
                shorter = replace(history, items=without_oldest(history.items, dropped))
                prompt = self.whole_prompt(request, shorter, model)
                size = _size(prompt.messages, tools)
            count = await self.count(model, prompt.messages, tools, caller)
        if count > limit:
            raise _too_long(count, context, reserved)
        LOG.info("request %s: %d of %d rounds fit in the context", caller.request_id, rounds - dropped, rounds)
        return prompt

    async def fit_results(
        self,
        messages: list[dict[str, Any]],
        begin: int,
        tools: Sequence[Mapping[str, Any]],
        model: str,
        caller: Caller,
        *,
        max_tokens: int | None,
    ) -> list[dict[str, Any]] | None:
        """Return the messages of the next call of a turn, without its oldest results if they do not fit.

        Args:
            messages: The prompt, and the calls and results that the turn has added.
            begin: Index of the first message that the turn has added.
            tools: The functions of the call.
            model: The model of the turn.
            caller: The user of the turn.
            max_tokens: Tokens of the response; None reserves :data:`RESERVED_TOKENS`.

        Returns None if they do not fit without all results of the turn either.
        """
        context = self.context_of(model)
        limit = context - (max_tokens or min(RESERVED_TOKENS, context // 4))
        size = _size(messages, tools)
        if size <= limit:
            return messages
        count = await self.count(model, messages, tools, caller)
        while count > limit:
            shorter = without_oldest_results(messages, begin, size - size * limit / count)
            if shorter is None:
                return None
            LOG.info("request %s: the oldest results of the turn do not fit in the context", caller.request_id)
            messages, size = shorter, _size(shorter, tools)
            count = await self.count(model, messages, tools, caller)
        return messages

    async def count(
        self, model: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], caller: Caller
    ) -> int:
        """Return the tokens of a prompt by the engine's tokenizer; estimated if the engine cannot count it."""
        body: dict[str, Any] = {"model": model, "messages": list(messages)}
        if tools:
            body["tools"] = list(tools)
        try:
            found = await self._inference.post("/tokenize", body, caller)
        except RequestError as error:
            if error.status in (401, 403, 429):
                raise
            return _size(messages, tools) // BYTES_PER_TOKEN
        count = found.get("count")
        return count if isinstance(count, int) else _size(messages, tools) // BYTES_PER_TOKEN


def _size(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> int:
    """Return the bytes of a prompt; its images do not count."""
    texts = [
        {**message, "content": [part for part in message["content"] if part.get("type") == "text"]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
    return len(json.dumps([texts, tools], ensure_ascii=False).encode())


def _too_long(count: int, context: int, reserved: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"input: {count} tokens and {reserved} for the response do not fit in the context of {context}; "
        "send less, compact the conversation, or set truncation to auto",
        param="input",
        code="context_length_exceeded",
    )
