"""The admin API's routes. Everything but ``/health`` wants the admin token."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException

from appliance import __version__
from appliance.admin import control_client
from appliance.contract.model import USER_PATTERN, Site
from appliance.errors import (
    ApplianceError,
    AuthenticationError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
    StartError,
    UsageError,
    openai_body,
)
from appliance.store.keys import LEAST_WEIGHT, MOST_WEIGHT, KeyStore
from appliance.store.models import Key
from appliance.store.usage import UsageLine, UsageReader, as_csv

BEARER = HTTPBearer(auto_error=False, description="The admin token.")


def _whole(value: object) -> object:
    """JSON knows one kind of number: 1.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
AnyUser = Annotated[str, Field(pattern=USER_PATTERN)]
KeyId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{12}$")]
Amount = Annotated[int, Field(gt=0, le=2**31 - 1), BeforeValidator(_whole)]
Moment = Annotated[float, Field(ge=0, le=253_402_300_799)]
"""Seconds since the epoch, up to the year 9999."""


class KeyLimits(BaseModel):
    """What a key may; absent means no limit of its own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(default="", max_length=100, description="A label.")
    models: list[str] | None = Field(
        default=None, max_length=1000, description="Models and roles; all when absent."
    )
    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    requests_in_flight: Amount | None = None
    weight: float | None = Field(
        default=None, ge=LEAST_WEIGHT, le=MOST_WEIGHT, description="Priority weight in the queue."
    )
    expires_at: Moment | None = Field(default=None, description="Seconds since the epoch.")
    end_users: bool = Field(
        default=False,
        description="Each end user that a request names counts as a user of its own, `user/end-user`.",
    )


class NewKey(KeyLimits):
    """A key to make."""

    user: UserName


class KeyOut(KeyLimits):
    """A key as it is; never its secret."""

    id: str
    user: str
    state: Literal["active", "expired", "revoked"]
    created_at: float
    revoked_at: float | None


class MadeKey(KeyOut):
    """A new key, with its secret: shown here and never again."""

    key: str


class SwapOrder(BaseModel):
    """Which model to load."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=200)


class Problem(BaseModel):
    """An error in OpenAI's shape."""

    error: dict[str, Any]


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in (
        (400, "Not understood"),
        (401, "No or a wrong token"),
        (404, "Not there"),
        (409, "Not so"),
        (503, "No gateway"),
    )
}


