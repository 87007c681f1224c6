"""The start of the bot, its database, and what its log has."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sqlalchemy import inspect

from appliance.cli import main
from appliance.errors import ConfigError, StartError
from appliance.telegram.store.database import BotDatabase
from appliance.telegram.store.schema import METADATA
from tests.telegram.conftest import BotUnderTest


def test_the_migrations_make_the_tables_of_the_schema(tmp_path: Path) -> None:
    database = BotDatabase(tmp_path)
    try:
        with database.reading() as connection:
            found = inspect(connection)
            for table in METADATA.sorted_tables:
                columns = {
                    one["name"]: (str(one["type"]), one["nullable"]) for one in found.get_columns(table.name)
                }
                assert columns == {
                    one.name: (str(one.type.compile(connection.dialect)), one.nullable) for one in table.columns
                }, table.name
    finally:
        database.close()


async def test_a_text_that_is_not_a_token_is_a_configuration_error_without_it(bot: BotUnderTest) -> None:
    from appliance.telegram.main import TelegramBotProcess

    await bot.stop()
    for content in ("secret", "12:ab cd"):
        (bot.base / "token").write_text(content)
        with pytest.raises(ConfigError, match="does not hold the token of a bot") as caught:
            TelegramBotProcess(bot.settings, bot.base, clock=bot.clock)
        assert content not in str(caught.value)
    (bot.base / "token").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        TelegramBotProcess(bot.settings, bot.base, clock=bot.clock)


async def test_a_token_that_telegram_rejects_ends_the_start(bot: BotUnderTest) -> None:
    await bot.stop()
    (bot.base / "token").write_text("1:rejected-token")
    with pytest.raises(StartError, match="does not accept the token"):
        await bot.start()


async def test_the_log_has_no_text_of_a_person_and_no_token(
    bot: BotUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "appliance")
    bot.api.failures["sendMessage"] += ["429:9", "500", "400:Bad Request", "400:Bad Request"]
    await bot.ask("My secret. fake: tokens=3 fault=error:2")
    await bot.ask("/start guess-secret")
    assert "a turn failed" in caplog.text
    for secret in ("secret", "fake-token", bot.key, "the quick"):
        assert secret not in caplog.text


def test_a_site_without_a_bot_is_a_configuration_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["telegram", "list", "--config", "examples/one-card.toml"]) == 2
    assert "add a section [telegram]" in capsys.readouterr().err
