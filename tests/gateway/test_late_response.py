"""Late responses over a real Unix socket: exactly one for each request, whatever its work does."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable
from pathlib import Path

import msgspec
import pytest

from appliance.errors import ConflictError, InvalidRequestError, RequestError
from appliance.gateway import reply
from appliance.gateway.late_response import LateResponses, decode_fields
from appliance.http1.server import Server
from appliance.http1.types import ClientResponder, Request
from appliance.http1.writer import WriteCoalescer
from tests.gateway.running.stand_in import unix_request
from tests.http1.conftest import PATIENT


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """A body."""

    name: str


async def _found() -> dict[str, str]:
    return {"state": "ready"}


async def _refused() -> None:
    raise ConflictError("It runs already")


async def _failed() -> None:
    raise KeyError("inside")


WORK = {"/found": _found, "/refused": _refused, "/failed": _failed}


class LateApplication:
    """An application that responds late to every request."""

    def __init__(self) -> None:
        self._late = LateResponses()

    def begin(self, request: Request) -> int:
        return 1000

    def too_large(self, request: Request, error: RequestError) -> RequestError:
        return error

    def record_incomplete(self, request: Request, error: object) -> None:
        pass

    def handle(self, request: Request, client: ClientResponder) -> None:
        work: Awaitable[object] = WORK[request.path]()
        self._late.start(request, client, work)

    def refuse(self, request: Request, error: RequestError, client: ClientResponder) -> None:
        reply.respond_error(client, error, request.path)

    def complete_headers(self, request: Request, headers: bytes) -> bytes:
        return reply.complete_headers(request, headers)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [("/found", 200, "ready"), ("/refused", 409, "It runs already"), ("/failed", 500, "its log has the reason")],
)
async def test_each_work_gets_one_response(
    path: str, status: int, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(LateApplication(), PATIENT, WriteCoalescer(asyncio.get_running_loop()))
    listener = await asyncio.get_running_loop().create_unix_server(server.connect, tmp_path / "late.sock")
    async with listener:
        with caplog.at_level(logging.ERROR):
            found = await asyncio.to_thread(unix_request, tmp_path / "late.sock", path, None, {}, "GET")
    assert (found.status, text in json.dumps(found.json)) == (status, True)
    # Only an unexpected error is logged, with its traceback.
    assert ("KeyError" in caplog.text) is (path == "/failed")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"name": 1}', b'{"name": "a", "b": 1}', b'{"name": "\xff"}'])
def test_a_body_of_another_form_is_named(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape('The body is not {"name": …}')):
        decode_fields(body, Order)
    assert decode_fields(b'{"name": "a"}', Order) == Order("a")
