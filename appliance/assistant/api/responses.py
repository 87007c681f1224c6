"""``/v1/responses``: create, read, resume, cancel, delete, compact, and count tokens."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from appliance.assistant.api.description import TURN_BODY
from appliance.assistant.api.json_body import read_json
from appliance.assistant.api.pages import Limit, Order, as_list
from appliance.assistant.api.requests import Calling, disconnected
from appliance.assistant.background import in_background
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.role_context import RoleMemory
from appliance.assistant.memory.search import StoreSearch
from appliance.assistant.missing import not_found
from appliance.assistant.retrieval.filters import compile_filter
from appliance.assistant.store.responses import KIND, ResponseStore
from appliance.assistant.turns.compaction import compact
from appliance.assistant.turns.prompt_fit import PromptFit
from appliance.assistant.turns.request import TurnRequest, read_include, read_turn
from appliance.assistant.turns.running import EXPIRY_PAUSE_S, REPAIR_PAUSE_S, RunningTurns
from appliance.assistant.turns.search_results import shown_item
from appliance.assistant.turns.turn import ResponseTurn, TurnServices
from appliance.assistant.turns.turn_prompt import count_prompt
from appliance.assistant.turns.turn_queue import TurnQueue
from appliance.errors import InvalidRequestError

LOG = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""Seconds that a stream waits for its first event before its HTTP response begins with a comment."""
REMOVED_HEADER = "x-appliance-removed-tools"
"""Names the hosted tools that were removed from the request."""
EVENT_STREAM = "text/event-stream; charset=utf-8"

Include = Annotated[list[str] | None, Query()]
IncludeList = Annotated[list[str] | None, Query(alias="include[]")]


def make_services(context: AssistantContext) -> TurnServices:
    """Return the parts that the turns of one assistant use."""
    return TurnServices(
        context=context,
        store=ResponseStore(context.database),
        queue=TurnQueue(),
        fit=PromptFit(context.site, context.inference),
        searching=context.shared(StoreSearch),
        memory=context.shared(RoleMemory),
    )


def responses_router(context: AssistantContext) -> APIRouter:
    """Return the endpoints of responses; its lifespan ends the turns of an earlier process, and its own."""
    services = make_services(context)
    running = RunningTurns(services)

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        await running.recover()
        try:
            async with (
                in_background(_expire(running), "the expiry of responses"),
                in_background(_repair(running), "the repair of responses"),
            ):
                yield
        finally:
            await running.close()

    router = APIRouter(prefix="/v1/responses", lifespan=lifespan)
    _add_creation(router, services, running)
    _add_stored(router, services, running)
    return router


def _add_creation(router: APIRouter, services: TurnServices, running: RunningTurns) -> None:
    """Add the endpoints that call an engine."""
    limit = services.context.site.gateway.max_body_bytes
    web = services.context.site.search is not None

    @router.post("", openapi_extra=TURN_BODY)
    async def create(request: Request, caller: Calling) -> Response:
        turn_request = read_turn(await read_json(request, limit), web=web)
        if turn_request.search is not None and turn_request.search.filters is not None:
            compile_filter(turn_request.search.filters, param=f"tools[{turn_request.search.index}].filters")
        headers = _announced(turn_request, caller)
        if turn_request.background:
            turn = await running.start_background(caller, turn_request)
            if turn_request.stream:
                return StreamingResponse(turn.buffer.follow(), headers=headers, media_type=EVENT_STREAM)
            return _as_json(turn.snapshot(), headers)
        turn = running.start(caller, turn_request)
        if turn_request.stream:
            return await _streamed(turn, request, headers)
        await _until(turn.done, turn, request)
        if turn.refusal is not None:
            raise turn.refusal
        return _as_json(turn.snapshot(), headers)

    @router.post("/input_tokens")
    async def input_tokens(request: Request, caller: Calling) -> Response:
        turn_request = read_turn(_allowed(await read_json(request, limit), _COUNTED), web=web)
        stores = turn_request.search.store_ids if turn_request.search is not None else ()
        history = await services.read_history(caller, turn_request, stores)
        model = services.fit.model_of(turn_request.model, history.metadata)
        count = await count_prompt(services.fit, services.memory, turn_request, history, model, caller)
        return _as_json({"object": "response.input_tokens", "input_tokens": count})

    @router.post("/compact")
    async def compact_items(request: Request, caller: Calling) -> Response:
        turn_request = read_turn(_allowed(await read_json(request, limit), _COMPACTED))
        return _as_json(await compact(services, caller, turn_request))


