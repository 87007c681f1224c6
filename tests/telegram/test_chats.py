"""Chats: a turn with its draft, conversations, commands, stop, retry, edits."""

from __future__ import annotations

from itertools import pairwise

from appliance.store.keys import KeyStore
from tests.assistant.running import key_id
from tests.conftest import chat, http
from tests.telegram.conftest import PERSON, BotMaker, BotUnderTest

SHORT = "fake: tokens=3"
EXPECTED = "the quick brown"


async def test_a_message_gets_its_response_in_one_conversation(bot: BotUnderTest) -> None:
    assert await bot.ask(f"Hello. {SHORT}") == [EXPECTED]
    assert await bot.ask(f"And more. {SHORT}") == [EXPECTED]
    roles = [role for role, _ in bot.backend.conversation(bot.key)]
    assert roles == ["user", "assistant", "user", "assistant"]


async def test_drafts_show_the_text_and_the_message_ends_them(bot: BotUnderTest) -> None:
    await bot.api.say("fake: tokens=6 hold=3")
    await bot.api.until(lambda: bot.api.visible_draft() == EXPECTED, "a draft with the first words")
    assert bot.api.drafts[-1].can_stop
    bot.backend.assistant.release()
    await bot.settled()
    assert bot.api.shown() == ["the quick brown fox jumps over"]
    assert bot.api.visible_draft() is None
    drafts = [at for name, _, at in bot.api.calls if name == "sendMessageDraft"]
    assert all(later - earlier >= 1.5 for earlier, later in pairwise(drafts))
    texts = [fields["text"] for name, fields, _ in bot.api.calls if name == "sendMessageDraft"]
    assert all(before != after for before, after in pairwise(texts)), "unchanged text is skipped"


async def test_new_begins_a_conversation_without_the_old_one(bot: BotUnderTest) -> None:
    await bot.ask(f"Remember 7. {SHORT}")
    assert await bot.ask("/new") == ["A new conversation begins."]
    await bot.ask(f"Which number? {SHORT}")
    assert len(bot.backend.conversation(bot.key)) == 2


async def test_stop_ends_the_engine_and_keeps_the_text(bot: BotUnderTest) -> None:
    await bot.api.say("fake: tokens=3000 itl_ms=10")
    await bot.api.until(lambda: bot.api.visible_draft() is not None, "a draft")
    await bot.api.put(
        {
            "stopped_message_generation": {
                "chat": {"id": PERSON, "type": "private"},
                "draft_id": bot.api.drafts[-1].id,
            }
        }
    )
    await bot.settled()
    (text,) = bot.api.shown()
    assert text.startswith("the quick")
    assert text.endswith("(stopped)")
    await bot.api.until(lambda: bot.backend.assistant.stats()["active"] == 0, "the end of the engine's work")


async def test_stop_of_another_draft_changes_nothing(bot: BotUnderTest) -> None:
    await bot.api.say("fake: tokens=6 hold=3")
    await bot.api.until(lambda: bot.api.visible_draft() is not None, "a draft")
    stopped = {"chat": {"id": PERSON, "type": "private"}, "draft_id": bot.api.drafts[-1].id + 1}
    number = await bot.api.put({"stopped_message_generation": stopped})
    await bot.api.until(lambda: bot.bot.service.turns.next_update(bot.clock.now()) == number + 1, "the update")
    bot.backend.assistant.release()
    await bot.settled()
    assert bot.api.shown() == ["the quick brown fox jumps over"]


async def test_the_command_stop_works_and_reports_if_nothing_runs(bot: BotUnderTest) -> None:
    assert await bot.ask("/stop") == ["No response is being generated."]
    await bot.api.say("fake: tokens=3000 itl_ms=10")
    await bot.api.until(lambda: bot.api.visible_draft() is not None, "a draft")
    await bot.api.say("/stop")
    await bot.settled()
    assert bot.api.shown()[-1].endswith("(stopped)")


async def test_a_button_stops_if_drafts_have_none(make_bot: BotMaker) -> None:
    async with make_bot(drafts_stop=False) as bot:
        await bot.api.say("fake: tokens=3000 itl_ms=10")
        await bot.api.until(lambda: any(one.buttons for one in bot.api.messages.values()), "the button")
        (control,) = bot.api.messages.values()
        await bot.api.until(lambda: bot.api.visible_draft() is not None, "a draft")
        assert not bot.api.drafts[-1].can_stop
        await bot.api.press(control, "Stop", person=PERSON + 1)
        await bot.api.until(lambda: len(bot.api.acknowledged) == 1, "the press of another person")
        await bot.api.press(control, "Stop")
        await bot.settled()
        (text,) = bot.api.shown()
        assert text.endswith("(stopped)"), "the message with the button is deleted"


async def test_retry_replaces_the_last_turn(bot: BotUnderTest) -> None:
    assert await bot.ask("/retry") == ["No turn can be repeated."]
    await bot.ask(f"One. {SHORT}")
    await bot.ask(f"Two. {SHORT}")
    assert await bot.ask("/retry") == [EXPECTED]
    found = bot.backend.conversation(bot.key)
    assert [text[:4] for role, text in found if role == "user"] == ["One.", "Two."]
    assert len(found) == 4


