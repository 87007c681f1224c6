"""The routes of the admin API for users, invites and bills."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from appliance.contract.model import Site
from appliance.errors import ConflictError, NotFoundError, UsageError
from appliance.store.bills import BillLine, BillReader, bill_csv
from appliance.store.calendar import DAY_S, Month, day_of, month_named, month_of
from appliance.store.models import Account
from appliance.store.plans import account_plan
from appliance.store.usage import UsageReader
from appliance.store.users import LATEST, MAX_NOTE, MOST_DAYS, UserStore

MADE_BY = "admin API"

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
MONTH_PATTERN = r"^(19[7-9][0-9]|[2-8][0-9]{3})-(0[1-9]|1[0-2])$"
"""Months from 1970 to 8999."""
PathName = Annotated[str, PathParameter(pattern=NAME_PATTERN)]
BodyName = Annotated[str, Field(pattern=NAME_PATTERN)]


def _whole_days(value: object) -> object:
    """Return a float without a fraction as an integer: JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class UserFields(BaseModel):
    """The values of a user that an operator sets."""

    model_config = ConfigDict(extra="forbid", strict=True)

    plan: str | None = Field(default=None, max_length=63, description="A plan of the site; null for the default.")
    plan_until: float | None = Field(
        default=None, ge=0, le=LATEST, description="End of the plan, in seconds since the epoch; null for none."
    )
    note: str = Field(
        default="",
        max_length=MAX_NOTE,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="A note, such as a real name.",
    )
    language: str = Field(
        default="", pattern=r"^([a-z]{2,3}(-[A-Za-z0-9]{2,4})?)?$", description="Language, such as `en`."
    )


class NewUser(UserFields):
    """A user to create."""

    name: BodyName = Field(description="Name of the user.")


class UserChange(UserFields):
    """Values of a user to change; absent ones stay. A new plan without `plan_until` has no end."""

    disabled: bool = Field(default=False, description="Whether none of its keys is valid.")


class UserOut(UserFields):
    """A user with its present plan and its used tokens."""

    name: str = Field(description="Name of the user.")
    created_at: float = Field(description="Seconds since the epoch.")
    disabled_at: float | None = Field(description="Seconds since the epoch; null if it is not disabled.")
    present_plan: str | None = Field(description="Plan at the time of the response, the default plan included.")
    tokens_today: int = Field(description="Prompt plus completion tokens since midnight UTC.")
    tokens_this_month: int = Field(description="The same for the calendar month in UTC.")
    tokens_per_day: int | None = Field(description="Budget of the plan; null for none.")
    tokens_per_month: int | None = Field(description="Budget of the plan; null for none.")


class CreatedUser(UserOut):
    """A new user with its first key, which no other response contains."""

    key: str = Field(description="The key, `sk-<id>-<secret>`.")


class NewInvite(BaseModel):
    """A code to create."""

    model_config = ConfigDict(extra="forbid", strict=True)

    plan: str | None = Field(default=None, max_length=63, description="Plan of the new user; null: the default.")
    days: Annotated[int, Field(gt=0, le=MOST_DAYS), BeforeValidator(_whole_days)] | None = Field(
        default=None, description="Length of the plan from the use of the code; null for a plan without an end."
    )
    valid_days: Annotated[int, Field(gt=0, le=MOST_DAYS), BeforeValidator(_whole_days)] = Field(
        default=30, description="Days for which the code is valid."
    )


class InviteCode(BaseModel):
    """A new code, which no other response contains."""

    code: str = Field(description="The code.")


class InviteUse(BaseModel):
    """The use of a code."""

    model_config = ConfigDict(extra="forbid", strict=True)

    code: str = Field(max_length=200, description="The code.")
    name: BodyName = Field(description="Name of the new user.")


@contextmanager
def _conflicts() -> Iterator[None]:
    """Turn the refusal of valid values that contradict each other, or the database, into a 409."""
    try:
        yield
    except UsageError as error:
        raise ConflictError(str(error)) from None


def users_router(site: Site, users: UserStore, usage: UsageReader) -> APIRouter:
    """Return the routes of users."""
    router = APIRouter(prefix="/admin/users", tags=["users"])

    @router.get("")
    def list_users() -> list[UserOut]:
        """List all users by name, those that only have a key too."""
        return shown_users(site, usage, users.all())

    @router.post("", status_code=201)
    def create_user(new: NewUser) -> CreatedUser:
        """Create a user and its first key."""
        check_plan(site, new.plan)
        check_free(users, new.name)
        with _conflicts():
            key = users.create(new.name, **new.model_dump(exclude={"name"}))
        (out,) = shown_users(site, usage, [users.get(new.name)])
        return CreatedUser(key=key, **out.model_dump())

    @router.get("/{name}")
    def get_user(name: PathName) -> UserOut:
        """Return a user."""
        (out,) = shown_users(site, usage, [_found(users, name)])
        return out

    @router.patch("/{name}")
    def change_user(name: PathName, change: UserChange) -> UserOut:
        """Change the given values of a user. A disabled user's running requests end."""
        _found(users, name)
        check_plan(site, change.plan)
        with _conflicts():
            users.change(name, **change.model_dump(exclude_unset=True, exclude={"disabled"}))
        if "disabled" in change.model_fields_set:
            users.set_disabled(name, disabled=change.disabled)
        (out,) = shown_users(site, usage, [users.get(name)])
        return out

    return router


