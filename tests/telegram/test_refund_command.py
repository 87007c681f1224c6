"""``appliance telegram refund`` and ``payments``, while the bot runs, against the Bot API's server of the tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import pytest

from appliance.cli import main
from tests.fakes.telegram_api import CHAT_TOKEN
from tests.telegram.conftest import BotUnderTest
from tests.telegram.test_plans import days_left, invoice, pay


@dataclass(frozen=True)
class CommandOutput:
    """The end of one command."""

    code: int
    shown: str
    errors: str


RefundCommand: TypeAlias = Callable[..., Awaitable[CommandOutput]]


@pytest.fixture
def command(bot: BotUnderTest, capsys: pytest.CaptureFixture[str]) -> RefundCommand:
    """Return a function that runs ``appliance telegram`` with the site of the bot."""
    site = json.loads(bot.backend.service.config.read_text())
    site["telegram"] |= bot.settings.model_dump(mode="json", exclude_unset=True)
    for name in ("data_dir", "token_file", "acting_socket"):
        site["telegram"][name] = str(bot.base / site["telegram"][name])
    config = bot.base / "site.json"
    config.write_text(json.dumps(site))

    async def run(*arguments: str) -> CommandOutput:
        capsys.readouterr()
        code = await asyncio.to_thread(main, ["telegram", *arguments, "--config", str(config)])
        return CommandOutput(code, *capsys.readouterr())

    return run


async def test_a_refund_is_done_once_also_if_it_is_repeated(bot: BotUnderTest, command: RefundCommand) -> None:
    kept = await pay(bot, await invoice(bot))
    charge = await pay(bot, await invoice(bot))
    await bot.settled()
    assert days_left(bot) == 60
    for _ in range(2):
        done = await command("refund", charge)
        assert (done.code, done.shown) == (0, f"500 Stars of {bot.user} are returned\n")
        assert days_left(bot) == 30
    assert (bot.api.charges[charge].refunded, bot.api.charges[kept].refunded) == (True, False)
    listed = json.loads((await command("payments", "--json")).shown)
    assert {one["charge"]: one["state"] for one in listed}[charge] == "refunded"


async def test_an_unknown_charge_is_refused_without_a_call(bot: BotUnderTest, command: RefundCommand) -> None:
    done = await command("refund", "no-such-charge")
    assert (done.code, done.shown) == (2, "")
    assert done.errors.startswith("error: payment 'no-such-charge' does not exist")
    assert not any(name == "refundStarPayment" for name, _, _ in bot.api.calls)


async def test_a_refusal_of_telegram_keeps_the_days_and_names_no_token(
    bot: BotUnderTest, command: RefundCommand
) -> None:
    charge = await pay(bot, await invoice(bot))
    await bot.settled()
    del bot.api.charges[charge]
    done = await command("refund", charge)
    assert (done.code, "CHARGE_NOT_FOUND" in done.errors) == (2, True)
    assert days_left(bot) == 30
    assert CHAT_TOKEN not in done.errors