async def test_retry_keeps_the_last_turn_if_the_new_one_is_refused(make_bot: BotMaker) -> None:
    async with make_bot(requests_per_minute=2) as bot:
        await bot.ask(f"One. {SHORT}")
        await bot.ask(f"Two. {SHORT}")
        before = bot.backend.conversation(bot.key)
        (text,) = await bot.ask("/retry")
        assert text.startswith("Your limit is reached.")
        assert bot.backend.conversation(bot.key) == before
        last = bot.bot.service.turns.last_turn(1)
        assert last is not None
        assert not last.request["earlier"]["removed"]
        keys = KeyStore(bot.backend.service.data)
        keys.change(key_id(bot.key), requests_per_minute=1000)
        keys.close()
        url = f"{bot.backend.service.url}/v1/chat/completions"
        await bot.api.until(lambda: http(url, body=chat(SHORT), key=bot.key).status == 200, "the new limit")
        assert await bot.ask("/retry") == [EXPECTED]
        assert bot.backend.conversation(bot.key) == before, "the restored turn is replaced, not added to"


async def test_an_edit_keeps_the_last_turn_if_the_engine_fails(bot: BotUnderTest) -> None:
    number = await bot.api.say(f"One. {SHORT}")
    await bot.settled()
    before = bot.backend.conversation(bot.key)
    (text,) = await bot.ask("One! fake: tokens=6 fault=error:2", edit=number)
    assert text.endswith("The model cannot respond now. Try /retry in a moment.")
    assert bot.backend.conversation(bot.key) == before
    assert await bot.ask(f"Two. {SHORT}") == [EXPECTED]
    assert bot.backend.conversation(bot.key)[:2] == before


async def test_an_edit_repeats_the_turn_with_the_new_text(bot: BotUnderTest) -> None:
    first = await bot.api.say(f"One. {SHORT}")
    await bot.settled()
    last = await bot.api.say(f"Two. {SHORT}")
    await bot.settled()
    assert await bot.ask(f"Zwei. {SHORT}", edit=last) == [EXPECTED]
    users = [text[:4] for role, text in bot.backend.conversation(bot.key) if role == "user"]
    assert users == ["One.", "Zwei"]
    assert await bot.ask("Eins.", edit=first) == ["Only the last message can be changed."]
    assert await bot.ask(f"Zwei. {SHORT}", edit=last) == [], "the same text is not repeated"


async def test_an_edit_ends_the_running_turn(bot: BotUnderTest) -> None:
    number = await bot.api.say("Old. fake: tokens=3000 itl_ms=10")
    await bot.api.until(lambda: bot.api.visible_draft() is not None, "a draft")
    await bot.api.say(f"New. {SHORT}", edit=number)
    await bot.settled()
    assert bot.api.shown() == [EXPECTED]
    assert [text[:4] for role, text in bot.backend.conversation(bot.key) if role == "user"] == ["New."]


async def test_model_and_role_are_chosen_by_buttons(bot: BotUnderTest) -> None:
    await bot.ask("/role")
    (offer,) = bot.api.messages.values()
    assert (offer.text, [*offer.buttons]) == ("Role of this chat: fake", ["poet"])
    await bot.api.press(offer, "poet")
    await bot.settled()
    assert bot.api.shown()[-1] == "From now on: poet"
    await bot.ask(SHORT)
    assert bot.backend.assistant.last_body()["messages"][0]["content"] == "Rhyme."
    await bot.ask("/model")
    assert [*[*bot.api.messages.values()][-1].buttons] == ["fake"]


async def test_help_usage_and_an_unknown_command(bot: BotUnderTest) -> None:
    await bot.ask(SHORT)
    (usage,) = await bot.ask("/usage")
    assert "24 hours: 1 turns" in usage
    assert "0 tokens" not in usage
    (text,) = await bot.ask("/nonsense")
    assert text.startswith("Write a message")


async def test_the_language_of_the_person_decides(bot: BotUnderTest) -> None:
    assert await bot.ask("/new", language="ru") == ["Начат новый разговор."]
    assert await bot.ask("/new", language="de") == ["A new conversation begins."]


async def test_a_response_that_fails_has_a_reason_and_can_be_repeated(bot: BotUnderTest) -> None:
    (text,) = await bot.ask("fake: tokens=6 fault=error:2")
    assert text.endswith("The model cannot respond now. Try /retry in a moment.")
    (again,) = await bot.ask("/retry")
    assert again.endswith("The model cannot respond now. Try /retry in a moment.")


async def test_limits_and_a_revoked_key_are_reported(make_bot: BotMaker) -> None:
    async with make_bot(requests_per_minute=1) as bot:
        assert await bot.ask(SHORT) == [EXPECTED]
        (text,) = await bot.ask(SHORT)
        assert text.startswith("Your limit is reached.")
        keys = KeyStore(bot.backend.service.data)
        keys.revoke(bot.key)
        keys.close()
        await bot.api.until(
            lambda: http(f"{bot.backend.service.url}/v1/models", key=bot.key).status == 401, "the revocation"
        )
        (text,) = await bot.ask(SHORT)
        assert text.startswith("Your key is not valid any more.")