def _add_stored(router: APIRouter, services: TurnServices, running: RunningTurns) -> None:
    """Add the endpoints of stored responses."""

    @router.get("/{identifier}")
    async def read(
        identifier: str,
        caller: Calling,
        stream: bool = False,
        starting_after: Annotated[int | None, Query(ge=0)] = None,
        include: Include = None,
        include_list: IncludeList = None,
    ) -> Response:
        shown = read_include([*(include or ()), *(include_list or ())])
        if stream:
            return await _resumed(services, running, caller, identifier, starting_after)
        if starting_after is not None:
            raise InvalidRequestError("starting_after needs stream to be true", param="starting_after")
        return _as_json(await _whole(services, running, caller, identifier, shown))

    @router.delete("/{identifier}")
    async def delete(identifier: str, caller: Calling) -> Response:
        await running.stop(caller.user, identifier, "deleted")
        await asyncio.to_thread(services.store.delete, caller.user, identifier)
        return _as_json({"id": identifier, "object": "response", "deleted": True})

    @router.post("/{identifier}/cancel")
    async def cancel(identifier: str, caller: Calling) -> Response:
        stored = await asyncio.to_thread(services.store.get, caller.user, identifier)
        if not stored.background:
            raise InvalidRequestError(
                "Only a background response can be cancelled; close the connection of another one.",
                code="not_cancellable",
            )
        await running.stop(caller.user, identifier, "cancelled")
        return _as_json(await _whole(services, running, caller, identifier, frozenset()))

    @router.get("/{identifier}/input_items")
    async def input_items(
        identifier: str,
        caller: Calling,
        after: str | None = None,
        limit: Limit = 20,
        order: Order = "desc",
        include: Include = None,
        include_list: IncludeList = None,
    ) -> Response:
        shown = read_include([*(include or ()), *(include_list or ())])
        page = await asyncio.to_thread(
            services.store.input_items, caller.user, identifier, after=after, limit=limit, order=order
        )
        data = [shown_item(item, shown) for item in page.data]
        return _as_json(as_list(data, page.has_more))


_COUNTED = frozenset(
    {
        "conversation",
        "input",
        "instructions",
        "model",
        "parallel_tool_calls",
        "previous_response_id",
        "reasoning",
        "text",
        "tool_choice",
        "tools",
        "truncation",
    }
)
_COMPACTED = frozenset(
    {"conversation", "input", "instructions", "model", "previous_response_id", "prompt_cache_key"}
)


async def _expire(running: RunningTurns) -> None:
    while True:
        await asyncio.sleep(EXPIRY_PAUSE_S)
        await running.expire()


async def _repair(running: RunningTurns) -> None:
    while True:
        await asyncio.sleep(REPAIR_PAUSE_S)
        await running.repair()


def _allowed(body: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    for name in body:
        if name not in names:
            raise InvalidRequestError(
                f"{name}: is not a field of this endpoint; remove it", param=name, code="unsupported_parameter"
            )
    return body


def _announced(request: TurnRequest, caller: Caller) -> dict[str, str]:
    """Return the header that names removed tools, and log them."""
    if not request.removed:
        return {}
    names = ", ".join(request.removed)
    LOG.info("request %s: removed the tools %s, which this site does not have", caller.request_id, names)
    return {REMOVED_HEADER: names}


async def _streamed(turn: ResponseTurn, request: Request, headers: dict[str, str]) -> Response:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await _until(turn.opened, turn, request)
    except TimeoutError:
        # The HTTP response begins now, so that comments keep the connection open; later errors are events.
        turn.committed = True
    if turn.refusal is not None:
        raise turn.refusal
    return StreamingResponse(_frames(turn), headers=headers, media_type=EVENT_STREAM)


async def _frames(turn: ResponseTurn) -> AsyncIterator[bytes]:
    try:
        async for frame in turn.buffer.follow():
            yield frame
    finally:
        # Without an effect on a turn that has ended.
        turn.stop("client_disconnected")


async def _until(event: asyncio.Event, turn: ResponseTurn, request: Request) -> None:
    """Wait for ``event``; stop the turn if the client disconnects first."""
    waiting = asyncio.create_task(event.wait())
    leaving = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not event.is_set() and leaving.done():
            turn.stop("client_disconnected")
            await waiting
    finally:
        waiting.cancel()
        leaving.cancel()


async def _resumed(
    services: TurnServices, running: RunningTurns, caller: Caller, identifier: str, starting_after: int | None
) -> Response:
    buffer = running.buffer(caller.user, identifier)
    if buffer is None:
        # 404 for a response that the caller does not have.
        await asyncio.to_thread(services.store.get, caller.user, identifier)
        raise InvalidRequestError(
            "The events of this response have expired; read it without stream.",
            code="events_expired",
            param="starting_after" if starting_after is not None else "stream",
        )
    after = -1 if starting_after is None else starting_after
    buffer.check(after)
    return StreamingResponse(buffer.follow(after), media_type=EVENT_STREAM)


async def _whole(
    services: TurnServices, running: RunningTurns, caller: Caller, identifier: str, shown: frozenset[str]
) -> dict[str, Any]:
    turn = running.find(caller.user, identifier)
    if turn is not None and turn.request.store:
        body = turn.snapshot()
    elif turn is not None:
        raise not_found(KIND, identifier)
    else:
        body = (await asyncio.to_thread(services.store.get, caller.user, identifier)).shown()
    return {**body, "output": [shown_item(item, shown) for item in body["output"]]}


def _as_json(body: Mapping[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(body, ensure_ascii=False), headers=headers, media_type="application/json")
