"""The fetcher's HTTP interface: ``POST /fetch`` with a URL, and ``GET /health``."""

from __future__ import annotations

import hmac
import json
import logging
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance import __version__
from appliance.errors import AuthenticationError, BodyTooLargeError, InvalidRequestError, RequestError, openai_body
from appliance.search.page_reader import PageReader

LOG = logging.getLogger(__name__)

MAX_BODY = 64 * 1024
MAX_CHARACTERS = 400_000

Domain = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*$")]


class FetchOrder(BaseModel):
    """The body of ``POST /fetch``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str = Field(description="URL of a public page.")
    characters: int = Field(default=100_000, ge=1, le=MAX_CHARACTERS, description="Most characters of the text.")
    seconds: float | None = Field(default=None, gt=0, le=600, description="Time for the page.")
    domains: list[Domain] = Field(default=[], max_length=100, description="Domains of the page and its redirects.")


def make_app(reader: PageReader, key: str | None = None) -> FastAPI:
    """Return the application; with a ``key``, requests for pages need it as a bearer token."""
    app = FastAPI(title="Page fetcher", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RequestError)
    async def refused(_request: Request, error: Exception) -> Response:
        rejection = error if isinstance(error, RequestError) else RequestError(str(error))
        return Response(openai_body(rejection), rejection.status, media_type="application/json")

    @app.get("/health")
    def health() -> dict[str, str]:
        """Return 200 while the fetcher runs."""
        return {"status": "ok"}

    @app.post("/fetch")
    async def fetch(request: Request) -> Response:
        _check_key(request, key)
        order = _order(await _body(request))
        page = await reader.read(
            order.url, characters=order.characters, seconds=order.seconds, domains=order.domains
        )
        return Response(json.dumps(asdict(page), ensure_ascii=False), media_type="application/json")

    return app


def _check_key(request: Request, key: str | None) -> None:
    sent = request.headers.get("authorization", "")
    if key is not None and not hmac.compare_digest(sent.encode(), f"Bearer {key}".encode()):
        raise AuthenticationError("the key of the fetcher is missing or not valid; check search.key_file")


async def _body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise BodyTooLargeError(f"the body has more than {MAX_BODY} bytes")
    return body


def _order(body: bytes) -> FetchOrder:
    try:
        found: Any = json.loads(body)
        return FetchOrder.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidRequestError(f"{place}: {first['msg']}", param=place) from None
    except ValueError:
        raise InvalidRequestError("the body is not JSON", param="body") from None
