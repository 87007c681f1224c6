"""Groups: the bot responds to a mention or a reply only, and edits one message."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.fakes.telegram_api import BOT_NAME
from tests.telegram.conftest import PERSON, BotUnderTest

GROUP = -100
SHORT = "fake: tokens=3"
EXPECTED = "the quick brown"


async def test_only_a_mention_or_a_reply_is_for_the_bot(bot: BotUnderTest) -> None:
    assert await bot.ask(SHORT, chat=GROUP) == []
    assert await bot.ask(f"@{BOT_NAME} {SHORT}", chat=GROUP) == [EXPECTED]
    assert await bot.ask(SHORT, chat=GROUP, reply_to_bot=True) == [EXPECTED]
    users = [text for role, text in bot.backend.conversation(bot.key) if role == "user"]
    assert users == [SHORT, SHORT], "the mention is not part of the request"


async def test_a_person_without_a_link_is_ignored_in_a_group(bot: BotUnderTest) -> None:
    assert await bot.ask(f"@{BOT_NAME} {SHORT}", chat=GROUP, person=PERSON + 1) == []


async def test_each_person_has_a_conversation_of_its_own(bot: BotUnderTest) -> None:
    await bot.link(person=6, key=bot.backend.service.key, user="ada")
    await bot.ask(f"Mine. @{BOT_NAME} {SHORT}", chat=GROUP)
    await bot.ask(f"Other. @{BOT_NAME} {SHORT}", chat=GROUP, person=6)
    assert [text[:5] for role, text in bot.backend.conversation(bot.key) if role == "user"] == ["Mine."]


async def test_one_message_is_edited_at_a_slow_pace_and_no_draft_is_sent(bot: BotUnderTest) -> None:
    asked = await bot.api.say(f"@{BOT_NAME} fake: tokens=6 hold=3", chat=GROUP)
    await bot.api.until(lambda: bot.api.shown(GROUP) == [EXPECTED], "the first words")
    (message,) = bot.api.messages.values()
    assert ([*message.buttons], message.reply_to) == (["Stop"], asked)
    bot.backend.assistant.release()
    await bot.settled()
    assert bot.api.shown(GROUP) == ["the quick brown fox jumps over"]
    assert not message.buttons
    assert not any(name == "sendMessageDraft" for name, _, _ in bot.api.calls)
    edits = [at for name, _, at in bot.api.calls if name in ("editMessageText", "sendMessage")]
    assert all(later - earlier >= 1 for earlier, later in pairwise(edits))


async def test_the_button_stops_the_turn_of_its_person_only(bot: BotUnderTest) -> None:
    await bot.link(person=6, key=bot.backend.service.key, user="ada")
    await bot.api.say(f"@{BOT_NAME} fake: tokens=3000 itl_ms=10", chat=GROUP)
    await bot.api.until(lambda: any(one.edits for one in bot.api.messages.values()), "an edit")
    (message,) = bot.api.messages.values()
    await bot.api.press(message, "Stop", person=6)
    await bot.api.until(lambda: len(bot.api.acknowledged) == 1, "the press of another person")
    assert message.buttons
    await bot.api.press(message, "Stop")
    await bot.settled()
    assert bot.api.shown(GROUP)[0].endswith("(stopped)")


@pytest.mark.parametrize("failure", ["drop", "502", "429:70"])
async def test_the_last_edit_is_repeated_until_it_is_confirmed(bot: BotUnderTest, failure: str) -> None:
    await bot.api.say(f"@{BOT_NAME} fake: tokens=6 hold=3", chat=GROUP)
    await bot.api.until(lambda: bot.api.shown(GROUP) == [EXPECTED], "the first words")
    bot.api.failures["editMessageText"] += [failure, failure]
    bot.backend.assistant.release()
    await bot.settled()
    assert bot.api.shown(GROUP) == ["the quick brown fox jumps over"]


async def test_a_deleted_placeholder_is_replaced_by_a_message(bot: BotUnderTest) -> None:
    await bot.api.say(f"@{BOT_NAME} fake: tokens=6 hold=3", chat=GROUP)
    await bot.api.until(lambda: bot.api.shown(GROUP) == [EXPECTED], "the first words")
    bot.api.messages.clear()
    bot.backend.assistant.release()
    await bot.settled()
    assert bot.api.shown(GROUP) == ["the quick brown fox jumps over"]
