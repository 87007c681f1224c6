"""Many chats at once, each with a style of its own: what their clients do, and the search for mix-ups.

An engine with greedy sampling returns the same text for the same messages. So each text must equal that of the same
messages alone. These are the style, the chat's own inputs and the engine's own earlier texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx

PATIENCE_S = 600.0
"""Seconds for the requests of all chats together on a busy machine."""


@dataclass
class StyledChat:
    """A conversation, its instructions, and its turns as its client got them."""

    number: int
    style: str
    id: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)
    """Inputs and texts."""

    def messages(self, turn: int) -> list[dict[str, str]]:
        """Return the messages of turn number ``turn`` as an engine must get them."""
        found = [{"role": "system", "content": self.style}]
        for sent, text in self.turns[:turn]:
            found += [{"role": "user", "content": sent}, {"role": "assistant", "content": text}]
        return [*found, {"role": "user", "content": self.turns[turn][0]}]


def chat_client(url: str, key: str) -> httpx.AsyncClient:
    """Return a client of the gateway for many requests at once."""
    return httpx.AsyncClient(
        base_url=url + "/v1",
        headers={"authorization": f"Bearer {key}"},
        timeout=PATIENCE_S,
        limits=httpx.Limits(max_connections=None),
        trust_env=False,
    )


async def have_chats(client: httpx.AsyncClient, chats: Sequence[StyledChat], turns: int, **options: Any) -> None:
    """Create all ``chats`` and run ``turns`` turns of each, all chats at once; ``options`` are fields of a turn."""

    async def one(chat: StyledChat) -> None:
        made = await client.post("/conversations", json={"metadata": {"instructions": chat.style}})
        chat.id = made.raise_for_status().json()["id"]
        for turn in range(turns):
            sent = f"Turn {turn} of chat {chat.number}"
            response = await client.post("/responses", json={**options, "input": sent, "conversation": chat.id})
            found = response.raise_for_status().json()
            assert found["status"] in ("completed", "incomplete"), found
            [message] = found["output"]
            chat.turns.append((sent, message["content"][0]["text"]))

    await asyncio.gather(*(one(chat) for chat in chats))


async def lost_items(client: httpx.AsyncClient, chats: Sequence[StyledChat]) -> list[int]:
    """Return the numbers of chats whose stored items are not exactly the turns that their clients got."""
    found = []
    for chat in chats:
        page = await client.get(f"/conversations/{chat.id}/items", params={"order": "asc", "limit": 100})
        stored = [item["content"][0]["text"] for item in page.raise_for_status().json()["data"]]
        if stored != [text for turn in chat.turns for text in turn]:
            found.append(chat.number)
    return found


async def mix_ups(
    chats: Sequence[StyledChat], reference: Callable[[list[dict[str, str]]], Awaitable[str]]
) -> list[tuple[int, int]]:
    """Return chat and turn of each text that is not that of its own messages by ``reference``."""
    return [
        (chat.number, turn)
        for chat in chats
        for turn, (_, text) in enumerate(chat.turns)
        if text != await reference(chat.messages(turn))
    ]
