"""The turn that a repetition replaces: its items return if the new turn brings no response.

Its request has them as ``earlier`` until the new response is complete, so that a restart can bring them back:

| ``removed`` | event | next |
|---|---|---|
| false | the new turn begins: the items leave the conversation | true |
| true | the new turn fails, or ends without a text: the items are added again, with new ids | false |
| true | the new turn has a response | no ``earlier`` |
"""

from __future__ import annotations

import json
from typing import Any

from appliance.errors import RequestError
from appliance.telegram.acting import ActingGateway
from appliance.telegram.store.links import PersonLink
from appliance.telegram.store.turns import ChatRecord, TurnRecord, TurnStore

EARLIER = "earlier"
MOST_ITEMS = 20
"""Items that one request adds to a conversation."""


class EarlierTurn:
    """Removes and restores the items of turns. Every method raises :class:`RequestError` of the gateway."""

    def __init__(self, gateway: ActingGateway, turns: TurnStore) -> None:
        self._gateway = gateway
        self._turns = turns

    async def remove(self, turn: TurnRecord, link: PersonLink) -> None:
        """Remove the items that ``turn`` replaces from its conversation."""
        earlier = turn.request.get(EARLIER)
        if not earlier:
            return
        self._set(turn, earlier | {"removed": True})
        for item in reversed(earlier["items"]):
            await self._gateway.delete_item(link, earlier["conversation"], item["id"])

    async def settle(self, turn: TurnRecord, link: PersonLink, *, replaced: bool) -> None:
        """Restore the items that ``turn`` removed, or forget them if its response has ``replaced`` them."""
        earlier = turn.request.get(EARLIER)
        if not earlier or not earlier["removed"]:
            return
        if replaced:
            self._set(turn, None)
            return
        conversation = earlier["conversation"]
        for item in reversed(earlier["items"]):
            # A removal that ended early has left some.
            await self._gateway.delete_item(link, conversation, item["id"])
        added: list[dict[str, Any]] = []
        try:
            for at in range(0, len(earlier["items"]), MOST_ITEMS):
                added += await self._gateway.add_items(link, conversation, earlier["items"][at : at + MOST_ITEMS])
        except RequestError as error:
            if error.status != 404:
                raise
        # Without the conversation, there is nothing that could be restored.
        self._set(turn, earlier | {"items": added, "removed": False} if added else None)

    def _set(self, turn: TurnRecord, earlier: dict[str, Any] | None) -> None:
        turn.request.pop(EARLIER, None)
        if earlier is not None:
            turn.request[EARLIER] = earlier
        self._turns.set_turn(turn.id, request=json.dumps(turn.request))


def replacing(
    request: dict[str, Any], chat: ChatRecord, items: list[dict[str, Any]], before: dict[str, Any]
) -> dict[str, Any]:
    """Return ``request`` of a turn that replaces ``items`` of the chat's conversation.

    ``before`` is the request of the last turn: items that it restored are replaced, too.
    """
    found = {name: value for name, value in request.items() if name != EARLIER}
    earlier = before.get(EARLIER) or {}
    if earlier and earlier["conversation"] == chat.conversation_id:
        items = [*earlier["items"], *items]
    if items and chat.conversation_id is not None:
        found[EARLIER] = {"conversation": chat.conversation_id, "items": items, "removed": False}
    return found
