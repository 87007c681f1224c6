"""The form of items: that of a request becomes the one in which items are stored and returned.

Messages, calls of functions with their outputs, reasoning and searches of files are checked field by field. Every
other item is kept as it is if it has a ``type``: the engine decides whether it accepts it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from typing import Any

from appliance.errors import InvalidRequestError

MAX_ITEMS = 20
"""Items of one request."""
ROLES = ("user", "assistant", "system", "developer")
STATUSES = ("in_progress", "completed", "incomplete")
SEARCH_RESULTS = "file_search_call.results"
WEB_RESULTS = "web_search_call.results"
WEB_SOURCES = "web_search_call.action.sources"
ENCRYPTED_REASONING = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"

_TYPE = re.compile(r"[a-z][a-z0-9_]{0,39}")


def stored_form(item: object, param: str) -> dict[str, Any]:
    """Return ``item`` of a request in its stored form; ``param`` is its place, such as `items[0]`.

    A text that is the whole content becomes a part, a missing status ``completed``. An ``id`` of the client is
    dropped, except that of an ``item_reference``.

    Raises :class:`InvalidRequestError` with the field that is not valid.
    """
    found = dict(_mapping(item, param))
    if "type" not in found and "role" in found:
        found["type"] = "message"
    kind = found.get("type")
    if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
        raise _invalid(f"{param}.type", "is not the type of an item, such as message or function_call_output")
    if kind == "item_reference":
        return {"type": kind, "id": _text(found, "id", param)}
    found.pop("id", None)
    check = _CHECKS.get(kind)
    return found if check is None else check(found, param)


def shown_form(item: Mapping[str, Any], include: Set[str]) -> dict[str, Any]:
    """Return a stored ``item`` as a client gets it: some fields only if ``include`` names them."""
    shown = dict(item)
    if shown["type"] == "file_search_call" and SEARCH_RESULTS not in include:
        shown["results"] = None
    if shown["type"] == "web_search_call":
        if WEB_RESULTS not in include:
            shown.pop("results", None)
        if WEB_SOURCES not in include and isinstance(shown.get("action"), Mapping):
            shown["action"] = {name: value for name, value in shown["action"].items() if name != "sources"}
    if shown["type"] == "reasoning" and ENCRYPTED_REASONING not in include:
        shown.pop("encrypted_content", None)
    if shown["type"] == "message" and LOGPROBS not in include and isinstance(shown.get("content"), list):
        shown["content"] = [
            {name: value for name, value in part.items() if name != "logprobs"} for part in shown["content"]
        ]
    return shown


def _message(item: dict[str, Any], param: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in ROLES:
        raise _invalid(f"{param}.role", f"is not a role of a message: {', '.join(ROLES)}")
    content = item.get("content")
    if isinstance(content, str):
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": content}]
    if not isinstance(content, list):
        raise _invalid(f"{param}.content", "is neither a text nor a list of parts")
    parts = [_part(part, f"{param}.content[{at}]") for at, part in enumerate(content)]
    return {**item, "status": _status(item, param), "content": parts}


def _part(part: object, param: str) -> dict[str, Any]:
    found = dict(_mapping(part, param))
    kind = _text(found, "type", param)
    if kind in {"input_text", "output_text", "text", "summary_text", "reasoning_text"}:
        _text(found, "text", param)
    elif kind == "refusal":
        _text(found, "refusal", param)
    elif kind == "input_image":
        found.setdefault("detail", "auto")
    if kind == "output_text" and not isinstance(found.setdefault("annotations", []), list):
        raise _invalid(f"{param}.annotations", "is not a list")
    return found


def _function_call(item: dict[str, Any], param: str) -> dict[str, Any]:
    for field in ("call_id", "name", "arguments"):
        _text(item, field, param)
    return {**item, "status": _status(item, param)}


def _function_call_output(item: dict[str, Any], param: str) -> dict[str, Any]:
    _text(item, "call_id", param)
    output = item.get("output")
    if isinstance(output, list):
        output = [_part(part, f"{param}.output[{at}]") for at, part in enumerate(output)]
    elif not isinstance(output, str):
        raise _invalid(f"{param}.output", "is neither a text nor a list of parts")
    return {**item, "status": _status(item, param), "output": output}


def _reasoning(item: dict[str, Any], param: str) -> dict[str, Any]:
    found = {"summary": [], **item}
    for field in ("summary", "content"):
        parts = found.get(field)
        if isinstance(parts, list):
            found[field] = [_part(part, f"{param}.{field}[{at}]") for at, part in enumerate(parts)]
        elif parts is not None or field == "summary":
            raise _invalid(f"{param}.{field}", "is not a list of parts")
    return found


def _file_search_call(item: dict[str, Any], param: str) -> dict[str, Any]:
    queries = item.get("queries")
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise _invalid(f"{param}.queries", "is not a list of texts")
    return {"status": "completed", **item}


def _web_search_call(item: dict[str, Any], param: str) -> dict[str, Any]:
    if not isinstance(item.get("results"), list | None):
        raise _invalid(f"{param}.results", "is not a list")
    return {"status": "completed", **item}


_CHECKS: Mapping[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
    "file_search_call": _file_search_call,
    "web_search_call": _web_search_call,
}


def _mapping(value: object, param: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(param, "is not an object")
    return value


def _text(item: Mapping[str, Any], field: str, param: str) -> str:
    value = item.get(field)
    if not isinstance(value, str):
        raise _invalid(f"{param}.{field}", "is missing" if value is None else "is not a text")
    return value


def _status(item: Mapping[str, Any], param: str) -> str:
    status = item.get("status") or "completed"
    if status not in STATUSES:
        raise _invalid(f"{param}.status", f"is not a status: {', '.join(STATUSES)}")
    return str(status)


def _invalid(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"'{param}' {reason}.", param=param)
