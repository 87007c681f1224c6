"""200 chats at once, each with its own style: no mix-up, no loss, and a page of the list has the newest first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2 as httpx
import pytest

from appliance.engines.mock import digest_of
from tests.assistant.many_chats import StyledChat, chat_client, have_chats, lost_items, mix_ups
from tests.assistant.running import whole_service

CHATS = 200
TURNS = 3


async def reference(messages: list[dict[str, str]]) -> str:
    return digest_of(messages)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    # On a slow machine all of them wait at once.
    with whole_service(tmp_path, gateway={"queue": {"max_waiting_per_user": CHATS}}) as (service, _):
        async with chat_client(service.url, service.key) as opened:
            yield opened


async def test_each_of_200_chats_has_its_own_style_and_history(client: httpx.AsyncClient) -> None:
    chats = [StyledChat(number, f"Style {number}. fake: digest=1 ttft_ms=1 itl_ms=0") for number in range(CHATS)]
    await have_chats(client, chats, TURNS, model="fake")
    assert await mix_ups(chats, reference) == []
    assert await lost_items(client, chats) == []
    listed: list[str] = []
    while len(listed) < CHATS:
        params: dict[str, str | int] = {"limit": 100, "after": listed[-1]} if listed else {"limit": 100}
        page = await client.get("/conversations", params=params)
        listed += [one["id"] for one in page.raise_for_status().json()["data"]]
    assert sorted(listed) == sorted(chat.id for chat in chats)
    assert len({text for chat in chats for _, text in chat.turns}) == CHATS * TURNS

    # The controls: a style of another chat, a text of another chat, a turn that is lost.
    chats[0].style, chats[1].style = chats[1].style, chats[0].style
    assert {number for number, _ in await mix_ups(chats, reference)} == {0, 1}
    chats[2].turns[0] = chats[3].turns[0]
    assert (2, 0) in await mix_ups(chats, reference)
    del chats[4].turns[1]
    assert await lost_items(client, chats) == [2, 4]
