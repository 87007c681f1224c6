"""Joins the parts of a message that Telegram's apps split at 4096 characters. Pure.

A part continues the message before it if that one is nearly full. Both are new texts of one person in one place,
and its number is the next one. The bot waits :data:`JOIN_S` seconds for it, and only after a nearly full message.
"""

from __future__ import annotations

import itertools

import msgspec

from appliance.telegram.formatting import utf16_units
from appliance.telegram.splitting import LIMIT
from appliance.telegram.updates import BotUpdate, IncomingMessage

JOIN_S = 1.5
"""Seconds to wait for the next part."""

NEARLY_FULL = 4000
"""UTF-16 units from which on a message may be a part: an app splits between words, before 4096."""


def may_continue(update: BotUpdate) -> bool:
    """Return whether a further part may follow ``update``."""
    return (
        isinstance(update, IncomingMessage)
        and not update.edited
        and update.attachment is None
        and utf16_units(update.text) >= NEARLY_FULL
    )


def continues(before: IncomingMessage, update: BotUpdate) -> bool:
    """Return whether ``update`` is the part that follows ``before``, the last part so far."""
    return (
        isinstance(update, IncomingMessage)
        and not update.edited
        and update.attachment is None
        and update.message_id == before.message_id + 1
        and (update.place, update.person) == (before.place, before.person)
        and not update.text.startswith("/")
    )


def joined(parts: list[IncomingMessage]) -> IncomingMessage:
    """Return ``parts`` as one message with the number of the first one.

    A part below the limit was split between words, and the app removed the space or the line break there.
    """
    text = parts[0].text
    for before, part in itertools.pairwise(parts):
        text += ("" if utf16_units(before.text) >= LIMIT else "\n") + part.text
    return msgspec.structs.replace(parts[0], text=text)
