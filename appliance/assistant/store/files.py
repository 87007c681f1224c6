"""The rows of uploaded files, and the removal of everything that refers to a file.

The content of a file is in the data folder (:mod:`appliance.assistant.file_contents`); the row is the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, or_, select

from appliance.assistant.store.database import Database
from appliance.assistant.store.passages import count_change, remove_group
from appliance.assistant.store.schema import FILES, VECTOR_STORE_FILES


@dataclass(frozen=True, slots=True)
class FileRecord:
    """An uploaded file. Times are seconds since the epoch."""

    id: str
    tenant: str
    filename: str
    purpose: str
    size: int
    """Bytes of the content."""
    digest: bytes
    """SHA-256 of the content."""
    created_at: float
    expires_at: float | None = None


class FileRepository:
    """The files of all tenants. A file after its ``expires_at`` does not exist for its tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: FileRecord) -> None:
        """Store the row of a file whose content is complete."""
        with self._database.writing() as connection:
            connection.execute(
                insert(FILES).values(
                    id=record.id,
                    tenant=record.tenant,
                    filename=record.filename,
                    purpose=record.purpose,
                    bytes=record.size,
                    digest=record.digest,
                    created_at=record.created_at,
                    expires_at=record.expires_at,
                )
            )

    def get(self, tenant: str, file_id: str, now: float) -> FileRecord | None:
        """Return the file ``file_id`` of ``tenant``; ``None`` if there is none at the time ``now``."""
        with self._database.reading() as connection:
            row = connection.execute(select(FILES).where(FILES.c.id == file_id, *_live(tenant, now))).first()
        return None if row is None else _record(row)

    def names(self, tenant: str, file_ids: Sequence[str]) -> dict[str, str]:
        """Return the names of the files of ``tenant`` among ``file_ids``, by id."""
        with self._database.reading() as connection:
            rows = connection.execute(
                select(FILES.c.id, FILES.c.filename).where(FILES.c.tenant == tenant, FILES.c.id.in_(file_ids))
            )
            return {row.id: row.filename for row in rows}

    def page(
        self, tenant: str, now: float, *, limit: int, after: str | None, newest_first: bool, purpose: str | None
    ) -> tuple[list[FileRecord], bool]:
        """Return up to ``limit`` files of ``tenant`` behind the id ``after``, and whether there are more.

        Ids sort by creation, so a page continues correctly even if the file ``after`` was deleted meanwhile.
        """
        query = select(FILES).where(*_live(tenant, now)).limit(limit + 1)
        query = query.order_by(FILES.c.id.desc() if newest_first else FILES.c.id)
        if after is not None:
            query = query.where(FILES.c.id < after if newest_first else FILES.c.id > after)
        if purpose is not None:
            query = query.where(FILES.c.purpose == purpose)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [_record(row) for row in rows[:limit]], len(rows) > limit

    def remove(self, tenant: str, file_id: str) -> bool:
        """Remove the file with its places in vector stores and its passages; return whether it existed."""
        with self._database.writing() as connection:
            return _remove(connection, tenant, file_id)

    def expired(self, now: float, limit: int = 100) -> list[tuple[str, str]]:
        """Return tenant and id of files that expired before ``now``."""
        with self._database.reading() as connection:
            rows = connection.execute(
                select(FILES.c.tenant, FILES.c.id).where(FILES.c.expires_at <= now).limit(limit)
            )
            return [(row.tenant, row.id) for row in rows]

    def exists(self, file_id: str) -> bool:
        """Return whether any tenant has the file ``file_id``; for the sweep of the data folder."""
        with self._database.reading() as connection:
            return connection.execute(select(FILES.c.id).where(FILES.c.id == file_id)).first() is not None


def _live(tenant: str, now: float) -> tuple[ColumnElement[bool], ...]:
    return FILES.c.tenant == tenant, or_(FILES.c.expires_at.is_(None), FILES.c.expires_at > now)


def _record(row: Any) -> FileRecord:
    return FileRecord(
        id=row.id,
        tenant=row.tenant,
        filename=row.filename,
        purpose=row.purpose,
        size=row.bytes,
        digest=row.digest,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


def _remove(connection: Connection, tenant: str, file_id: str) -> bool:
    places = and_(VECTOR_STORE_FILES.c.file_id == file_id, VECTOR_STORE_FILES.c.tenant == tenant)
    for store_id in connection.execute(select(VECTOR_STORE_FILES.c.store_id).where(places)).scalars().all():
        # The attributes of the file are gone even if it has no passages yet.
        count_change(connection, tenant, store_id)
    remove_group(connection, tenant, file_id)
    connection.execute(delete(VECTOR_STORE_FILES).where(places))
    found = connection.execute(delete(FILES).where(FILES.c.id == file_id, FILES.c.tenant == tenant))
    return found.rowcount > 0
