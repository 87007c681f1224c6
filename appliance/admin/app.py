"""The routes of the admin API. All of them except ``/health`` need the admin token."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from appliance import __version__
from appliance.admin.fields import AnyUser, KeyId, KeyLimits, KeyOut, MadeKey, Moment, NewKey
from appliance.admin.operator.pages import OperatorStores, operator_router
from appliance.admin.users import bill_router, invites_router, users_router
from appliance.contract.model import Site
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
from appliance.gateway import control_client
from appliance.store.bills import BillReader
from appliance.store.keys import KeyStore
from appliance.store.models import Key
from appliance.store.usage import UsageLine, UsageReader, as_csv
from appliance.store.users import UserStore

BEARER = HTTPBearer(auto_error=False, description="The admin token.")


class SwapOrder(BaseModel):
    """A model to load."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=200, description="A model, or a role of it.")


class ReplicaName(BaseModel):
    """A replica."""

    model_config = ConfigDict(extra="forbid")

    replica: str = Field(min_length=1, max_length=200, description="A replica as `GET /admin/models` names it.")


class DrainOrder(ReplicaName):
    """A replica to close."""

    reason: str = Field(
        default="closed by an operator",
        min_length=1,
        max_length=300,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="Clients see it if no other replica serves the model.",
    )


class Problem(BaseModel):
    """An error in OpenAI's JSON."""

    error: dict[str, Any] = Field(description="`message`, `type`, `param` and `code` of the error.")


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in (
        (400, "Invalid request"),
        (401, "Admin token missing or invalid"),
        (404, "Key, user, plan, model, role or path not found"),
        (409, "Conflict with the state of the gateway"),
        (503, "Gateway not reachable"),
    )
}


