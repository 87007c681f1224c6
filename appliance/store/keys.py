"""API keys at rest: stored as SHA-256, shown once. Every change is counted, so that gateways can poll for it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from appliance.errors import UsageError
from appliance.store.database import open_database, refused
from appliance.store.models import KEY, USER, Key
from appliance.store.schema import CHANGES, KEYS, USERS

CHANGEABLE = frozenset(
    {
        "name",
        "models",
        "requests_per_minute",
        "tokens_per_minute",
        "requests_in_flight",
        "weight",
        "expires_at",
        "end_users",
    }
)
MAX_NAME = 100
LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000.0


class KeyStore:
    """The keys of one site. Every method raises :class:`StoreError` if the database fails."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self._engine = open_database(folder, url)

    def create(self, user: str, **limits: Any) -> str:
        """Create a key for ``user`` and return it; only its digest is stored. ``limits`` as in :meth:`change`."""
        key, values = new_key(user, limits)
        self._write(insert(KEYS).values(values))
        return key

    def change(self, key_id: str, **changes: Any) -> Key:
        """Change :data:`CHANGEABLE` columns of a key and return it; ``None`` removes a limit.

        Raises :class:`UsageError` if the key does not exist or a value is out of range.
        """
        wanted = self.get(key_id).id
        if changes:
            self._write(update(KEYS).where(KEYS.c.id == wanted).values(_checked(changes)))
        return self.get(wanted)

    def revoke(self, key_id: str) -> Key:
        """Revoke the key with this id (or the key itself) and return it.

        Raises :class:`UsageError` if it does not exist.
        """
        wanted = self.get(key_id).id
        self._write(
            update(KEYS).where(KEYS.c.id == wanted, KEYS.c.revoked_at.is_(None)).values(revoked_at=time.time())
        )
        return self.get(wanted)

    def get(self, key_id: str) -> Key:
        """Return the key with this id (or the key itself); raises :class:`UsageError` if it does not exist."""
        match = KEY.fullmatch(key_id.encode())
        wanted = match.group(1).decode() if match else key_id
        with self._reading() as connection:
            row = connection.execute(select(KEYS).where(KEYS.c.id == wanted)).first()
        if row is None:
            raise UsageError("a key with that id does not exist; `appliance keys list` shows them")
        return _key(row)

    def all(self) -> list[Key]:
        """Return all keys, oldest first."""
        with self._reading() as connection:
            return [_key(row) for row in connection.execute(select(KEYS).order_by(KEYS.c.created_at))]

    def snapshot(self, since: int) -> tuple[int, list[Key]] | None:
        """Return the number of changes and all keys; ``None`` if nothing changed after change number ``since``.

        A key of a disabled user is revoked as of that time.
        """
        with self._reading() as connection:
            number = connection.execute(select(CHANGES.c.number).where(CHANGES.c.what == "keys")).scalar_one()
            if number == since:
                return None
            disabled = {
                str(row.name): float(row.disabled_at)
                for row in connection.execute(select(USERS).where(USERS.c.disabled_at.is_not(None)))
            }
            keys = [_key(row) for row in connection.execute(select(KEYS))]
        return int(number), [
            replace(key, revoked_at=disabled[key.user]) if key.user in disabled and key.revoked_at is None else key
            for key in keys
        ]

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _write(self, statement: Any) -> None:
        try:
            with self._engine.begin() as connection:
                count_change(connection, "keys")
                connection.execute(statement)
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise refused(error, self._engine) from error


def new_key(user: str, limits: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a new key of ``user`` and its row; raises :class:`UsageError` if a value is not valid."""
    check_user(user)
    key_id = secrets.token_hex(6)
    key = f"sk-{key_id}-{secrets.token_urlsafe(32)}"
    row = {
        "id": key_id,
        "user": user,
        "digest": sha256(key.encode()).digest(),
        "created_at": time.time(),
        **_checked(limits),
    }
    return key, row


def check_user(name: str) -> None:
    """Raise :class:`UsageError` if ``name`` cannot be the name of a user."""
    if not USER.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} is not a user name; use at most 63 letters, digits, dots, dashes and underscores"
        )


def count_change(connection: Connection, what: str) -> None:
    """Count a change of the table ``what``; the first statement of its transaction, so that writers queue."""
    connection.execute(update(CHANGES).where(CHANGES.c.what == what).values(number=CHANGES.c.number + 1))


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` as columns; raises :class:`UsageError` that names the value out of range."""
    unknown = sorted(values.keys() - CHANGEABLE)
    if unknown:
        raise UsageError(f"a key has no {unknown[0]!r}; it has {', '.join(sorted(CHANGEABLE))}")
    for column in ("requests_per_minute", "tokens_per_minute", "requests_in_flight"):
        value = values.get(column)
        if value is not None and not 0 < value <= 2**31 - 1:
            raise UsageError(f"{column} is {value}; it must be more than 0; omit it for no limit")
    weight = values.get("weight")
    if weight is not None and not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise UsageError(f"weight is {weight:g}; it must be from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    if len(values.get("name") or "") > MAX_NAME:
        raise UsageError(f"the name has more than {MAX_NAME} characters; shorten it")
    found = dict(values)
    if "name" in found:
        found["name"] = found["name"] or ""
    if "end_users" in found:
        found["end_users"] = bool(found["end_users"])
    if found.get("models") is not None:
        found["models"] = json.dumps(sorted(found["models"]))
    return found


def _key(row: Row[Any]) -> Key:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    models = values.pop("models")
    return Key(models=None if models is None else frozenset(json.loads(models)), **values)
