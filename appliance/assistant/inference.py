"""Inference for a caller, through the gateway's acting socket: the same key, quota, queue and usage as a client's.

The gateway identifies this process by the owner of its connection, so no key of a client is needed here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from appliance.assistant.caller import Caller
from appliance.errors import EngineFailedError, EngineReportedError, EngineUnavailableError, RequestError
from appliance.system.unix_socket import without_authorities

CONNECT_S = 5.0
READ_S = 900.0
"""Longest silence of the gateway in seconds. It enforces the timeouts of queue and engine itself, and streams have
its keep-alive comments."""
MAX_CONNECTIONS = 1000


class InferenceClient:
    """A pooled client of the acting socket at ``socket``."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(socket),
                verify=without_authorities(),
                limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=100),
            ),
            base_url="http://gateway",
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S, pool=None),
            trust_env=False,
        )

    async def post(
        self, path: str, body: Mapping[str, Any], caller: Caller, *, background: bool = False
    ) -> dict[str, Any]:
        """Return the JSON response to ``body`` at ``path``, an inference path of the gateway.

        Raises :class:`RequestError` with the gateway's status, code and message, or 503 without a gateway.
        """
        async with self.open(path, body, caller, background=background) as response:
            try:
                content = await response.aread()
                found: dict[str, Any] = json.loads(content)
            except httpx.HTTPError as error:
                raise _lost(error) from error
            except ValueError as error:
                raise EngineFailedError("the gateway's response is not JSON") from error
            return found

    @asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, Any], caller: Caller, *, background: bool = False
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield the pieces of the response to ``body``, whose ``stream`` is true.

        The end of the block closes the connection, so that the engine stops. Raises as :meth:`post`.
        """
        async with self.open(path, body, caller, background=background) as response:
            yield _pieces(response)

    @asynccontextmanager
    async def open(
        self, path: str, body: Mapping[str, Any], caller: Caller, *, background: bool = False
    ) -> AsyncIterator[httpx.Response]:
        """Yield the response to ``body`` before its content was read: its headers, its raw pieces.

        The end of the block closes the connection. Raises as :meth:`post`.
        """
        request = self._client.build_request(
            "POST", path, json=dict(body), headers=caller.headers(background=background)
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.ConnectError as error:
            raise EngineUnavailableError(
                "the gateway cannot be reached; try again shortly", retry_after=5
            ) from error
        except httpx.HTTPError as error:
            raise _lost(error) from error
        try:
            if response.status_code >= 400:
                raise await _rejection(response)
            yield response
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in response.aiter_raw():
            yield piece
    except httpx.HTTPError as error:
        raise _lost(error) from error


def _lost(error: httpx.HTTPError) -> RequestError:
    return EngineFailedError(f"the gateway closed the connection early ({type(error).__name__}); its log has more")


async def _rejection(response: httpx.Response) -> RequestError:
    """Return the error that the gateway reported: its status, message, type, code, field and pause."""
    try:
        found = json.loads(await response.aread())["error"]
        message, param = str(found["message"]), found.get("param")
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return EngineFailedError(f"the gateway responded with status {response.status_code} and no reason")
    error = EngineReportedError(message, status=response.status_code, param=param)
    error.kind = str(found.get("type") or error.kind)
    error.code = str(found.get("code") or error.code)
    pause = response.headers.get("retry-after", "")
    error.retry_after = float(pause) if pause.isdigit() else None
    return error
