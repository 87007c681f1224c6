"""The caller that the gateway names in its headers."""

from __future__ import annotations

import pytest

from appliance.assistant.caller import read_caller
from appliance.errors import InternalError

NAMED = {"x-appliance-user": "ada/bob@example.org", "x-appliance-key": "0123456789ab", "x-request-id": "r1"}


def test_a_caller_travels_back_to_the_gateway() -> None:
    caller = read_caller(NAMED)
    assert caller.headers() == NAMED
    assert caller.headers(background=True) == {**NAMED, "x-appliance-background": "1"}


@pytest.mark.parametrize(
    "change",
    [
        {"x-appliance-user": ""},
        {"x-appliance-user": "a b"},
        {"x-appliance-key": "x"},
        {"x-appliance-user": "ada\n"},
    ],
)
def test_a_request_that_did_not_pass_the_gateway_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(InternalError):
        read_caller({**NAMED, **change})
