"""A bot that ends in the middle: the person gets the stored response or a note, and nothing twice."""

from __future__ import annotations

from appliance.telegram.store.turns import TurnStore
from appliance.telegram.updates import ChatPlace, IncomingMessage
from tests.telegram.conftest import PERSON, BotUnderTest

SHORT = "fake: tokens=3"
EXPECTED = "the quick brown"


async def crash(bot: BotUnderTest) -> None:
    """End the bot; from now on it stores nothing more, as after SIGKILL."""
    bot.bot.service.turns._database._engine.dispose()  # noqa: SLF001

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a bot that has ended stores nothing")

    turns = bot.bot.service.turns
    for name in ("end_turn", "set_turn", "part_sent", "part_postponed", "part_unconfirmed", "begin_turn", "begin"):
        object.__setattr__(turns, name, refuse)
    await bot.stop()


async def test_a_turn_that_was_cut_is_delivered_with_a_note(bot: BotUnderTest) -> None:
    await bot.api.say("fake: tokens=6 hold=3")
    await bot.api.until(lambda: bot.api.visible_draft() == EXPECTED, "a draft")
    await crash(bot)
    await bot.start()
    await bot.settled()
    (text,) = bot.api.shown()
    assert text.startswith(EXPECTED)
    assert "The bot restarted" in text
    bot.backend.assistant.release()
    assert await bot.ask("/retry") == ["the quick brown fox jumps over"]


async def test_an_update_that_has_not_begun_begins_after_the_restart(bot: BotUnderTest) -> None:
    await bot.api.say("fake: tokens=6 hold=3")
    await bot.api.until(lambda: bot.api.visible_draft() == EXPECTED, "a draft")
    await bot.api.say(f"Second. {SHORT}")
    await bot.api.until(lambda: len(bot.bot.service.turns.waiting_updates()) == 1, "the second update")
    await crash(bot)
    # The history of the second turn has the first message, by which the engine holds again.
    bot.backend.assistant.release()
    await bot.start()
    await bot.settled()
    assert len(bot.api.shown()) == 2
    assert bot.api.shown()[1] == "the quick brown fox jumps over"


async def test_a_stored_response_is_sent_after_the_restart_once(bot: BotUnderTest) -> None:
    bot.api.failures["sendMessage"].append("429:500")
    bot.clock.longest = 50
    await bot.api.say(SHORT)
    await bot.api.until(lambda: any(left > 400 for left in bot.clock.waiting), "the pause")
    await crash(bot)
    assert bot.api.shown() == []
    bot.clock.release()
    await bot.start()
    await bot.settled()
    assert bot.api.shown() == [EXPECTED]
    await bot.stop()
    await bot.start()
    await bot.settled()
    assert bot.api.shown() == [EXPECTED]


async def test_a_message_that_was_being_sent_is_not_repeated(bot: BotUnderTest) -> None:
    bot.api.failures["sendMessage"].append("hold")
    await bot.api.say(SHORT)
    await bot.api.until(lambda: any(name == "sendMessage" for name, _, _ in bot.api.calls), "the call")
    await crash(bot)
    bot.api.go_on()
    await bot.api.until(lambda: bot.api.shown() == [EXPECTED], "the execution")
    await bot.start()
    await bot.settled()
    text, note = bot.api.messages.values()
    assert text.text == EXPECTED
    assert [*note.buttons] == ["Send again"]


async def test_a_turn_without_a_response_gets_a_note(bot: BotUnderTest) -> None:
    await bot.ask(SHORT)
    turns: TurnStore = bot.bot.service.turns
    chat = turns.last_turn(1)
    assert chat is not None
    await bot.stop()
    await bot.start()
    await bot.settled()
    assert bot.api.shown() == [EXPECTED], "a turn that is done is not touched"
    message = IncomingMessage(9_999, ChatPlace(PERSON, 0, private=True), PERSON, "en", 1, "x", addressed=True)
    turns = bot.bot.service.turns
    turns.receive([message], bot.clock.now())
    assert turns.begin_turn(1, 1, {"language": "ru"}, bot.clock.now(), (9_999,)) is not None
    await bot.stop()
    await bot.start()
    await bot.settled()
    assert bot.api.shown()[1].startswith("Бот перезапустился до конца ответа.")
