"""The prompt of a turn with the memory of its role, and the tokens of that prompt."""

from __future__ import annotations

import logging
from dataclasses import replace

from appliance.assistant.caller import Caller
from appliance.assistant.memory.chat_context import chat_queries
from appliance.assistant.memory.role_context import RetrievedContext, RoleMemory
from appliance.assistant.store.responses import TurnHistory
from appliance.assistant.turns.history import ChatPrompt
from appliance.assistant.turns.prompt_fit import PromptFit
from appliance.assistant.turns.request import TurnRequest
from appliance.errors import InvalidRequestError

LOG = logging.getLogger(__name__)


async def turn_prompt(
    fit: PromptFit, memory: RoleMemory, request: TurnRequest, history: TurnHistory, model: str, caller: Caller
) -> ChatPrompt:
    """Return the prompt with the memory of the role, or without it if both do not fit in the context.

    Raises :class:`InvalidRequestError` if the prompt does not fit without the memory either.
    """
    found = await _remembered(fit, memory, request, history, model, caller)
    if found.text:
        try:
            prompt = await fit.prompt(_with_memory(request, found.text), history, model, caller)
        except InvalidRequestError:
            LOG.info("request %s: the memory does not fit in the context", caller.request_id)
        else:
            return replace(prompt, sources=prompt.sources | {one.number: one for one in found.cited})
    return await fit.prompt(request, history, model, caller)


async def count_prompt(
    fit: PromptFit, memory: RoleMemory, request: TurnRequest, history: TurnHistory, model: str, caller: Caller
) -> int:
    """Return the tokens of the prompt that a turn would send; those of the whole one if a turn would refuse it."""
    try:
        prompt = await turn_prompt(fit, memory, request, history, model, caller)
    except InvalidRequestError:
        prompt = fit.whole_prompt(request, history, model)
    return await fit.count(model, prompt.messages, fit.functions(request, model), caller)


async def _remembered(
    fit: PromptFit, memory: RoleMemory, request: TurnRequest, history: TurnHistory, model: str, caller: Caller
) -> RetrievedContext:
    if not memory.remembers(model):
        return RetrievedContext("none")
    whole = fit.whole_prompt(request, history, model)
    # Numbers of earlier searches are at most as many as their results.
    before = sum(len(item.get("results") or ()) for item in (*history.items, *history.own.items))
    return await memory.retrieve(caller, model, chat_queries(whole.messages), first=before + 1)


def _with_memory(request: TurnRequest, text: str) -> TurnRequest:
    """Return ``request`` with the passages after its instructions."""
    return replace(request, instructions="\n\n".join(one for one in (request.instructions, text) if one))