def invites_router(site: Site, users: UserStore, usage: UsageReader) -> APIRouter:
    """Return the routes of invites."""
    router = APIRouter(prefix="/admin/invites", tags=["users"])

    @router.post("", status_code=201)
    def create_invite(new: NewInvite) -> InviteCode:
        """Create a code that creates one user."""
        check_plan(site, new.plan)
        with _conflicts():
            code = users.invite(MADE_BY, plan=new.plan, days=new.days, expires_in_s=new.valid_days * DAY_S)
        return InviteCode(code=code)

    @router.post("/redeem", status_code=201)
    def redeem_invite(order: InviteUse) -> CreatedUser:
        """Create a user and its first key by a code, which is used up."""
        check_free(users, order.name)
        try:
            redeemed = users.redeem(order.code, order.name)
        except UsageError as error:
            raise NotFoundError(str(error), code="invite_not_found", param="code") from None
        (out,) = shown_users(site, usage, [redeemed.account])
        return CreatedUser(key=redeemed.key, **out.model_dump())

    return router


def bill_router(site: Site, users: UserStore, bills: BillReader) -> APIRouter:
    """Return the route of bills."""
    router = APIRouter(prefix="/admin/bill", tags=["users"])

    @router.get("", response_model=list[BillLine], responses={200: {"content": {"text/csv": {}}}})
    def bill(
        month: Annotated[
            str | None,
            Query(pattern=MONTH_PATTERN, description="`YYYY-MM` in UTC; the present one if absent."),
        ] = None,
        user: Annotated[str | None, Query(pattern=NAME_PATTERN, description="A user; all users if absent.")] = None,
        kind: Annotated[
            Literal["json", "csv"], Query(alias="format", description="Format of the response.")
        ] = "json",
    ) -> Any:
        """Return the usage of a month by user, model and role."""
        now = time.time()
        period = month_of(day_of(now)) if month is None else month_named(month, "month")
        lines = bill_lines(site, users.all(), bills, period, user)
        return Response(bill_csv(lines), media_type="text/csv") if kind == "csv" else lines

    return router


def bill_lines(
    site: Site, accounts: Iterable[Account], bills: BillReader, period: Month, user: str | None
) -> list[BillLine]:
    """Return the lines of the bill of ``period``, with the present plan of each of ``accounts``."""
    by_name, now = {account.name: account for account in accounts}, time.time()

    def plan_of(name: str) -> tuple[str, str]:
        plan_name, plan = account_plan(site, by_name.get(name, Account(name)), now)
        return plan_name or "", plan.price if plan is not None else ""

    return bills.lines(period, plan_of, user)


def check_plan(site: Site, plan: str | None) -> None:
    """Raise :class:`NotFoundError` for a plan that the site lacks."""
    if plan is not None and plan not in site.plans:
        offered = ", ".join(sorted(site.plans)) or "none"
        raise NotFoundError(f"plan {plan!r} does not exist; known: {offered}", code="plan_not_found", param="plan")


def check_free(users: UserStore, name: str) -> None:
    """Raise :class:`ConflictError` for a name that a user has."""
    try:
        users.get(name)
    except UsageError:
        return
    raise ConflictError(f"the name {name} is taken; choose another one", code="name_taken", param="name")


def _found(users: UserStore, name: str) -> Account:
    try:
        return users.get(name)
    except UsageError as error:
        raise NotFoundError(str(error), code="user_not_found") from None


def shown_users(site: Site, usage: UsageReader, accounts: list[Account]) -> list[UserOut]:
    """Return ``accounts`` with their present plans and used tokens."""
    now = time.time()
    day = day_of(now)
    today = usage.tokens(day * DAY_S, now + 60)
    month = usage.tokens(month_of(day).since, now + 60)
    return [_user_out(site, account, now, today=today, month=month) for account in accounts]


def _user_out(site: Site, account: Account, now: float, *, today: dict[str, int], month: dict[str, int]) -> UserOut:
    name, plan = account_plan(site, account, now)
    return UserOut(
        name=account.name,
        plan=account.plan,
        plan_until=account.plan_until,
        note=account.note,
        language=account.language,
        created_at=account.created_at,
        disabled_at=account.disabled_at,
        present_plan=name,
        tokens_today=today.get(account.name, 0),
        tokens_this_month=month.get(account.name, 0),
        tokens_per_day=plan.tokens_per_day if plan is not None else None,
        tokens_per_month=plan.tokens_per_month if plan is not None else None,
    )
