"""Telegram's limits and failures: the final text is delivered once and whole, whatever happens before."""

from __future__ import annotations

from itertools import pairwise

import pytest

from appliance.telegram.formatting import from_markdown
from appliance.telegram.updates import ChatPlace, IncomingMessage
from tests.telegram.conftest import PERSON, BotUnderTest

SHORT = "fake: tokens=3"
EXPECTED = "the quick brown"
HOLDING = "fake: tokens=6 hold=3"
WHOLE = "the quick brown fox jumps over"


def counted(bot: BotUnderTest, kind: str, outcome: str) -> float:
    value = bot.bot.metrics.registry.get_sample_value(
        "appliance_telegram_calls_total", {"kind": kind, "outcome": outcome}
    )
    return value or 0.0


@pytest.mark.parametrize("pause_s", [60, 280])
async def test_a_pause_of_minutes_is_kept_and_the_text_follows_once(bot: BotUnderTest, pause_s: int) -> None:
    bot.api.failures["sendMessage"].append(f"429:{pause_s}")
    assert await bot.ask(SHORT) == [EXPECTED]
    first, second = (at for name, _, at in bot.api.calls if name == "sendMessage")
    assert second - first >= pause_s
    assert counted(bot, "send", "throttled") == 1


async def test_without_a_pause_the_text_follows_at_once(bot: BotUnderTest) -> None:
    assert await bot.ask(SHORT) == [EXPECTED]
    assert bot.clock.now() - bot.clock.begin < 10


async def test_a_pause_in_one_chat_does_not_delay_another(bot: BotUnderTest) -> None:
    await bot.link(person=6)
    bot.api.failures["sendMessage"].append("429:200")
    bot.clock.longest = 50
    await bot.api.say(SHORT)
    await bot.api.until(lambda: any(left > 100 for left in bot.clock.waiting), "the pause")
    await bot.api.say(SHORT, person=6)
    await bot.api.until(lambda: bot.api.shown(6) == [EXPECTED], "the text in the other chat")
    assert bot.api.shown(PERSON) == []
    bot.clock.release()
    await bot.settled()
    assert bot.api.shown(PERSON) == [EXPECTED]


async def test_a_pause_for_drafts_delays_them_and_the_text_is_whole(bot: BotUnderTest) -> None:
    bot.api.failures["sendMessageDraft"].append("429:40")
    await bot.api.say(HOLDING)
    await bot.api.until(lambda: bot.api.visible_draft() == EXPECTED, "a draft after the pause")
    bot.backend.assistant.release()
    await bot.settled()
    assert bot.api.shown() == [WHOLE]
    first, second, *_ = (at for name, _, at in bot.api.calls if name == "sendMessageDraft")
    assert second - first >= 40


@pytest.mark.parametrize("failure", ["400:Bad Request: drafts are off", "502", "drop"])
async def test_a_failed_draft_ends_the_drafts_and_never_becomes_edits(bot: BotUnderTest, failure: str) -> None:
    bot.api.failures["sendMessageDraft"].append(failure)
    await bot.api.say(HOLDING)
    await bot.api.until(lambda: any(name == "sendMessageDraft" for name, _, _ in bot.api.calls), "the draft")
    bot.backend.assistant.release()
    await bot.settled()
    assert bot.api.shown() == [WHOLE]
    assert [name for name, _, _ in bot.api.calls if name != "getMe"] == ["sendMessageDraft", "sendMessage"]


async def test_an_unconfirmed_message_is_repeated_only_on_request(bot: BotUnderTest) -> None:
    bot.api.failures["sendMessage"].append("drop")
    await bot.api.say(SHORT)
    await bot.settled()
    text, note = bot.api.messages.values()
    assert text.text == EXPECTED, "Telegram has accepted it once"
    assert [*note.buttons] == ["Send again"]
    await bot.api.press(note, "Send again", person=PERSON + 1)
    await bot.settled()
    assert len(bot.api.messages) == 2, "another person cannot repeat it"
    await bot.api.press(note, "Send again")
    await bot.settled()
    assert bot.api.shown()[2:] == [EXPECTED]
    await bot.api.press(note, "Send again")
    await bot.settled()
    assert len(bot.api.messages) == 3, "a second press has no effect"


