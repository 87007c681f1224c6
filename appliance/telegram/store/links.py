"""Links between persons at Telegram and users, and the one-time codes that make them.

| code | event | next |
|---|---|---|
| new | ``/start CODE`` within 15 minutes | used; the person is linked |
| new | 15 minutes | expired |
| used, expired | ``/start CODE`` | unchanged; no link |
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import delete, func, insert, select, update

from appliance.telegram.store.database import BotDatabase
from appliance.telegram.store.schema import FACTS, LINK_CODES, LINKS, STRANGERS

CODE_LIFE_S = 900.0
"""Seconds for which a code is valid."""

STRANGERS_PER_HOUR = 20
"""Replies to persons without a link, all together."""


@dataclass(frozen=True, slots=True)
class PersonLink:
    """A linked person: the user and the id of the key in whose name the bot acts."""

    person: int
    user: str
    key_id: str
    linked_at: float


class LinkStore:
    """Links and codes."""

    def __init__(self, database: BotDatabase) -> None:
        self._database = database

    def make_code(self, user: str, key_id: str, now: float) -> str:
        """Return a new one-time code for ``user``; only its digest is stored."""
        code = secrets.token_urlsafe(16)
        with self._database.writing() as connection:
            connection.execute(delete(LINK_CODES).where(LINK_CODES.c.expires_at < now - 86400))
            connection.execute(
                insert(LINK_CODES).values(
                    digest=_digest(code), user=user, key_id=key_id, expires_at=now + CODE_LIFE_S
                )
            )
        return code

    def redeem(self, code: str, person: int, now: float) -> PersonLink | None:
        """Link ``person`` by ``code`` and return the link; ``None`` for an unknown, used or expired code."""
        with self._database.writing() as connection:
            valid = (LINK_CODES.c.digest == _digest(code), LINK_CODES.c.used_at.is_(None))
            row = connection.execute(select(LINK_CODES).where(*valid, LINK_CODES.c.expires_at > now)).first()
            if row is None:
                return None
            connection.execute(update(LINK_CODES).where(LINK_CODES.c.digest == row.digest).values(used_at=now))
            connection.execute(delete(LINKS).where(LINKS.c.person == person))
            connection.execute(delete(STRANGERS).where(STRANGERS.c.person == person))
            values = {"person": person, "user": row.user, "key_id": row.key_id, "linked_at": now}
            connection.execute(insert(LINKS).values(values))
        return PersonLink(**values)

    def of(self, person: int) -> PersonLink | None:
        """Return the link of ``person``."""
        with self._database.reading() as connection:
            row = connection.execute(select(LINKS).where(LINKS.c.person == person)).first()
        return None if row is None else PersonLink(**row._asdict())

    def all(self) -> list[PersonLink]:
        """Return all links by user."""
        with self._database.reading() as connection:
            rows = connection.execute(select(LINKS).order_by(LINKS.c.user, LINKS.c.person)).all()
        return [PersonLink(**row._asdict()) for row in rows]

    def unlink(self, *, person: int | None = None, user: str | None = None) -> int:
        """Remove the link of ``person``, or all links of ``user`` and its unused codes; return their number."""
        with self._database.writing() as connection:
            if user is not None:
                connection.execute(delete(LINK_CODES).where(LINK_CODES.c.user == user))
            chosen = LINKS.c.user == user if person is None else LINKS.c.person == person
            return connection.execute(delete(LINKS).where(chosen)).rowcount

    def admit_stranger(self, person: int, now: float) -> bool:
        """Return whether ``person``, which has no link, gets a reply: the first one, within the common limit."""
        with self._database.writing() as connection:
            if connection.execute(select(STRANGERS).where(STRANGERS.c.person == person)).first() is not None:
                return False
            recent = select(func.count()).select_from(STRANGERS).where(STRANGERS.c.replied_at > now - 3600)
            if connection.execute(recent).scalar_one() >= STRANGERS_PER_HOUR:
                return False
            connection.execute(insert(STRANGERS).values(person=person, replied_at=now))
        return True

    def set_bot_name(self, name: str) -> None:
        """Store the bot's user name, which links to the bot contain."""
        with self._database.writing() as connection:
            connection.execute(delete(FACTS).where(FACTS.c.name == "bot"))
            connection.execute(insert(FACTS).values(name="bot", value=name))

    def bot_name(self) -> str | None:
        """Return the bot's user name; ``None`` before the first start of the bot."""
        with self._database.reading() as connection:
            return connection.execute(select(FACTS.c.value).where(FACTS.c.name == "bot")).scalar()


def _digest(code: str) -> bytes:
    return sha256(code.encode()).digest()
