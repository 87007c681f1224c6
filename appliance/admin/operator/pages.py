"""The routes of the operator's page: HTML for a browser, without scripts. Each action is a form.

A request needs a session cookie (:mod:`.sessions`), and a ``Host`` of loopback or of the admin API's own address. A
form also needs an ``Origin`` of this host. So the page of another site gets nothing, and neither does a name that
an attacker points to 127.0.0.1. A key or a code is shown in the response to its form and nowhere else.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute

from appliance.admin.fields import NewKey
from appliance.admin.operator.alerts import AlertSource
from appliance.admin.operator.forms import ReadForm, validated, whole_number
from appliance.admin.operator.rejections import rejection_in
from appliance.admin.operator.sessions import LONGEST_S, OperatorSessions
from appliance.admin.operator.tables import (
    amount,
    demand_rows,
    engine_rows,
    last_swap,
    moment,
    usage_plots,
    user_bars,
)
from appliance.admin.operator.texts import TEXTS, language_of
from appliance.admin.users import (
    MADE_BY,
    NewInvite,
    NewUser,
    UserChange,
    bill_lines,
    check_free,
    check_plan,
    shown_users,
)
from appliance.contract.model import USER_PATTERN, Site
from appliance.errors import (
    ApplianceError,
    AuthenticationError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    StartError,
    StoreError,
    UsageError,
)
from appliance.gateway import control_client
from appliance.render.html import render_page
from appliance.store.bills import BillReader, bill_csv
from appliance.store.calendar import DAY_S, day_of, month_named, month_of
from appliance.store.keys import KeyStore
from appliance.store.usage import UsageReader
from appliance.store.users import UserStore

TEMPLATES = Path(__file__).parent / "templates"
COOKIE = "appliance_operator"
PERIODS = (7, 30, 90)
"""Days of usage that an operator may choose."""
MONTHS = 12
"""Months of bills that an operator may choose; the API has all."""
FORM_PAGES = frozenset({"users", "keys", "models"})
FILLED_FORMS = {"/users": "users", "/users/change": "users", "/invites": "users", "/keys": "keys"}
"""The page of each form whose fields stay after a refusal. None of them has a secret."""
USER = re.compile(USER_PATTERN)
KEY_ID = re.compile(r"[0-9a-f]{12}")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every response."""


class _LogInError(Exception):
    """The request has no session."""


@dataclass(frozen=True)
class OperatorStores:
    """The stores and the gateway that the page shows and changes."""

    site: Site
    folder: Path
    keys: KeyStore
    users: UserStore
    usage: UsageReader
    bills: BillReader


def operator_router(stores: OperatorStores, token: str) -> APIRouter:
    """Return the routes of the page for the admin ``token``."""
    sessions = OperatorSessions(token, time.monotonic)
    hosts = LOOPBACK | {stores.site.admin.host}
    pages = _Pages(stores, sessions, AlertSource.of_environment())

    class PageRoute(APIRoute):
        """A route whose errors are pages."""

        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def shown(request: Request) -> Response:
                try:
                    _check_host(request, hosts)
                    if request.method == "POST":
                        _check_origin(request)
                    response: Response = await handle(request)
                except _LogInError:
                    response = RedirectResponse("/login", 303)
                except RequestValidationError as error:
                    first = error.errors()[0]
                    text = f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"
                    response = pages.error(request, InvalidRequestError(text))
                except ApplianceError as error:
                    response = pages.error(request, error)
                response.headers.update(SECURITY)
                return response

            return shown

    def open_session(request: Request) -> None:
        if not sessions.valid(request.cookies.get(COOKIE, "")):
            raise _LogInError

    router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=HTMLResponse)
    private = APIRouter(
        route_class=PageRoute,
        include_in_schema=False,
        default_response_class=HTMLResponse,
        dependencies=[Depends(open_session)],
    )

    @router.get("/operator.css")
    def style() -> Response:
        return Response(render_page(TEMPLATES / "operator.css.j2"), media_type="text/css")

    @router.get("/login")
    def log_in_page(request: Request) -> Response:
        return pages.page(request, "login", rejection="")

    @router.post("/login")
    def log_in(request: Request, form: ReadForm) -> Response:
        try:
            secret = sessions.log_in(form.get("token", ""))
        except AuthenticationError as error:
            return pages.rejected_log_in(request, "invalid_token", error)
        except RateLimitError as error:
            return pages.rejected_log_in(request, "too_many", error)
        done = RedirectResponse("/", 303)
        done.set_cookie(COOKIE, secret, max_age=int(LONGEST_S), httponly=True, samesite="strict", path="/")
        return done

    @router.post("/logout")
    def log_out(request: Request) -> Response:
        sessions.log_out(request.cookies.get(COOKIE, ""))
        done = RedirectResponse("/login", 303)
        done.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return done

    for path, page in (
        ("/", pages.overview),
        ("/users", pages.users_page),
        ("/keys", pages.keys_page),
        ("/plans", pages.plans),
        ("/models", pages.models),
    ):
        private.add_api_route(path, page, methods=["GET"])

    @private.get("/usage")
    def usage(request: Request, days: int = 30, user: str = "") -> Response:
        return pages.usage(request, days if days in PERIODS else PERIODS[1], user)

    @private.get("/bill")
    def bill(request: Request) -> Response:
        query = request.query_params
        return pages.bill(query.get("month", ""), query.get("format") != "json")

    for path, action in (
        ("/users", pages.create_user),
        ("/users/change", pages.change_user),
        ("/invites", pages.create_invite),
        ("/keys", pages.create_key),
        ("/keys/revoke", pages.revoke_key),
        ("/models/swap", pages.swap),
        ("/models/drain", pages.drain),
        ("/models/undrain", pages.undrain),
    ):
        private.add_api_route(path, action, methods=["POST"])
    router.include_router(private)
    return router


