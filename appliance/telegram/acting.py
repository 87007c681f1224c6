"""Requests to the gateway in the name of a linked user, over its socket for the bot.

The gateway identifies this process by the owner of its connection, so the bot holds no key of a client. Limits,
queue, usage and revocation apply as for the user's own requests.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from appliance.errors import EngineFailedError, EngineReportedError, EngineUnavailableError, RequestError
from appliance.system.unix_socket import without_authorities
from appliance.telegram.store.links import PersonLink
from appliance.telegram.store.payments import PlanOffer, StarPayment

CONNECT_S = 5.0
READ_S = 900.0
"""Longest silence in seconds; the gateway enforces its own timeouts, and streams have comments."""
MAX_CONNECTIONS = 200
TRANSCRIBE = "transcribe"
"""The task of models that turn speech into text."""


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A model or role that a user may use; ``images`` is ``None`` if the gateway does not report it."""

    name: str
    task: str
    role: bool
    images: bool | None


@dataclass(frozen=True, slots=True)
class PlanMenu:
    """The present plan of a user, its end in seconds since the epoch, and the plans for sale."""

    plan: str | None
    until: float | None
    price: str
    offers: tuple[PlanOffer, ...]


class ActingGateway:
    """A pooled client of the gateway's socket at ``socket``. Each method raises :class:`RequestError`."""

    def __init__(self, socket: Path) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(socket),
                verify=without_authorities(),
                limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            ),
            base_url="http://gateway",
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S, pool=None),
            trust_env=False,
        )

    async def models(self, link: PersonLink) -> list[OfferedModel]:
        """Return the models and roles that the user of ``link`` may use."""
        found = await self._request(link, "GET", "/v1/models")
        return [
            OfferedModel(
                name=str(card["id"]),
                task=str(card.get("task", "generate")),
                role="root" in card,
                images=_accepts_images(card),
            )
            for card in found.get("data", [])
        ]

    async def create_conversation(self, link: PersonLink, metadata: Mapping[str, str]) -> str:
        """Create a conversation and return its id."""
        created = await self._request(link, "POST", "/v1/conversations", {"metadata": dict(metadata)})
        return str(created["id"])

    async def conversation_metadata(self, link: PersonLink, conversation: str) -> dict[str, str]:
        """Return the metadata of a conversation, its title among them."""
        return dict((await self._request(link, "GET", f"/v1/conversations/{conversation}")).get("metadata") or {})

    @asynccontextmanager
    async def turn(self, link: PersonLink, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Yield the events of a streamed response. The end of the block disconnects, so that the engine stops."""
        request = self._client.build_request(
            "POST", "/v1/responses", json={**body, "stream": True}, headers=_headers(link)
        )
        response = await self._send(request, stream=True)
        try:
            if response.status_code >= 400:
                raise _rejection(response, await _content(response))
            async with aclosing(_events(response)) as events:
                yield events
        finally:
            await response.aclose()

    async def response(self, link: PersonLink, response_id: str) -> dict[str, Any]:
        """Return a stored response."""
        return await self._request(link, "GET", f"/v1/responses/{response_id}")

    async def input_items(self, link: PersonLink, response_id: str) -> list[dict[str, Any]]:
        """Return the input of a stored response."""
        found = await self._request(link, "GET", f"/v1/responses/{response_id}/input_items?limit=100&order=asc")
        return list(found.get("data", []))

    async def delete_item(self, link: PersonLink, conversation: str, item: str) -> None:
        """Delete an item of a conversation; an item that does not exist is skipped."""
        try:
            await self._request(link, "DELETE", f"/v1/conversations/{conversation}/items/{item}")
        except RequestError as error:
            if error.status != 404:
                raise

    async def add_items(
        self, link: PersonLink, conversation: str, items: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Add at most 20 items to a conversation and return them with their ids."""
        path = f"/v1/conversations/{conversation}/items"
        return list((await self._request(link, "POST", path, {"items": items})).get("data", []))

    async def upload(self, link: PersonLink, name: str, content: bytes) -> str:
        """Store a file and return its id."""
        files = {"file": (name, content, "application/octet-stream")}
        stored = await self._request(link, "POST", "/v1/files", files=files, data={"purpose": "user_data"})
        return str(stored["id"])

    async def create_store(self, link: PersonLink, name: str) -> str:
        """Create a vector store and return its id."""
        return str((await self._request(link, "POST", "/v1/vector_stores", {"name": name}))["id"])

    async def attach(self, link: PersonLink, store: str, file: str) -> None:
        """Add a stored file to a vector store."""
        await self._request(link, "POST", f"/v1/vector_stores/{store}/files", {"file_id": file})

    async def transcribe(self, link: PersonLink, model: str, name: str, content: bytes) -> str:
        """Return the text of a voice message."""
        files = {"file": (name, content, "audio/ogg")}
        found = await self._request(
            link, "POST", "/v1/audio/transcriptions", files=files, data={"model": model, "response_format": "json"}
        )
        return str(found.get("text", ""))

    async def plans(self, link: PersonLink) -> PlanMenu:
        """Return the present plan of the user of ``link``, and the plans that it may buy."""
        found = await self._request(link, "GET", "/telegram/plans")
        return PlanMenu(
            plan=found.get("plan"),
            until=found.get("plan_until"),
            price=str(found.get("price") or ""),
            offers=tuple(PlanOffer(**one) for one in found.get("offers", [])),
        )

    async def record_payment(self, payment: StarPayment) -> float | None:
        """Extend the plan of the user that paid, once; return the end of the plan, ``None`` for none."""
        body = {
            "id": payment.id,
            "user": payment.user,
            "plan": payment.plan,
            "days": payment.days,
            "amount": payment.stars,
        }
        return _end(await self._request(None, "POST", "/telegram/payments", body))

    async def record_refund(self, payment: StarPayment) -> float | None:
        """Take the days of a payment that was returned, once; return the end of the plan."""
        return _end(await self._request(None, "POST", "/telegram/refunds", {"id": payment.id}))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _request(
        self,
        link: PersonLink | None,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        data: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        request = self._client.build_request(
            method,
            path,
            json=body,
            files=files,
            data=dict(data) if data else None,
            headers=_headers(link),
        )
        response = await self._send(request)
        if response.status_code >= 400:
            raise _rejection(response, response.content)
        try:
            found: dict[str, Any] = json.loads(response.content)
        except ValueError as error:
            raise EngineFailedError("the gateway's response is not JSON") from error
        return found

    async def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            return await self._client.send(request, stream=stream)
        except httpx.ConnectError as error:
            raise EngineUnavailableError("the gateway cannot be reached", retry_after=5) from error
        except httpx.HTTPError as error:
            raise _lost(error) from error


def _accepts_images(card: Mapping[str, Any]) -> bool | None:
    """Return whether a model accepts images, as its card reports it; ``None`` if it does not."""
    modalities = card.get("input_modalities")
    return "image" in modalities if isinstance(modalities, list) else None


def _end(body: Mapping[str, Any]) -> float | None:
    until = body.get("plan_until")
    return None if until is None else float(until)


def _headers(link: PersonLink | None) -> dict[str, str]:
    return {} if link is None else {"x-appliance-key": link.key_id, "x-appliance-user": link.user}


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the JSON of each event of a stream; comments are skipped."""
    try:
        async for line in _lines(response):
            if line.startswith(b"data:") and (payload := line[5:].strip()) != b"[DONE]":
                event = json.loads(payload)
                if isinstance(event, dict):
                    yield event
    except httpx.HTTPError as error:
        raise _lost(error) from error
    except ValueError as error:
        raise EngineFailedError("an event of the gateway is not JSON") from error


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the lines of a stream. Only LF ends one: a JSON string may contain other line separators."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line


async def _content(response: httpx.Response) -> bytes:
    try:
        return await response.aread()
    except httpx.HTTPError as error:
        raise _lost(error) from error


def _lost(error: httpx.HTTPError) -> RequestError:
    return EngineFailedError(f"the gateway closed the connection early ({type(error).__name__})")


def _rejection(response: httpx.Response, content: bytes) -> RequestError:
    """Return the error that the gateway reported: its status, message, code and pause."""
    try:
        found = json.loads(content)["error"]
        message = str(found["message"])
    except (ValueError, KeyError, TypeError):
        return EngineFailedError(f"the gateway responded with status {response.status_code} and no reason")
    error = EngineReportedError(message, status=response.status_code, param=found.get("param"))
    error.code = str(found.get("code") or error.code)
    pause = response.headers.get("retry-after", "")
    error.retry_after = float(pause) if pause.isdigit() else None
    return error