def make_app(site: Site, folder: Path, token: str) -> FastAPI:
    """Return the application for ``site``, whose database is in ``folder`` unless the site names another.

    ``token`` is the admin token. The database closes when the application stops.
    """
    url = site.gateway.database_url
    keys, usage = KeyStore(folder, url), UsageReader(folder, url)
    users, bills = UserStore(folder, url), BillReader(folder, url)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> Any:
        yield
        for store in (keys, usage, users, bills):
            store.close()

    def admin(bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        sent = b"" if bearer is None else bearer.credentials.encode()
        if not secrets.compare_digest(sent, token.encode()):
            raise AuthenticationError("The admin token is missing or invalid; the admin's credentials hold it")

    app = FastAPI(title="Appliance admin API", version=__version__, lifespan=lifespan)
    app.include_router(_keys(site, keys), dependencies=[Depends(admin)], responses=PROBLEMS)
    app.include_router(_usage(usage), dependencies=[Depends(admin)], responses=PROBLEMS)
    of_users = (
        users_router(site, users, usage),
        invites_router(site, users, usage),
        bill_router(site, users, bills),
    )
    for router in of_users:
        app.include_router(router, dependencies=[Depends(admin)], responses=PROBLEMS)
    app.include_router(_models(folder), dependencies=[Depends(admin)], responses=PROBLEMS)

    app.include_router(operator_router(OperatorStores(site, folder, keys, users, usage, bills), token))

    @app.get("/health")
    def health() -> dict[str, str]:
        """Return 200 while the admin API runs."""
        return {"status": "ok"}

    app.add_exception_handler(RequestError, _as_response)
    app.add_exception_handler(ApplianceError, _as_response)
    app.add_exception_handler(RequestValidationError, _as_response)
    app.add_exception_handler(HTTPException, _as_response)
    return app


def _keys(site: Site, keys: KeyStore) -> APIRouter:
    router = APIRouter(prefix="/admin/keys", tags=["keys"])
    known = site.models.keys() | site.roles.keys()

    def checked(models: list[str] | None) -> list[str] | None:
        for name in models or ():
            if name not in known:
                offered = ", ".join(sorted(known))
                message = f"model or role {name[:80]!r} does not exist; known: {offered}"
                raise NotFoundError(message, code="model_not_found", param="models")
        return models

    def found(key_id: str) -> Key:
        try:
            return keys.get(key_id)
        except UsageError as error:
            raise NotFoundError(str(error)) from None

    @router.get("")
    def list_keys() -> list[KeyOut]:
        """List all keys, oldest first."""
        return [_out(key) for key in keys.all()]

    @router.post("", status_code=201)
    def create_key(new: NewKey) -> MadeKey:
        """Create a key."""
        checked(new.models)
        secret = keys.create(new.user, **new.model_dump(exclude={"user"}))
        return MadeKey(key=secret, **_out(keys.get(secret)).model_dump())

    @router.get("/{key_id}")
    def get_key(key_id: KeyId) -> KeyOut:
        """Return a key."""
        return _out(found(key_id))

    @router.patch("/{key_id}")
    def change_key(key_id: KeyId, change: KeyLimits) -> KeyOut:
        """Change the given fields of a key; null removes a limit."""
        found(key_id)
        checked(change.models)
        return _out(keys.change(key_id, **change.model_dump(exclude_unset=True)))

    @router.delete("/{key_id}")
    def revoke_key(key_id: KeyId) -> KeyOut:
        """Revoke a key. It stays in the list, because usage records name it."""
        found(key_id)
        return _out(keys.revoke(key_id))

    return router


def _usage(usage: UsageReader) -> APIRouter:
    router = APIRouter(prefix="/admin/usage", tags=["usage"])

    @router.get("", response_model=list[UsageLine], responses={200: {"content": {"text/csv": {}}}})
    def sums(
        by: Annotated[
            Literal["user", "key", "model", "role", "engine", "outcome", "day"],
            Query(description="Property that the requests of one sum share."),
        ] = "user",
        since: Annotated[
            Moment | None, Query(description="Start, in seconds since the epoch; a day ago if absent.")
        ] = None,
        until: Annotated[
            Moment | None, Query(description="End, in seconds since the epoch; now if absent.")
        ] = None,
        user: Annotated[
            AnyUser | None,
            Query(description="A user with its end users, or one `user/end-user`; all users if absent."),
        ] = None,
        kind: Annotated[
            Literal["json", "csv"], Query(alias="format", description="Format of the response.")
        ] = "json",
    ) -> Any:
        """Return sums of usage records."""
        lines = usage.sums(by, time.time() - 86400 if since is None else since, until, user)
        if kind == "csv":
            return Response(as_csv(lines), media_type="text/csv")
        return lines

    return router


def _models(folder: Path) -> APIRouter:
    router = APIRouter(prefix="/admin/models", tags=["models"])

    @router.get("")
    def status() -> dict[str, Any]:
        """Return the engines, models and on-demand engines of the running gateway."""
        return control_client.status(folder)

    @router.post("/swap", status_code=202)
    def swap(order: SwapOrder) -> dict[str, Any]:
        """Load a model now; running requests finish first."""
        return control_client.swap(folder, order.model)

    @router.post("/drain")
    def drain(order: DrainOrder) -> dict[str, Any]:
        """Send no new requests to a replica; running ones finish."""
        return control_client.drain(folder, order.replica, order.reason)

    @router.post("/undrain")
    def undrain(order: ReplicaName) -> dict[str, Any]:
        """Send requests to a drained replica again."""
        return control_client.undrain(folder, order.replica)

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


async def _as_response(request: Request, error: Exception) -> Response:
    """Return ``error`` in OpenAI's JSON."""
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(error, RequestError):
        rejection = error
    elif isinstance(error, RequestValidationError):
        param, message = next(_invalid_fields(error), ("body", "is not valid"))
        rejection = InvalidRequestError(f"{param}: {message}", param=param)
    elif isinstance(error, StartError):
        rejection = RequestError(str(error), code="gateway_unavailable")
        rejection.status = 503
    elif isinstance(error, HTTPException):
        rejection = InvalidRequestError(str(error.detail), code="not_found" if error.status_code == 404 else None)
        rejection.status = error.status_code
    else:
        rejection = InvalidRequestError(str(error))
    if rejection.status == 405:
        # The router names the methods of the first route of a path only; pages are not in the schema.
        headers["Allow"] = ", ".join(sorted(_methods(request))) or headers.get("allow", "GET")
    if rejection.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(openai_body(rejection), rejection.status, headers, media_type="application/json")


def _methods(request: Request) -> set[str]:
    """Return the methods of a path over all its routes; the router names those of the first route only."""
    openapi: dict[str, dict[str, object]] = request.app.openapi()["paths"]
    path = request.url.path
    for known, methods in openapi.items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known), path):
            return {method.upper() for method in methods}
    return set()


def _invalid_fields(error: RequestValidationError) -> Iterator[tuple[str, str]]:
    for one in error.errors():
        yield ".".join(str(part) for part in one["loc"][1:]) or "body", one["msg"]
