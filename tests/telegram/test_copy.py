"""The copy of the bot's database for backups: whole while the bot runs, and usable by a bot after a restore."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.telegram.store.copy import COPY, write_bot_copy
from appliance.telegram.store.database import FILE, BotDatabase
from appliance.telegram.store.links import LinkStore
from tests.telegram.conftest import PERSON, BotUnderTest


async def test_a_copy_of_a_running_bot_restores_its_links(bot: BotUnderTest, tmp_path: Path) -> None:
    folder = bot.settings.data_path(bot.base)
    assert write_bot_copy(folder) == 1
    await bot.link(person=PERSON + 1)
    assert write_bot_copy(folder) == 2
    assert [one.name for one in (folder / COPY).iterdir()] == [FILE]
    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(folder / COPY / FILE, restored / FILE)
    database = BotDatabase(restored)
    try:
        assert [one.person for one in LinkStore(database).all()] == [PERSON, PERSON + 1]
    finally:
        database.close()


def test_before_the_first_start_there_is_nothing_to_copy(tmp_path: Path) -> None:
    assert write_bot_copy(tmp_path) is None
    assert [*(tmp_path / COPY).iterdir()] == [], "the backup saves the folder all the same"


def test_a_damaged_database_keeps_the_earlier_copy(tmp_path: Path) -> None:
    BotDatabase(tmp_path).close()
    assert write_bot_copy(tmp_path) == 0
    before = (tmp_path / COPY / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot be copied"):
        write_bot_copy(tmp_path)
    assert (tmp_path / COPY / FILE).read_bytes() == before
