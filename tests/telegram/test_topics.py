"""Topics of private chats: one conversation each, with its title; deleted and refused topics."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import http
from tests.telegram.conftest import PERSON, BotMaker, BotUnderTest
from tests.telegram.test_chats import EXPECTED, SHORT


@pytest.fixture
async def forum(make_bot: BotMaker) -> AsyncIterator[BotUnderTest]:
    """A bot with topics in private chats."""
    async with make_bot(topics=True) as made:
        yield made


def threads(bot: BotUnderTest) -> list[int]:
    """Return the topics of the bot's messages, 0 for the chat itself."""
    return [one.thread for one in bot.api.messages.values()]


def calls(bot: BotUnderTest, method: str) -> int:
    return sum(name == method for name, _, _ in bot.api.calls)


async def new_topic(bot: BotUnderTest) -> int:
    """Begin a conversation by /new and return its topic."""
    assert await bot.ask("/new") == ["A new conversation begins."]
    return threads(bot)[-1]


async def test_each_topic_is_a_conversation_and_gets_its_title(forum: BotUnderTest) -> None:
    for thread in (11, 12, 11):
        await forum.ask(f"In topic {thread}. {SHORT}", thread=thread)
    listed = forum.backend.service.get("/v1/conversations", forum.key).json["data"]
    assert sorted(one["metadata"]["title"][:11] for one in listed) == ["In topic 11", "In topic 12"]
    assert threads(forum) == [11, 12, 11]
    assert [name[:11] for _, name in sorted(forum.api.threads.items())] == ["In topic 11", "In topic 12"]
    assert calls(forum, "editForumTopic") == 2, "an unchanged title is skipped"


async def test_new_makes_a_topic_and_the_old_conversation_stays(forum: BotUnderTest) -> None:
    await forum.ask(f"First. {SHORT}")
    thread = await new_topic(forum)
    assert forum.api.threads[PERSON, thread] == "New chat"
    assert await forum.ask(f"Second. {SHORT}", thread=thread) == [EXPECTED]
    assert forum.api.threads[PERSON, thread] == f"Second. {SHORT}"
    await forum.ask(f"Third. {SHORT}")
    assert threads(forum) == [0, thread, thread, 0]
    users = [text[:6] for role, text in forum.backend.conversation(forum.key) if role == "user"]
    assert users in (["First.", "Third."], ["Second"])
    listed = forum.backend.service.get("/v1/conversations", forum.key).json["data"]
    assert len(listed) == 2


async def test_new_keeps_the_chosen_model(forum: BotUnderTest) -> None:
    await forum.ask("/role")
    await forum.api.press([*forum.api.messages.values()][-1], "poet")
    await forum.settled()
    await forum.ask(SHORT, thread=await new_topic(forum))
    assert forum.backend.assistant.last_body()["messages"][0]["content"] == "Rhyme."


async def test_a_title_that_the_page_changes_renames_the_topic(forum: BotUnderTest) -> None:
    await forum.ask(SHORT, thread=11)
    service = forum.backend.service
    identifier = service.get("/v1/conversations", forum.key).json["data"][0]["id"]
    url = f"{service.url}/v1/conversations/{identifier}"
    title = "Rain \n in spring " + "x" * 200
    assert http(url, body={"metadata": {"title": title}}, key=forum.key).status == 200
    await forum.ask(SHORT, thread=11)
    assert forum.api.threads[PERSON, 11] == f"Rain in spring {'x' * 113}"


async def test_a_topic_deleted_during_a_turn_takes_another_place(forum: BotUnderTest) -> None:
    thread = await new_topic(forum)
    await forum.api.say("Rain. fake: tokens=6 hold=3", thread=thread)
    await forum.api.until(lambda: forum.api.visible_draft() is not None, "a draft")
    forum.api.delete_topic(thread)
    forum.backend.assistant.release()
    await forum.settled()
    ((topic, name),) = forum.api.threads.items()
    made = [fields["name"] for method, fields, _ in forum.api.calls if method == "createForumTopic"]
    assert made == ["New chat", "New chat"]
    assert name == "Rain. fake: tokens=6 hold=3"
    assert threads(forum) == [thread, topic[1]]
    assert forum.api.shown()[-1] == "the quick brown fox jumps over"
    await forum.ask("/usage", thread=topic[1])
    chats = [forum.bot.service.turns.last_turn(number) for number in (1, 2, 3)]
    assert [one is not None for one in chats] == [False, True, False], "the new topic has the chat of the old one"


async def test_without_another_topic_the_chat_itself_gets_the_response(forum: BotUnderTest) -> None:
    forum.api.failures["createForumTopic"] += ["400:Bad Request: not enough rights"]
    await forum.api.say("fake: tokens=6 hold=3", thread=11)
    await forum.api.until(lambda: forum.api.visible_draft() is not None, "a draft")
    forum.api.delete_topic(11)
    forum.backend.assistant.release()
    await forum.settled()
    assert threads(forum) == [0]
    assert forum.api.threads == {}


@pytest.mark.parametrize("failure", ["429:40", "500"])
async def test_a_topic_that_telegram_postpones_is_made_later(forum: BotUnderTest, failure: str) -> None:
    await forum.ask(SHORT, thread=11)
    forum.api.failures["createForumTopic"] += [failure]
    thread = await new_topic(forum)
    assert thread not in (0, 11)
    forum.api.failures["createForumTopic"] += [failure]
    forum.api.delete_topic(thread)
    forum.api.delete_topic(11)
    await forum.ask("/help", thread=thread)
    ((topic, _),) = forum.api.threads.items()
    assert threads(forum)[-1] == topic[1]


@pytest.mark.parametrize("failure", ["400:Bad Request: too many topics", "drop", "lose"])
async def test_new_without_a_confirmed_topic_begins_in_the_same_place(forum: BotUnderTest, failure: str) -> None:
    await forum.ask(f"First. {SHORT}")
    forum.api.failures["createForumTopic"].append(failure)
    assert await new_topic(forum) == 0
    assert calls(forum, "createForumTopic") == 1, "an unconfirmed topic is not made twice"
    await forum.ask(f"Second. {SHORT}")
    assert [role for role, _ in forum.backend.conversation(forum.key)] == ["user", "assistant"]


async def test_a_failed_rename_does_not_touch_the_response(forum: BotUnderTest) -> None:
    forum.api.failures["editForumTopic"] += ["429:30", "drop"]
    assert await forum.ask(f"One. {SHORT}", thread=11) == [EXPECTED]
    assert forum.api.threads[PERSON, 11] == "A person's topic"
    assert await forum.ask(SHORT, thread=11) == [EXPECTED]
    assert forum.api.threads[PERSON, 11] == f"One. {SHORT}", "the next turn tries again"


async def test_a_bot_without_topics_requests_none(bot: BotUnderTest) -> None:
    await bot.ask(SHORT)
    assert await new_topic(bot) == 0
    await bot.ask(SHORT)
    assert {*threads(bot)} == {0}
    assert not {"createForumTopic", "editForumTopic"} & {name for name, _, _ in bot.api.calls}
