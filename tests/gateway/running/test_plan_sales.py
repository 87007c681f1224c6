"""The paths for plans on the bot's socket: offers for a key, payments once, and neither on any other socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.gateway.plan_sales import PAYMENTS, PLANS, REFUNDS
from appliance.store.users import UserStore
from tests.conftest import Response, RunningService, http, serving
from tests.gateway.running.conftest import create_key
from tests.gateway.running.stand_in import unix_request

SOLD = {"basic": {"stars": 500, "price": "500 Stars"}, "free": {}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("sales")
    sections = {"socket": "assistant.sock", "acting_socket": "acting.sock", "data_dir": "assistant"}
    telegram = {"acting_socket": str(folder / "bot.sock"), "pay_support": "@operator"}
    assistant = {name: str(folder / value) for name, value in sections.items()}
    with serving(folder, assistant=assistant, telegram=telegram, plans=SOLD) as running:
        yield running


def at_socket(
    service: RunningService, path: str, body: object = None, key: str = "", name: str = "bot"
) -> Response:
    headers = {"x-appliance-key": key.split("-")[1]} if key else {}
    socket: Path = service.config.parent / f"{name}.sock"
    return unix_request(socket, path, body, headers, "GET" if body is None else "POST")


def paid(**more: Any) -> dict[str, Any]:
    return {"id": "stars:1", "user": "ada", "plan": "basic", "days": 30, "amount": 500} | more


def test_a_payment_counts_once_and_ends_the_offer_of_a_plan_without_an_end(service: RunningService) -> None:
    offered = at_socket(service, PLANS, key=service.key).json
    assert (offered["plan"], offered["plan_until"]) == (None, None)
    assert offered["offers"] == [{"plan": "basic", "stars": 500, "days": 30, "price": "500 Stars"}]
    first, again = at_socket(service, PAYMENTS, paid()).json, at_socket(service, PAYMENTS, paid()).json
    assert (first["counted"], again["counted"]) == (True, False)
    assert (
        first["plan_until"] == again["plan_until"] == at_socket(service, PLANS, key=service.key).json["plan_until"]
    )
    refunded = at_socket(service, REFUNDS, {"id": "stars:1"}).json
    assert refunded["counted"]
    assert refunded["plan_until"] < first["plan_until"]
    users = UserStore(service.data)
    users.change("ada", plan="free")
    users.close()
    assert at_socket(service, PLANS, key=service.key).json["offers"] == [], "its plan has no end to extend"


def test_an_end_user_cannot_buy_the_plan_of_its_account(service: RunningService) -> None:
    key = create_key(service, "team", end_users=True)
    headers = {"x-appliance-key": key.split("-")[1], "x-appliance-user": "team/eve"}
    found = unix_request(service.config.parent / "bot.sock", PLANS, None, headers, "GET")
    assert found.json["offers"] == []
    assert at_socket(service, PLANS, key=key).json["offers"] != []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (PLANS, None, 401),
        (PLANS, {}, 405),
        (PAYMENTS, None, 405),
        (PAYMENTS, paid(user="joe"), 400),
        (PAYMENTS, paid(user="joe", id="stars:2"), 400),
        (PAYMENTS, paid(plan="gone"), 404),
        (PAYMENTS, paid(days=0), 400),
        (PAYMENTS, paid(id=""), 400),
        (PAYMENTS, paid(amount="500"), 400),
        (PAYMENTS, paid(extra=1), 400),
        (PAYMENTS, [], 400),
        (REFUNDS, {"id": "stars:unknown"}, 404),
    ],
)
def test_a_request_that_is_not_valid_is_rejected(
    service: RunningService, path: str, body: Any, status: int
) -> None:
    found = at_socket(service, path, body)
    assert found.status == status
    assert found.json["error"]["message"]


def test_no_other_socket_and_no_port_has_these_paths(service: RunningService) -> None:
    for path in (PAYMENTS, REFUNDS):
        assert http(service.url + path, body=paid(), key=service.key).status == 404
        assert at_socket(service, path, paid(), service.key, "acting").status == 404
    assert http(service.url + PLANS, key=service.key).status == 404
