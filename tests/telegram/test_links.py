"""Links: one-time codes, unknown persons, the commands of the operator."""

from __future__ import annotations

import asyncio
import json

import pytest

from appliance.cli import main
from appliance.telegram.store.links import CODE_LIFE_S, STRANGERS_PER_HOUR
from tests.assistant.running import key_id
from tests.telegram.conftest import PERSON, BotMaker, BotUnderTest

SHORT = "fake: tokens=3"
NOT_VALID = "This code is not valid. The operator of the service makes a new one."
STRANGER = "This bot serves linked users only. The operator of the service makes a link."


def code_of(bot: BotUnderTest) -> str:
    return bot.bot.service.links.make_code(bot.user, key_id(bot.key), bot.clock.now())


async def test_a_code_links_one_person_once(make_bot: BotMaker) -> None:
    async with make_bot(linked=False) as bot:
        code = code_of(bot)
        (text,) = await bot.ask(f"/start {code}")
        assert text.startswith(f"Linked to {bot.user}.")
        assert await bot.ask(SHORT) == ["the quick brown"]
        assert await bot.ask(f"/start {code}", person=6) == [NOT_VALID]
        assert await bot.ask(SHORT, person=6) == [], "one reply at most"
        assert bot.bot.service.links.of(6) is None


async def test_an_expired_code_and_a_guess_link_nothing(make_bot: BotMaker) -> None:
    async with make_bot(linked=False) as bot:
        code = code_of(bot)
        await bot.clock.sleep(CODE_LIFE_S)
        assert await bot.ask(f"/start {code}") == [NOT_VALID]
        assert await bot.ask("/start guess") == []
        assert bot.bot.service.links.all() == []


async def test_an_unknown_person_gets_one_reply_and_all_together_a_few(make_bot: BotMaker) -> None:
    async with make_bot(linked=False) as bot:
        assert await bot.ask("hi") == [STRANGER]
        assert await bot.ask("hi again") == []
        for person in range(100, 100 + STRANGERS_PER_HOUR):
            await bot.api.say("hi", person=person)
        await bot.settled()
        assert len(bot.api.messages) == STRANGERS_PER_HOUR
        assert bot.backend.service.get("/v1/conversations", bot.key).json["data"] == []


async def test_a_code_in_a_group_links_nothing(make_bot: BotMaker) -> None:
    async with make_bot(linked=False) as bot:
        assert await bot.ask(f"/start@appliance_test_bot {code_of(bot)}", chat=-7) == []
        assert bot.bot.service.links.all() == []


async def test_unlink_ends_the_access(bot: BotUnderTest) -> None:
    (text,) = await bot.ask("/unlink")
    assert text.startswith("The link is removed.")
    assert await bot.ask(SHORT) == [STRANGER]
    assert bot.bot.service.links.of(PERSON) is None


async def test_another_user_of_the_same_person_gets_no_old_conversation(bot: BotUnderTest) -> None:
    await bot.ask(f"Secret. {SHORT}")
    other = key_id(bot.backend.service.key)
    code = bot.bot.service.links.make_code("ada", other, bot.clock.now())
    await bot.ask(f"/start {code}")
    assert await bot.ask(f"Hello. {SHORT}") == ["the quick brown"]
    assert all("Secret" not in text for _, text in bot.backend.conversation(bot.backend.service.key))


async def test_the_operator_links_lists_and_unlinks(
    bot: BotUnderTest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = json.loads(bot.backend.service.config.read_text())
    site["telegram"]["data_dir"] = str(bot.base / "data")
    config = bot.base / "site.json"
    config.write_text(json.dumps(site))
    monkeypatch.chdir(bot.base)

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["telegram", *arguments, "--config", str(config)])
        return code, capsys.readouterr().out

    def linked() -> str:
        found = run("link", bot.user)
        assert found[0] == 0
        return found[1]

    out = await asyncio.to_thread(linked)
    assert "https://t.me/appliance_test_bot?start=" in out
    code = out.split("?start=")[1].split()[0]
    (text,) = await bot.ask(f"/start {code}", person=8)
    assert text.startswith("Linked")
    _, listed = await asyncio.to_thread(run, "list", "--json")
    assert [(one["person"], one["user"]) for one in json.loads(listed)] == [(PERSON, bot.user), (8, bot.user)]
    assert code not in (bot.base / "data/telegram.sqlite").read_bytes().decode("latin1"), (
        "only its digest is stored"
    )
    _, out = await asyncio.to_thread(run, "unlink", bot.user)
    assert out == f"2 links of {bot.user} are removed\n"
    for arguments, reason in (
        (("link", "nobody-here"), "has no valid key"),
        (("link", "bob", "--key", key_id(bot.key)), "does not belong to the user"),
        (("link", bot.user, "--key", "000000000000"), "is not valid"),
    ):
        assert await asyncio.to_thread(main, ["telegram", *arguments, "--config", str(config)]) == 2
        assert reason in capsys.readouterr().err
