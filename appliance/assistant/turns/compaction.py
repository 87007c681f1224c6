"""``/v1/responses/compact``: a long conversation becomes its user's messages and one item with a summary.

Nothing is stored or removed: the client passes the items on as the input of its next request.
"""

from __future__ import annotations

import time
from typing import Any

from appliance.assistant import ids
from appliance.assistant.caller import Caller
from appliance.assistant.turns.events import usage_object
from appliance.assistant.turns.history import write_summary
from appliance.assistant.turns.request import TurnRequest
from appliance.assistant.turns.turn import CHAT, TurnServices
from appliance.errors import EngineFailedError, InvalidRequestError

TASK = (
    "Summarise the conversation above for its continuation. Keep facts, decisions, names, numbers, open tasks and "
    "the results of tools. Write only the summary, in the language of the conversation."
)


async def compact(services: TurnServices, caller: Caller, request: TurnRequest) -> dict[str, Any]:
    """Return the compacted items of the conversation that ``request`` describes.

    Raises :class:`InvalidRequestError` if there is nothing to compact, and the errors of the engine.
    """
    history = await services.read_history(caller, request)
    items = [*history.items, *history.own.items]
    if not items:
        raise InvalidRequestError("input: has no item to compact", param="input")
    model = services.fit.model_of(request.model, history.metadata)
    messages = [*services.fit.whole_prompt(request, history, model).messages, {"role": "user", "content": TASK}]
    found = await services.context.inference.post(CHAT, {"model": model, "messages": messages}, caller)
    try:
        summary = str(found["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError):
        raise EngineFailedError("the engine's response has no message") from None
    if not summary.strip():
        raise EngineFailedError("the engine's summary is empty; raise the model's limit of tokens")
    usage = found.get("usage") or {}
    content = {
        "id": ids.new_id(ids.COMPACTION),
        "type": "compaction",
        "encrypted_content": write_summary(summary),
    }
    users = [item for item in items if item["type"] == "message" and item["role"] == "user"]
    return {
        "id": ids.new_id("resp"),
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*users, content],
        "usage": usage_object(
            input=usage.get("prompt_tokens") or 0,
            cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            output=usage.get("completion_tokens") or 0,
            reasoning=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
        ),
    }