async def test_a_lost_message_arrives_by_the_button(bot: BotUnderTest) -> None:
    bot.api.failures["sendMessage"].append("lose")
    await bot.api.say(SHORT)
    await bot.settled()
    (note,) = bot.api.messages.values()
    await bot.api.press(note, "Send again")
    await bot.settled()
    assert bot.api.shown()[1:] == [EXPECTED]


@pytest.mark.parametrize("failure", ["500", "429:3"])
async def test_a_certain_failure_is_repeated_by_itself(bot: BotUnderTest, failure: str) -> None:
    bot.api.failures["sendMessage"] += [failure] * 3
    assert await bot.ask(SHORT) == [EXPECTED]


async def test_refused_entities_become_plain_text(bot: BotUnderTest) -> None:
    bot.api.failures["sendMessage"].append("400:Bad Request: can't parse entities")
    assert await bot.ask("/help") == [], "a note without entities is refused for ever"
    turns = bot.bot.service.turns
    place = ChatPlace(PERSON, 0, private=True)
    chat = turns.chat(place, PERSON)
    turns.receive([_message(9_999)], bot.clock.now())
    turn = turns.begin_turn(chat.id, 1, {}, bot.clock.now(), (9_999,))
    assert turn is not None
    turns.end_turn(turn.id, [from_markdown("a **bold** word")], 0)
    bot.api.failures["sendMessage"].append("400:Bad Request: can't parse entities")
    await bot.bot.service.delivery.deliver(turn.id, place, "en")
    last = [*bot.api.messages.values()][-1]
    assert (last.text, last.entities) == ("a bold word", [])


def _message(number: int) -> IncomingMessage:
    return IncomingMessage(number, ChatPlace(PERSON, 0, private=True), PERSON, "en", 1, "x", addressed=True)


async def test_4097_characters_of_a_person_are_one_request(bot: BotUnderTest) -> None:
    text = "x" * 4096 + "!"
    bot.clock.hold()
    await bot.api.say(text[:4096])
    await bot.api.until(lambda: bot.clock.waiting == [1.5], "the wait for the second part")
    await bot.api.say(text[4096:])
    bot.clock.release()
    await bot.settled()
    users = [found for role, found in bot.backend.conversation(bot.key) if role == "user"]
    assert users == [text]
    assert len(bot.api.shown()) == 1


async def test_4096_characters_of_a_person_wait_once_and_then_count_as_whole(bot: BotUnderTest) -> None:
    await bot.ask("y" * 4096)
    await bot.ask("z")
    users = [found for role, found in bot.backend.conversation(bot.key) if role == "user"]
    assert users == ["y" * 4096, "z"]


async def test_a_response_above_4096_characters_is_several_messages(bot: BotUnderTest) -> None:
    texts = await bot.ask("fake: tokens=2000 itl_ms=0")
    assert len(texts) == 3
    assert " ".join(texts) == " ".join(text for role, text in bot.backend.conversation(bot.key) if role != "user")
    sent = [at for name, _, at in bot.api.calls if name == "sendMessage"]
    assert all(later - earlier >= 1 for earlier, later in pairwise(sent))


async def test_a_response_of_32769_characters_is_a_file(bot: BotUnderTest) -> None:
    assert await bot.ask("fake: tokens=8000 itl_ms=0") == ["The response is long; it is in this file."]
    (message,) = bot.api.messages.values()
    assert message.file is not None
    text = message.file.decode()
    assert len(text) > 32_769
    assert text == bot.backend.conversation(bot.key)[1][1]


async def test_the_same_update_twice_has_one_effect(bot: BotUnderTest) -> None:
    await bot.ask(SHORT)
    await bot.api.repeat()
    await bot.api.until(lambda: bot.repeated() == 1, "the repeated update")
    await bot.settled()
    assert bot.api.shown() == [EXPECTED]
    assert await bot.ask(SHORT) == [EXPECTED], "a new update with the same text is a new message"
