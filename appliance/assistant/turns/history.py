"""Items of a conversation as the messages of the chat API. Pure.

- One system message, always the first: the templates of current models reject others. It has the instructions of
  the conversation, those of the request, then the texts of all system and developer items in their order.
- Instructions of earlier responses are not part of the items, so they are never inherited.
- A call of a tool precedes its output. An item that another one needs may be missing: a turn stopped, or an
  item was deleted. A call without an output gets a text that states it, an output without a call is dropped. An
  incomplete call is dropped.
- Results of searches are fenced data of the role ``tool``: text in them is never a call or an instruction.
- Reasoning of earlier turns is dropped, as the templates of reasoning models do.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.assistant.turns.request import SEARCH_NAME
from appliance.assistant.turns.search_results import CitedSource, search_text
from appliance.assistant.web.result_text import call_of, web_text
from appliance.errors import InvalidRequestError

NO_OUTPUT = "The tool returned no output."
SUMMARY = "Summary of the conversation so far, in place of its earlier messages:\n\n"

Item = Mapping[str, Any]
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the engine, and the numbered sources in them."""

    messages: list[Message]
    sources: dict[int, CitedSource]


def build_prompt(instructions: Sequence[str | None], items: Sequence[Item], budget: int) -> ChatPrompt:
    """Return the messages of ``items``.

    Args:
        instructions: Texts for the system message, in this order; None is skipped.
        items: History and input, oldest first.
        budget: Most tokens of the results of one search.
    """
    system = [text for text in instructions if text]
    outputs = {str(item["call_id"]) for item in items if item["type"] == "function_call_output"}
    known: set[str] = set()
    messages: list[Message] = []
    sources: dict[int, CitedSource] = {}
    for item in items:
        kind = item["type"]
        if kind == "message" and item["role"] in ("system", "developer"):
            system.append(_text_of(item))
        elif kind == "message":
            _add_message(messages, item)
        elif kind == "function_call" and item.get("status") in (None, "completed"):
            known.add(str(item["call_id"]))
            _add_call(messages, str(item["call_id"]), str(item["name"]), str(item["arguments"]))
            if item["call_id"] not in outputs:
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": NO_OUTPUT})
        elif kind == "function_call_output" and str(item["call_id"]) in known:
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": _output_text(item)})
        elif kind == "file_search_call" and item.get("results") is not None:
            found = search_text(item, len(sources) + 1, budget)
            sources |= found.sources
            add_search(messages, item, found.text)
        elif kind == "web_search_call" and item.get("results") is not None:
            page = web_text(item, len(sources) + 1, budget)
            sources |= page.sources
            add_web_search(messages, item, page.text)
        elif kind == "compaction":
            messages.append({"role": "user", "content": SUMMARY + read_summary(item)})
    if system:
        messages.insert(0, {"role": "system", "content": "\n\n".join(system)})
    return ChatPrompt(messages, sources)


def add_search(messages: list[Message], item: Item, text: str) -> None:
    """Append the call of ``item``, a ``file_search_call``, and its result ``text``."""
    _add_call(messages, str(item["id"]), SEARCH_NAME, json.dumps({"queries": item["queries"]}, ensure_ascii=False))
    messages.append({"role": "tool", "tool_call_id": str(item["id"]), "content": text})


def add_web_search(messages: list[Message], item: Item, text: str) -> None:
    """Append the call of ``item``, a ``web_search_call``, and its result ``text``."""
    name, arguments = call_of(item)
    _add_call(messages, str(item["id"]), name, arguments)
    messages.append({"role": "tool", "tool_call_id": str(item["id"]), "content": text})


def add_rejected_call(messages: list[Message], call_id: str, name: str, arguments: str, text: str) -> None:
    """Append a call that was not performed, and the reason ``text``."""
    try:
        json.loads(arguments)
    except ValueError:
        # Templates of models fail on arguments that are not JSON.
        arguments = "{}"
    _add_call(messages, call_id, name, arguments)
    messages.append({"role": "tool", "tool_call_id": call_id, "content": text})


def split_rounds(items: Sequence[Item]) -> list[list[Item]]:
    """Return ``items`` in rounds; a round begins with the first of the user's messages in a row."""
    rounds: list[list[Item]] = []
    before = ""
    for item in items:
        speaker = str(item.get("role", "")) if item["type"] == "message" else str(item["type"])
        if not rounds or (speaker == "user" and before != "user"):
            rounds.append([])
        rounds[-1].append(item)
        before = speaker
    return rounds


def without_oldest(items: Sequence[Item], count: int) -> list[Item]:
    """Return ``items`` without their ``count`` oldest rounds; system and developer messages remain."""
    rounds = split_rounds(items)
    kept = [
        item
        for one in rounds[:count]
        for item in one
        if item["type"] == "message" and item["role"] in ("system", "developer")
    ]
    return kept + [item for one in rounds[count:] for item in one]


def check_outputs(history: Sequence[Item], own: Sequence[Item]) -> None:
    """Reject an output in ``own`` whose call exists neither in ``history`` nor before it."""
    calls = {item["call_id"] for item in history if item["type"] == "function_call"}
    for index, item in enumerate(own):
        if item["type"] == "function_call":
            calls.add(item["call_id"])
        elif item["type"] == "function_call_output" and item["call_id"] not in calls:
            raise InvalidRequestError(
                f"input[{index}].call_id: no function call has the id '{str(item['call_id'])[:64]}'",
                param=f"input[{index}].call_id",
            )


def write_summary(text: str) -> str:
    """Return ``text`` as the opaque content of a compaction item."""
    return base64.urlsafe_b64encode(text.encode()).decode()


def read_summary(item: Item) -> str:
    """Return the text of a compaction item; raises :class:`InvalidRequestError` if it was not made here."""
    try:
        return base64.b64decode(str(item["encrypted_content"]).encode(), b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise InvalidRequestError(
            "input: the encrypted_content of a compaction item was not made by this service", param="input"
        ) from None


def _add_message(messages: list[Message], item: Item) -> None:
    if item["role"] == "assistant":
        messages.append({"role": "assistant", "content": _text_of(item)})
        return
    parts = [_chat_part(part) for part in item["content"]]
    if all(part["type"] == "text" for part in parts):
        messages.append({"role": "user", "content": "\n".join(part["text"] for part in parts)})
    else:
        messages.append({"role": "user", "content": parts})


def _chat_part(part: Mapping[str, Any]) -> Message:
    if part["type"] == "input_image":
        url = {"url": part["image_url"]}
        if part.get("detail") in ("low", "high"):
            url["detail"] = part["detail"]
        return {"type": "image_url", "image_url": url}
    return {"type": "text", "text": str(part.get("text") or part.get("refusal") or "")}


def _add_call(messages: list[Message], call_id: str, name: str, arguments: str) -> None:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments or "{}"}}
    last = messages[-1] if messages else None
    if last is not None and last["role"] == "assistant":
        last.setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _text_of(item: Item) -> str:
    return "\n".join(str(part.get("text") or part.get("refusal") or "") for part in item["content"])


def _output_text(item: Item) -> str:
    output = item["output"]
    return output if isinstance(output, str) else "\n".join(str(part["text"]) for part in output)
