"""Validates the body of ``POST /v1/responses``; a typed request, or a 400 that names the field. Pure.

A field that the assistant does not serve is rejected with its name, except what some clients always send. Those are
``web_search`` on a site without web search and ``namespace``, which are removed and announced, and :data:`IGNORED`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from appliance.assistant.metadata import MAX_NAME, MAX_PAIRS, MAX_VALUE
from appliance.assistant.retrieval.fusion import HybridWeights
from appliance.assistant.web.tool import NAMES as WEB_NAMES
from appliance.assistant.web.tool import SEARCH as WEB_NAME
from appliance.assistant.web.tool import WebTool, is_web_type, read_web_tool
from appliance.errors import InvalidRequestError

MAX_INPUT_ITEMS = 2000
"""Most items of one request; conversations have no limit of their own."""
MAX_STORES = 16
"""Most vector stores of one file_search tool."""
MAX_TOOLS = 128
SEARCH_NAME = "file_search"
"""Name of the function by which the model calls the hosted tool file_search."""

SAMPLING = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
"""Sampling fields that both APIs share, with their ranges."""
PASSED = ("top_k", "min_p", "repetition_penalty", "seed", "stop", "chat_template_kwargs", "user")
"""Fields that engines understand beyond OpenAI's API; the engine validates them."""
ECHOED = ("service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
"""Fields that a response repeats and that change nothing else."""
IGNORED = ("client_metadata",)
"""Fields with which a client describes itself to OpenAI. Codex always sends it."""
INCLUDABLE = frozenset(
    {
        "file_search_call.results",
        "reasoning.encrypted_content",
        "message.input_image.image_url",
        "web_search_call.action.sources",
        "web_search_call.results",
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
    }
)
KNOWN = frozenset(
    {
        "background",
        "conversation",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "model",
        "parallel_tool_calls",
        "previous_response_id",
        "reasoning",
        "store",
        "stream",
        "stream_options",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "truncation",
        *SAMPLING,
        *PASSED,
        *ECHOED,
        *IGNORED,
    }
)
NAMESPACE = "namespace"
"""Type of a group of functions, which no chat template has. Codex has its agents in one, and works without."""
_ITEM_TYPES = frozenset(
    {
        "message",
        "function_call",
        "function_call_output",
        "file_search_call",
        "web_search_call",
        "reasoning",
        "compaction",
        "item_reference",
    }
)
_ROLES = frozenset({"user", "assistant", "system", "developer"})
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


@dataclass(frozen=True, slots=True)
class SearchTool:
    """The tool file_search of one request."""

    store_ids: tuple[str, ...]
    limit: int = 10
    filters: Mapping[str, Any] | None = None
    threshold: float = 0.0
    weights: HybridWeights = field(default_factory=HybridWeights)
    index: int = 0
    """Its place in ``tools``, for errors."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One valid request for a response."""

    items: tuple[Mapping[str, Any], ...]
    """Its own input, each item with a type."""
    model: str | None = None
    instructions: str | None = None
    conversation: str | None = None
    previous: str | None = None
    store: bool = True
    background: bool = False
    stream: bool = False
    truncate: bool = False
    """Whether the oldest rounds are dropped if the context is too short."""
    include: frozenset[str] = frozenset()
    functions: tuple[Mapping[str, Any], ...] = ()
    """Function tools as the chat API has them."""
    search: SearchTool | None = None
    web: WebTool | None = None
    removed: tuple[str, ...] = ()
    """Types of the tools that were removed and are announced."""
    choice: object = "auto"
    """``tool_choice`` as the chat API has it."""
    max_tokens: int | None = None
    max_tool_calls: int | None = None
    engine_fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields for the engine."""
    shown: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the response object repeats."""

    @property
    def unattended(self) -> bool:
        """Whether no client waits for its text: it is in the background and not streamed."""
        return self.background and not self.stream


def read_turn(body: object, *, web: bool = False) -> TurnRequest:
    """Return the request that ``body`` describes; ``web`` is whether the site has web search.

    Raises :class:`InvalidRequestError` with ``param``.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequestError("The body must be a JSON object", param="body")
    unknown = sorted(set(body) - KNOWN)
    if unknown:
        raise _invalid(unknown[0], "is not supported here; remove it", code="unsupported_parameter")
    conversation = read_conversation(body.get("conversation"))
    previous = _text(body, "previous_response_id")
    if conversation is not None and previous is not None:
        raise _invalid("previous_response_id", "excludes conversation; send one of them")
    store = _flag(body, "store", default=True)
    background = _flag(body, "background", default=False)
    if background and not store:
        raise _invalid("background", "needs store to be true: a background response is read later")
    tools = _list(body, "tools")
    if len(tools) > MAX_TOOLS:
        raise _invalid("tools", f"has {len(tools)} entries; at most {MAX_TOOLS} are allowed")
    offered = _tools(tools, web=web)
    removed = offered.removed
    choice, offered = _choice(body.get("tool_choice"), offered)
    include = _include(body)
    if body.get("top_logprobs") not in (None, 0):
        raise _invalid("top_logprobs", "must be 0: log probabilities are available in chat completions only")
    parallel = _flag(body, "parallel_tool_calls", default=True)
    engine, text, reasoning = _engine_fields(body)
    if not parallel:
        engine["parallel_tool_calls"] = False
    truncation = body.get("truncation") or "disabled"
    if truncation not in ("auto", "disabled"):
        raise _invalid("truncation", "must be auto or disabled")
    metadata = read_metadata(body.get("metadata"))
    shown = {
        "instructions": _text(body, "instructions"),
        "metadata": metadata,
        "tools": [_shown_tool(tool) for tool in tools if tool.get("type") not in removed],
        "tool_choice": body.get("tool_choice") or "auto",
        "parallel_tool_calls": parallel,
        "max_output_tokens": _count(body, "max_output_tokens", 1),
        "max_tool_calls": _count(body, "max_tool_calls", 1),
        "temperature": 1.0,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        **{name: body[name] for name in SAMPLING if body.get(name) is not None},
        "top_logprobs": 0,
        "truncation": truncation,
        "text": text,
        "reasoning": reasoning,
        "store": store,
        "background": background,
        "previous_response_id": previous,
        "conversation": None if conversation is None else {"id": conversation},
        "service_tier": body.get("service_tier") or "default",
        "safety_identifier": _text(body, "safety_identifier"),
        "prompt_cache_key": _text(body, "prompt_cache_key"),
    }
    return TurnRequest(
        items=read_items_of(body.get("input")),
        model=_text(body, "model"),
        instructions=_text(body, "instructions"),
        conversation=conversation,
        previous=previous,
        store=store,
        background=background,
        stream=_flag(body, "stream", default=False),
        truncate=truncation == "auto",
        include=include,
        functions=offered.functions,
        search=offered.search,
        web=offered.web,
        removed=removed,
        choice=choice,
        max_tokens=_count(body, "max_output_tokens", 1),
        max_tool_calls=_count(body, "max_tool_calls", 1),
        engine_fields=engine,
        shown=shown,
    )


def read_conversation(value: object) -> str | None:
    """Return the id in ``conversation``, which is an id or an object with one."""
    if isinstance(value, Mapping):
        value = value.get("id")
        if value is None:
            raise _invalid("conversation.id", "is missing")
    if value is not None and (not isinstance(value, str) or not value):
        raise _invalid("conversation", "must be an id, or an object with one")
    return value


def read_metadata(value: object) -> dict[str, str]:
    """Return ``metadata`` within OpenAI's limits."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _invalid("metadata", "must be an object of strings")
    if len(value) > MAX_PAIRS:
        raise _invalid("metadata", f"has {len(value)} pairs; at most {MAX_PAIRS} are allowed")
    for key, text in value.items():
        if len(key) > MAX_NAME:
            raise _invalid("metadata", f"has a key of {len(key)} letters; at most {MAX_NAME} are allowed")
        if not isinstance(text, str):
            raise _invalid(f"metadata.{key}", "must be a string")
        if len(text) > MAX_VALUE:
            raise _invalid(f"metadata.{key}", f"has {len(text)} letters; at most {MAX_VALUE} are allowed")
    return dict(value)


def read_items_of(value: object) -> tuple[Mapping[str, Any], ...]:
    """Return ``input`` as items, each with a type: a text is one message of the user."""
    if value is None:
        return ()
    if isinstance(value, str):
        return ({"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]},)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise _invalid("input", "must be a string or a list of items")
    if len(value) > MAX_INPUT_ITEMS:
        raise _invalid("input", f"has {len(value)} items; at most {MAX_INPUT_ITEMS} are allowed")
    return tuple(_item(one, f"input[{index}]") for index, one in enumerate(value))


def _item(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(where, "must be an object")
    kind = value.get("type") or ("message" if "role" in value else None)
    if not isinstance(kind, str) or kind not in _ITEM_TYPES:
        raise _invalid(f"{where}.type", f"{_quoted(kind)} is not a supported item")
    item = {**value, "type": kind}
    if kind in ("message", "function_call", "function_call_output"):
        item["status"] = value.get("status") or "completed"
    if kind == "message":
        return _message(item, where)
    if kind == "web_search_call" and not isinstance(item.get("results"), list | None):
        raise _invalid(f"{where}.results", "must be a list")
    for name in _NEEDED[str(kind)]:
        if not isinstance(item.get(name), str):
            raise _invalid(f"{where}.{name}", "must be a string")
    if kind == "function_call_output":
        item["output"] = _output(item.get("output"), f"{where}.output")
    return item


_NEEDED: Mapping[str, tuple[str, ...]] = {
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id",),
    "compaction": ("encrypted_content",),
    "item_reference": ("id",),
    "file_search_call": (),
    "web_search_call": (),
    "reasoning": (),
}


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _invalid(f"{where}.role", f"{_quoted(role)} is not one of assistant, developer, system, user")
    content = item.get("content")
    if isinstance(content, str):
        item["content"] = [_part(role, content)]
    elif isinstance(content, list):
        item["content"] = [_checked(part, role, f"{where}.content[{at}]") for at, part in enumerate(content)]
    else:
        raise _invalid(f"{where}.content", "must be a string or a list of parts")
    return item


def _part(role: object, text: str) -> dict[str, Any]:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}


def _checked(part: object, role: object, where: str) -> Mapping[str, Any]:
    if not isinstance(part, Mapping):
        raise _invalid(where, "must be an object")
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        if not isinstance(part.get("text"), str):
            raise _invalid(f"{where}.text", "must be a string")
        return part if kind != "text" else _part(role, part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return part
    if kind == "input_image":
        if not isinstance(part.get("image_url"), str):
            raise _invalid(f"{where}.image_url", "must be a URL or a data URL; file_id is not supported")
        return part
    if kind == "input_file":
        raise _invalid(where, "input_file is not supported; add the file to a vector store and use file_search")
    raise _invalid(f"{where}.type", f"{_quoted(kind)} is not a supported part")


def _output(value: object, where: str) -> object:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        for at, part in enumerate(value):
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                raise _invalid(f"{where}[{at}]", "must be a part with a text")
        return value
    raise _invalid(where, "must be a string or a list of parts")


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The tools of one request: functions of the client, hosted tools, and types that were removed."""

    functions: tuple[Mapping[str, Any], ...] = ()
    search: SearchTool | None = None
    web: WebTool | None = None
    removed: tuple[str, ...] = ()


def _tools(tools: Sequence[Mapping[str, Any]], *, web: bool) -> OfferedTools:
    functions: list[Mapping[str, Any]] = []
    search: SearchTool | None = None
    web_tool: WebTool | None = None
    removed: list[str] = []
    for index, tool in enumerate(tools):
        kind = tool.get("type")
        if kind == "function":
            functions.append(_function(tool, f"tools[{index}]"))
        elif kind == "file_search":
            if search is not None:
                raise _invalid(f"tools[{index}]", "is a second file_search; list all stores in one")
            search = read_search_tool(tool, index)
        elif is_web_type(kind):
            if not web:
                removed.append(str(kind))
            elif web_tool is not None:
                raise _invalid(f"tools[{index}]", "is a second web_search; send one")
            else:
                web_tool = read_web_tool(tool, f"tools[{index}]")
        elif kind == NAMESPACE:
            removed.append(NAMESPACE)
        else:
            raise _invalid(
                f"tools[{index}].type",
                f"{_quoted(kind)} is not a tool of this service; use function, file_search or web_search",
            )
    names = [tool["function"]["name"] for tool in functions] + ([SEARCH_NAME] if search else [])
    names += sorted(WEB_NAMES) if web_tool else []
    for name in names:
        if names.count(name) > 1:
            raise _invalid("tools", f"has two tools with the name {name!r}; rename one")
    return OfferedTools(tuple(functions), search, web_tool, tuple(dict.fromkeys(removed)))


def _function(tool: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise _invalid(f"{where}.name", "must be a string")
    parameters = tool.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise _invalid(f"{where}.parameters", "must be a JSON schema")
    function: dict[str, Any] = {"name": name}
    for key in ("description", "parameters", "strict"):
        if tool.get(key) is not None:
            function[key] = tool[key]
    return {"type": "function", "function": function}


def _shown_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``tool`` with all fields that a response has."""
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}


def read_search_tool(tool: Mapping[str, Any], index: int) -> SearchTool:
    """Return the tool file_search, which is at ``index`` of ``tools``."""
    where = f"tools[{index}]"
    stores = tool.get("vector_store_ids")
    if not isinstance(stores, list) or not stores or not all(isinstance(one, str) for one in stores):
        raise _invalid(f"{where}.vector_store_ids", "must be a list of ids, at least one")
    if len(stores) > MAX_STORES:
        raise _invalid(f"{where}.vector_store_ids", f"has {len(stores)} ids; at most {MAX_STORES} are allowed")
    limit = 10 if tool.get("max_num_results") is None else tool["max_num_results"]
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= 50:
        raise _invalid(f"{where}.max_num_results", "must be a number from 1 to 50")
    filters = tool.get("filters")
    if filters is not None and not isinstance(filters, Mapping):
        raise _invalid(f"{where}.filters", "must be an object")
    options = tool.get("ranking_options") or {}
    if not isinstance(options, Mapping):
        raise _invalid(f"{where}.ranking_options", "must be an object")
    threshold = options.get("score_threshold") or 0.0
    if not _number(threshold) or not 0 <= threshold <= 1:
        raise _invalid(f"{where}.ranking_options.score_threshold", "must be a number from 0 to 1")
    weights = _weights(options.get("hybrid_search") or {}, f"{where}.ranking_options.hybrid_search")
    return SearchTool(
        store_ids=tuple(dict.fromkeys(stores)),
        limit=limit,
        filters=filters,
        threshold=float(threshold),
        weights=weights,
        index=index,
    )


def _weights(value: object, where: str) -> HybridWeights:
    given = {name: value.get(name) for name in _WEIGHTS} if isinstance(value, Mapping) else {"": value}
    weights: dict[str, Any] = {name: weight for name, weight in given.items() if weight is not None}
    try:
        if all(_number(weight) for weight in weights.values()):
            return HybridWeights(**weights)
    except InvalidRequestError as error:
        raise _invalid(where, str(error)) from None
    raise _invalid(where, "must be an object with numbers")


_WEIGHTS = ("embedding_weight", "text_weight")


def _choice(value: object, offered: OfferedTools) -> tuple[object, OfferedTools]:
    """Return ``tool_choice`` for the chat API, and the tools that it allows."""
    if value is None or (isinstance(value, str) and value in ("auto", "none", "required")):
        return value or "auto", offered
    if isinstance(value, Mapping):
        kind, named = value.get("type"), value.get("name")
        names = {tool["function"]["name"] for tool in offered.functions}
        if kind == "function" and isinstance(named, str) and named in names:
            return {"type": "function", "function": {"name": named}}, offered
        if kind == "file_search" and offered.search is not None:
            return {"type": "function", "function": {"name": SEARCH_NAME}}, offered
        if is_web_type(kind) and offered.web is not None:
            return {"type": "function", "function": {"name": WEB_NAME}}, offered
        if isinstance(kind, str) and kind in offered.removed:
            return "auto", offered
        if kind == "allowed_tools" and value.get("mode") in ("auto", "required"):
            allowed = _list(value, "tools")
            wanted = [tool.get("name") for tool in allowed if tool.get("type") == "function"]
            if all(isinstance(name, str) and name in names for name in wanted):
                kinds = [tool.get("type") for tool in allowed]
                return value["mode"], replace(
                    offered,
                    functions=tuple(one for one in offered.functions if one["function"]["name"] in wanted),
                    search=offered.search if "file_search" in kinds else None,
                    web=offered.web if any(map(is_web_type, kinds)) else None,
                )
    raise _invalid("tool_choice", "must be auto, none, required, or name a tool of this request")


def _engine_fields(body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the fields for the engine, ``text`` and ``reasoning``."""
    engine: dict[str, Any] = {name: body[name] for name in PASSED if body.get(name) is not None}
    for name, (low, high) in SAMPLING.items():
        value = body.get(name)
        if value is not None:
            if not _number(value) or not low <= value <= high:
                raise _invalid(name, f"must be a number from {low:g} to {high:g}")
            engine[name] = value
    text = _object(body, "text")
    form = text.get("format") or {"type": "text"}
    if not isinstance(form, Mapping) or form.get("type") not in ("text", "json_object", "json_schema"):
        raise _invalid("text.format.type", "must be text, json_object or json_schema")
    if form["type"] == "json_schema":
        if not isinstance(form.get("schema"), Mapping) or not isinstance(form.get("name"), str):
            raise _invalid("text.format", "needs a name and a schema")
        schema = {
            key: form[key] for key in ("name", "description", "schema", "strict") if form.get(key) is not None
        }
        engine["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form["type"] == "json_object":
        engine["response_format"] = {"type": "json_object"}
    reasoning = _object(body, "reasoning")
    effort = reasoning.get("effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise _invalid("reasoning.effort", f"must be one of {', '.join(_EFFORTS)}")
        engine["reasoning_effort"] = effort
    shown = {"effort": effort, "summary": reasoning.get("summary")}
    return engine, {"format": dict(form), "verbosity": text.get("verbosity") or "medium"}, shown


def _include(body: Mapping[str, Any]) -> frozenset[str]:
    names = _list_of_text(body.get("include"), "include")
    return read_include(names)


def read_include(names: Sequence[str]) -> frozenset[str]:
    """Return ``include``; raises :class:`InvalidRequestError` for an unknown entry."""
    for name in names:
        if name not in INCLUDABLE:
            raise _invalid("include", f"{_quoted(name)} is not available; remove it")
    return frozenset(names)


def _list_of_text(value: object, name: str) -> Sequence[str]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _invalid(name, "must be a list of strings")
    return value


def _list(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _invalid(name, "must be a list")
    for index, one in enumerate(value):
        if not isinstance(one, Mapping):
            raise _invalid(f"{name}[{index}]", "must be an object")
    return value


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _invalid(name, "must be an object")
    return value


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise _invalid(name, "must be a string")
    return value


def _flag(body: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _invalid(name, "must be true or false")
    return value


def _count(body: Mapping[str, Any], name: str, least: int) -> int | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise _invalid(name, f"must be a whole number of at least {least}")
    return value


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _quoted(value: object) -> str:
    return "a missing value" if value is None else f"{str(value)[:64]!r}"


def _invalid(param: str, problem: str, *, code: str | None = None) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {problem}", param=param, code=code)
