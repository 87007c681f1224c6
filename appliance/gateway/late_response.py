"""Requests of the local sockets with a typed body, and responses that follow after the handler has returned."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable
from typing import TypeVar

import msgspec

from appliance.errors import InternalError, InvalidRequestError, RequestError
from appliance.gateway import reply
from appliance.http1.types import ClientResponder, Request

LOG = logging.getLogger(__name__)

BodyT = TypeVar("BodyT", bound=msgspec.Struct)


def decode_fields(body: bytes, kind: type[BodyT]) -> BodyT:
    """Return the JSON ``body`` as ``kind``; raises :class:`InvalidRequestError` with the fields of ``kind``."""
    try:
        return msgspec.json.decode(body, type=kind)
    except ValueError as error:
        # Text that is not UTF-8 is a ValueError of Python, not one of msgspec.
        fields = ", ".join(f'"{name}": …' for name in kind.__struct_fields__)
        raise InvalidRequestError(f"The body is not {{{fields}}}: {error}") from None


class LateResponses:
    """Gives each request exactly one response when its work ends, also if the work fails in an unexpected way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, request: Request, client: ClientResponder, work: Awaitable[object]) -> None:
        """Respond with the JSON of the result of ``work``, or with its error."""
        task = asyncio.get_running_loop().create_task(self._respond(request, client, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _respond(request: Request, client: ClientResponder, work: Awaitable[object]) -> None:
        try:
            client.respond(200, json.dumps(await work).encode())
        except RequestError as error:
            reply.respond_error(client, error, reply.api_path(request))
        except Exception:
            # Nothing awaits this task: without a response here, the caller would wait for its timeout.
            LOG.exception("%s failed", request.path)
            failure = InternalError("The gateway failed; its log has the reason")
            reply.respond_error(client, failure, reply.api_path(request))