def _months(now: float) -> list[str]:
    """Return the present month and the ones before it."""
    found = [month_of(day_of(now))]
    while len(found) < MONTHS:
        found.append(month_of(found[-1].first - 1))
    return [month.name for month in found]


def _status_of(error: ApplianceError) -> int:
    if isinstance(error, RequestError):
        return error.status
    return 503 if isinstance(error, (StartError, StoreError)) else 400


def _check_host(request: Request, hosts: frozenset[str]) -> None:
    name = urlsplit(f"//{request.headers.get('host', '')}").hostname
    if name not in hosts:
        raise PermissionDeniedError(f"Open this page as http://127.0.0.1 or http://localhost, not as {name!r}")


def _check_origin(request: Request) -> None:
    """Reject a form of another site: browsers send the origin of a page with every form that it posts."""
    origin = urlsplit(request.headers.get("origin", ""))
    if origin.scheme not in ("http", "https") or origin.netloc != request.headers.get("host"):
        raise PermissionDeniedError("The form is not from this page")


class _Pages:
    """The handlers: each reads its data and renders a template, or acts and leads back."""

    def __init__(self, stores: OperatorStores, sessions: OperatorSessions, alerts: AlertSource) -> None:
        self._stores = stores
        self._sessions = sessions
        self._alerts = alerts

    def page(self, request: Request, template: str, **values: object) -> Response:
        """Return the page of ``template``."""
        language = language_of(request.headers.get("accept-language", ""))
        content = render_page(
            TEMPLATES / f"{template}.html.j2",
            t=TEXTS[language],
            language=language,
            here=template,
            moment=moment,
            amount=amount,
            **({"rejection": "", "kept": {}, "refused": ""} | values),
        )
        return HTMLResponse(content)

    def rejected_log_in(self, request: Request, text: str, error: RequestError) -> Response:
        """Return the log-in with a text that names the reason of ``error``."""
        response = self.page(request, "login", rejection=text)
        response.status_code = error.status
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(math.ceil(error.retry_after))
        return response

    def error(self, request: Request, error: ApplianceError) -> Response:
        """Return the page of the refused form with its fields and the message of ``error``.

        Without a form, or if the page itself fails, it is a page with the message and a link back.
        """
        inside = self._sessions.valid(request.cookies.get(COOKIE, ""))
        path = request.url.path
        form: Mapping[str, str] = getattr(request.state, "form", {}) if path in FILLED_FORMS else {}
        message = rejection_in(language_of(request.headers.get("accept-language", "")), str(error))
        response = self._refused(request, message, form) if inside and form else None
        if response is None:
            page = path.split("/")[1]
            back = f"/{page}" if page in FORM_PAGES else "/"
            response = self.page(request, "error", message=message, inside=inside, back=back)
        response.status_code = _status_of(error)
        return response

    def _refused(self, request: Request, message: str, form: Mapping[str, str]) -> Response | None:
        """Return the page of a refused ``form`` with its fields; None if its data cannot be read."""
        filled = {"rejection": message, "kept": form, "refused": request.url.path}
        try:
            if FILLED_FORMS[request.url.path] == "users":
                return self.users(request, **filled)
            return self.keys(request, **filled)
        except StoreError:
            return None

    # Pages.

    def overview(self, request: Request) -> Response:
        """Return the health of the engines, the alerts and the sums of a day."""
        status, reason = self._status()
        now = time.time()
        lines = self._stores.usage.sums("outcome", now - DAY_S)
        rows = engine_rows(status) if status is not None else []
        return self.page(
            request,
            "overview",
            status=status,
            reason=reason,
            engines=rows,
            up=sum(row.state == "up" for row in rows),
            requests=sum(line.requests for line in lines),
            failed=sum(line.failed for line in lines),
            tokens=sum(line.prompt_tokens + line.completion_tokens for line in lines),
            alerts=self._alerts.read(),
        )

    def users_page(self, request: Request) -> Response:
        """Return the users with empty forms."""
        return self.users(request)

    def keys_page(self, request: Request) -> Response:
        """Return the keys with an empty form."""
        return self.keys(request)

    def users(self, request: Request, **filled: object) -> Response:
        """Return the users with their plans and tokens; ``filled`` is a refused form."""
        stores = self._stores
        shown = shown_users(stores.site, stores.usage, stores.users.all())
        return self.page(request, "users", users=shown, plans=list(stores.site.plans), **filled)

    def keys(self, request: Request, **filled: object) -> Response:
        """Return the keys; ``filled`` is a refused form."""
        stores, now = self._stores, time.time()
        keys = [(key, key.state(now)) for key in stores.keys.all()]
        names = sorted(stores.site.models.keys() | stores.site.roles.keys())
        return self.page(request, "keys", keys=keys, names=names, **filled)

    def plans(self, request: Request) -> Response:
        """Return the plans of the site."""
        site = self._stores.site
        return self.page(request, "plans", plans=site.plans, default=site.default_plan)

    def models(self, request: Request) -> Response:
        """Return the replicas and the models on demand."""
        status, reason = self._status()
        return self.page(
            request,
            "models",
            status=status,
            reason=reason,
            engines=engine_rows(status) if status is not None else [],
            on_demand=demand_rows(status) if status is not None else [],
            last=last_swap(status, time.time()) if status is not None else None,
        )

    def usage(self, request: Request, days: int, user: str) -> Response:
        """Return sums and plots of the usage."""
        if user and not USER.fullmatch(user):
            raise InvalidRequestError(f"user: {user[:40]!r} is not the name of a user")
        stores, now = self._stores, time.time()
        language = language_of(request.headers.get("accept-language", ""))
        since = (now // DAY_S - days) * DAY_S
        by_day = stores.usage.sums("day", since, None, user or None)
        by_user = stores.usage.sums("user", since, None, user or None)
        tokens, requests = usage_plots(by_day, days, datetime.now(UTC).date(), TEXTS[language])
        return self.page(
            request,
            "usage",
            days=days,
            user=user,
            periods=PERIODS,
            names=[account.name for account in stores.users.all()],
            lines=by_user,
            tokens=tokens,
            requests=requests,
            bars=user_bars(by_user, TEXTS[language]),
            months=_months(now),
        )

    def bill(self, month: str, csv: bool) -> Response:
        """Return the bill of ``month`` (``YYYY-MM``; the present one if empty) as a file."""
        site, accounts = self._stores.site, self._stores.users.all()
        period = month_named(month, "month") if month else month_of(day_of(time.time()))
        lines = bill_lines(site, accounts, self._stores.bills, period, None)
        name = f"bill-{period.name}.{'csv' if csv else 'json'}"
        content = bill_csv(lines) if csv else json.dumps([asdict(line) for line in lines], indent=2)
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="text/csv" if csv else "application/json", headers=headers)

    # Actions.

    def create_user(self, request: Request, form: ReadForm) -> Response:
        """Create a user and show its first key."""
        stores = self._stores
        new = validated(
            NewUser, name=form.get("name", ""), plan=form.get("plan") or None, note=form.get("note", "")
        )
        check_plan(stores.site, new.plan)
        check_free(stores.users, new.name)
        key = stores.users.create(new.name, **new.model_dump(exclude={"name"}))
        return self.page(request, "made", secret=key, heading="made_key", owner=new.name, back="/users")

    def change_user(self, form: ReadForm) -> Response:
        """Give a user another plan, or disable or enable it."""
        stores, name, action = self._stores, form.get("name", ""), form.get("do", "")
        try:
            stores.users.get(name)
        except UsageError as error:
            raise NotFoundError(str(error)) from None
        if action in ("disable", "enable"):
            stores.users.set_disabled(name, disabled=action == "disable")
        elif action == "plan":
            days = whole_number(form, "days")
            until = None if days is None else time.time() + days * DAY_S
            change = validated(UserChange, plan=form.get("plan") or None, plan_until=until)
            check_plan(stores.site, change.plan)
            try:
                stores.users.change(name, plan=change.plan, plan_until=change.plan_until)
            except UsageError as error:
                raise ConflictError(str(error)) from None
        else:
            raise InvalidRequestError(f"do: {action[:40]!r} is not an action; use plan, disable or enable")
        return RedirectResponse("/users", 303)

    def create_invite(self, request: Request, form: ReadForm) -> Response:
        """Create a code and show it."""
        stores = self._stores
        valid_days = whole_number(form, "valid_days")
        new = validated(
            NewInvite,
            plan=form.get("plan") or None,
            days=whole_number(form, "days"),
            **({} if valid_days is None else {"valid_days": valid_days}),
        )
        check_plan(stores.site, new.plan)
        try:
            code = stores.users.invite(MADE_BY, plan=new.plan, days=new.days, expires_in_s=new.valid_days * DAY_S)
        except UsageError as error:
            raise ConflictError(str(error)) from None
        return self.page(request, "made", secret=code, heading="made_code", owner="", back="/users")

    def create_key(self, request: Request, form: ReadForm) -> Response:
        """Create a key and show it."""
        stores = self._stores
        models = [name for name in form.get("models", "").split(",") if name]
        days = whole_number(form, "days")
        new = validated(
            NewKey,
            user=form.get("user", ""),
            name=form.get("name", ""),
            models=models or None,
            requests_per_minute=whole_number(form, "requests_per_minute"),
            tokens_per_minute=whole_number(form, "tokens_per_minute"),
            requests_in_flight=whole_number(form, "requests_in_flight"),
            expires_at=None if days is None else time.time() + days * DAY_S,
        )
        known = stores.site.models.keys() | stores.site.roles.keys()
        for name in new.models or ():
            if name not in known:
                raise NotFoundError(f"model or role {name[:80]!r} does not exist")
        key = stores.keys.create(new.user, **new.model_dump(exclude={"user"}))
        return self.page(request, "made", secret=key, heading="made_key", owner=new.user, back="/keys")

    def revoke_key(self, form: ReadForm) -> Response:
        """Revoke a key."""
        key_id = form.get("id", "")
        if not KEY_ID.fullmatch(key_id):
            raise InvalidRequestError("id: write the twelve digits of a key")
        try:
            self._stores.keys.revoke(key_id)
        except UsageError as error:
            raise NotFoundError(str(error)) from None
        return RedirectResponse("/keys", 303)

    def swap(self, form: ReadForm) -> Response:
        """Load a model."""
        control_client.swap(self._stores.folder, form.get("model", ""))
        return RedirectResponse("/models", 303)

    def drain(self, request: Request, form: ReadForm) -> Response:
        """Send no new requests to a replica."""
        language = language_of(request.headers.get("accept-language", ""))
        reason = form.get("reason") or TEXTS[language]["closed"]
        control_client.drain(self._stores.folder, form.get("replica", ""), reason)
        return RedirectResponse("/models", 303)

    def undrain(self, form: ReadForm) -> Response:
        """Send requests to a replica again."""
        control_client.undrain(self._stores.folder, form.get("replica", ""))
        return RedirectResponse("/models", 303)

    # Inside.

    def _status(self) -> tuple[dict[str, Any] | None, str]:
        try:
            return control_client.status(self._stores.folder), ""
        except StartError as error:
            return None, str(error)