def make_app(site: Site, folder: Path, token: str) -> FastAPI:
    """The application; opens the stores when it starts and closes them when it stops."""
    url = site.gateway.database_url
    keys, usage = KeyStore(folder, url), UsageReader(folder, url)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> Any:
        yield
        keys.close()
        usage.close()

    def admin(bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        sent = b"" if bearer is None else bearer.credentials.encode()
        if not secrets.compare_digest(sent, token.encode()):
            raise AuthenticationError("The admin token is missing or wrong; it is in the admin's credentials")

    app = FastAPI(title="Appliance admin API", version=__version__, lifespan=lifespan)
    app.include_router(_keys(site, keys), dependencies=[Depends(admin)], responses=PROBLEMS)
    app.include_router(_usage(usage), dependencies=[Depends(admin)], responses=PROBLEMS)
    app.include_router(_models(folder), dependencies=[Depends(admin)], responses=PROBLEMS)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(ApplianceError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    return app


def _keys(site: Site, keys: KeyStore) -> APIRouter:
    router = APIRouter(prefix="/admin/keys", tags=["keys"])
    known = site.models.keys() | site.roles.keys()

    def checked(models: list[str] | None) -> list[str] | None:
        for name in models or ():
            if name not in known:
                offered = ", ".join(sorted(known))
                message = f"there is no model or role {name[:80]!r}; known: {offered}"
                raise NotFoundError(message, code="model_not_found", param="models")
        return models

    def found(key_id: str) -> Key:
        try:
            return keys.get(key_id)
        except UsageError as error:
            raise NotFoundError(str(error)) from None

    @router.get("")
    def list_keys() -> list[KeyOut]:
        return [_out(key) for key in keys.all()]

    @router.post("", status_code=201)
    def create_key(new: NewKey) -> MadeKey:
        checked(new.models)
        secret = keys.create(new.user, **new.model_dump(exclude={"user"}))
        return MadeKey(key=secret, **_out(keys.get(secret)).model_dump())

    @router.get("/{key_id}")
    def get_key(key_id: KeyId) -> KeyOut:
        return _out(found(key_id))

    @router.patch("/{key_id}")
    def change_key(key_id: KeyId, change: KeyLimits) -> KeyOut:
        found(key_id)
        checked(change.models)
        return _out(keys.change(key_id, **change.model_dump(exclude_unset=True)))

    @router.delete("/{key_id}")
    def revoke_key(key_id: KeyId) -> KeyOut:
        found(key_id)
        return _out(keys.revoke(key_id))

    return router


def _usage(usage: UsageReader) -> APIRouter:
    router = APIRouter(prefix="/admin/usage", tags=["usage"])

    @router.get("", response_model=list[UsageLine], responses={200: {"content": {"text/csv": {}}}})
    def sums(
        by: Literal["user", "key", "model", "role", "engine", "outcome", "day"] = "user",
        since: Annotated[
            Moment | None, Query(description="Seconds since the epoch; a day ago when absent.")
        ] = None,
        until: Annotated[Moment | None, Query(description="Seconds since the epoch; now when absent.")] = None,
        user: Annotated[
            AnyUser | None,
            Query(description="A user with its end users, or one `user/end-user`; everyone when absent."),
        ] = None,
        kind: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
    ) -> Any:
        lines = usage.sums(by, time.time() - 86400 if since is None else since, until, user)
        if kind == "csv":
            return Response(as_csv(lines), media_type="text/csv")
        return lines

    return router


def _models(folder: Path) -> APIRouter:
    router = APIRouter(prefix="/admin/models", tags=["models"])

    @router.get("")
    def status() -> dict[str, Any]:
        return control_client.status(folder)

    @router.post("/swap", status_code=202)
    def swap(order: SwapOrder) -> dict[str, Any]:
        return control_client.swap(folder, order.model)

    return router


def _out(key: Key) -> KeyOut:
    return KeyOut(
        id=key.id,
        user=key.user,
        name=key.name,
        state=key.state(time.time()),
        models=None if key.models is None else sorted(key.models),
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        requests_in_flight=key.requests_in_flight,
        weight=key.weight,
        created_at=key.created_at,
        expires_at=key.expires_at,
        end_users=key.end_users,
        revoked_at=key.revoked_at,
    )


async def _refuse(request: Request, error: Exception) -> Response:
    """Every refusal in OpenAI's shape."""
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(error, RequestError):
        refusal = error
    elif isinstance(error, RequestValidationError):
        first = next(_faults(error), ("body", "not understood"))
        refusal = InvalidRequestError(f"{first[0]}: {first[1]}", param=first[0])
    elif isinstance(error, StartError):
        refusal = RequestError(str(error), code="gateway_unavailable")
        refusal.status = 503
    elif isinstance(error, HTTPException):
        refusal = InvalidRequestError(str(error.detail), code="not_found" if error.status_code == 404 else None)
        refusal.status = error.status_code
    else:
        refusal = InvalidRequestError(str(error))
    if refusal.status == 405:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(openai_body(refusal), refusal.status, headers, media_type="application/json")


def _methods(request: Request) -> set[str]:
    """What a path takes over all its routes; the router names those of the first one only."""
    openapi: dict[str, dict[str, object]] = request.app.openapi()["paths"]
    path = request.url.path
    for known, methods in openapi.items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known), path):
            return {method.upper() for method in methods}
    return set()


def _faults(error: RequestValidationError) -> Iterator[tuple[str, str]]:
    for fault in error.errors():
        yield ".".join(str(part) for part in fault["loc"][1:]) or "body", fault["msg"]
