"""The fields of keys in the admin API."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path as PathParameter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from appliance.contract.model import USER_PATTERN
from appliance.store.keys import LEAST_WEIGHT, MOST_WEIGHT


def _whole(value: object) -> object:
    """Return a float without a fraction as an integer: JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


UserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
AnyUser = Annotated[str, Field(pattern=USER_PATTERN)]
KeyId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{12}$")]
Amount = Annotated[int, Field(gt=0, le=2**31 - 1), BeforeValidator(_whole)]
Moment = Annotated[float, Field(ge=0, le=253_402_300_799)]
"""Seconds since the epoch, up to the year 9999."""


class KeyLimits(BaseModel):
    """Limits of a key; an absent one leaves the user's limit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(default="", max_length=100, description="A label.")
    models: list[str] | None = Field(
        default=None, max_length=1000, description="Models and roles that it may use; all if absent."
    )
    requests_per_minute: Amount | None = Field(default=None, description="Requests per minute.")
    tokens_per_minute: Amount | None = Field(default=None, description="Prompt plus completion tokens per minute.")
    requests_in_flight: Amount | None = Field(default=None, description="Requests that run or wait at once.")
    weight: float | None = Field(
        default=None,
        ge=LEAST_WEIGHT,
        le=MOST_WEIGHT,
        description="Priority weight in the queue; the user's if absent.",
    )
    expires_at: Moment | None = Field(default=None, description="Time of expiry, in seconds since the epoch.")
    end_users: bool = Field(
        default=False,
        description="Count each end user that a request names as a user of its own, `user/end-user`.",
    )


class NewKey(KeyLimits):
    """A key to create."""

    user: UserName = Field(description="User of the key.")


class KeyOut(KeyLimits):
    """A key without its secret."""

    id: str = Field(description="The twelve digits after `sk-`.")
    user: str = Field(description="User of the key.")
    state: Literal["active", "expired", "revoked"] = Field(description="State at the time of the response.")
    created_at: float = Field(description="Seconds since the epoch.")
    revoked_at: float | None = Field(description="Seconds since the epoch; null if it is not revoked.")


class MadeKey(KeyOut):
    """A new key with its secret, which no other response contains."""

    key: str = Field(description="The key itself, `sk-<id>-<secret>`.")
