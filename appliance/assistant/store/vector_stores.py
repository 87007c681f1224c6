"""Vector stores, their files and batches of files.

The status of a file in a store:

| status | event | next status |
|---|---|---|
| (none), any | attached: :meth:`VectorStoreRepository.attach` | in_progress, a new ``created_at`` |
| in_progress | its passages are stored: :meth:`VectorStoreRepository.complete` | completed |
| in_progress | it cannot be parsed: :meth:`VectorStoreRepository.fail` | failed |
| in_progress | its batch is cancelled | cancelled |
| any | detached, deleted, or the store expires | (none) |

``created_at`` identifies the attachment: the result of work that began before a new attachment is discarded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update

from appliance.assistant.ids import FILE_BATCH, VECTOR_STORE, new_id
from appliance.assistant.store.database import Database
from appliance.assistant.store.passages import DAY_S, count_change, expiry_of, remove_group
from appliance.assistant.store.schema import FILE_BATCHES, FILES, PASSAGES, VECTOR_STORE_FILES, VECTOR_STORES

STATUSES = ("in_progress", "completed", "failed", "cancelled")
KIND = "files"
"""Kind of the stores that a tenant sees; the store of its past chats has another one."""


@dataclass(frozen=True, slots=True)
class VectorStoreRecord:
    """A vector store with the states of its files."""

    id: str
    tenant: str
    name: str
    metadata: dict[str, str]
    created_at: float
    last_active_at: float
    expires_days: int | None
    counts: Mapping[str, int] = field(default_factory=dict)
    """Files by status."""
    usage_bytes: int = 0

    @property
    def expires_at(self) -> float | None:
        """Return the time at which the store expires if nothing uses it before."""
        return expiry_of(self.last_active_at, self.expires_days)

    def expired(self, now: float) -> bool:
        """Return whether the store is expired at the time ``now``."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class StoreFileRecord:
    """A file in a vector store."""

    store_id: str
    file_id: str
    tenant: str
    key_id: str
    """The key that attached it; background work runs as this key."""
    status: str
    error_code: str | None
    error_message: str | None
    attributes: dict[str, str | float | bool]
    chunking: dict[str, Any]
    usage_bytes: int
    created_at: float
    batch_id: str | None


@dataclass(frozen=True, slots=True)
class FileBatchRecord:
    """Files that one request attached to a store."""

    id: str
    store_id: str
    created_at: float
    cancelled: bool
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class NewStoreFile:
    """A file to attach to a store."""

    file_id: str
    attributes: Mapping[str, str | float | bool]
    chunking: Mapping[str, Any]


class VectorStoreRepository:
    """The vector stores of all tenants, except those of past chats."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, tenant: str, *, name: str, metadata: Mapping[str, str], expires_days: int | None, now: float
    ) -> str:
        """Create an empty store and return its id."""
        store_id = new_id(VECTOR_STORE)
        with self._database.writing() as connection:
            connection.execute(
                insert(VECTOR_STORES).values(
                    id=store_id,
                    tenant=tenant,
                    kind=KIND,
                    name=name,
                    metadata=_json(metadata),
                    created_at=now,
                    last_active_at=now,
                    expires_days=expires_days,
                )
            )
        return store_id

    def get(self, tenant: str, store_id: str) -> VectorStoreRecord | None:
        """Return the store ``store_id`` of ``tenant``; ``None`` if it does not exist."""
        with self._database.reading() as connection:
            row = connection.execute(select(*_STORE).where(*_owned(tenant, store_id))).first()
            return None if row is None else _stores(connection, tenant, [row])[0]

    def page(
        self, tenant: str, *, limit: int, after: str | None, before: str | None, newest_first: bool
    ) -> tuple[list[VectorStoreRecord], bool]:
        """Return up to ``limit`` stores between the ids ``after`` and ``before``, and whether there are more."""
        id_ = VECTOR_STORES.c.id
        query = select(*_STORE).where(VECTOR_STORES.c.tenant == tenant, VECTOR_STORES.c.kind == KIND)
        if after is not None:
            query = query.where(id_ < after if newest_first else id_ > after)
        if before is not None:
            query = query.where(id_ > before if newest_first else id_ < before)
        # The page before an id is the nearest one to it, so the search runs in the opposite direction.
        backwards = before is not None and after is None
        query = query.order_by(id_.desc() if newest_first != backwards else id_).limit(limit + 1)
        with self._database.reading() as connection:
            rows = list(connection.execute(query).all())
            page = rows[:limit][::-1] if backwards else rows[:limit]
            return _stores(connection, tenant, page), len(rows) > limit

    def change(self, tenant: str, store_id: str, values: Mapping[str, Any]) -> bool:
        """Set ``name``, ``metadata`` or ``expires_days``; return whether the store exists."""
        stored = {key: _json(value) if key == "metadata" else value for key, value in values.items()}
        with self._database.writing() as connection:
            statement = update(VECTOR_STORES).where(*_owned(tenant, store_id))
            # Without a change of a column, the statement only shows whether the store exists.
            found = connection.execute(statement.values(**(stored or {"kind": KIND})))
            return found.rowcount > 0

    def touch(self, tenant: str, store_ids: Collection[str], now: float) -> None:
        """Record that the stores are in use, so that they expire later. An expired store stays expired."""
        with self._database.writing() as connection:
            connection.execute(
                update(VECTOR_STORES)
                .where(VECTOR_STORES.c.id.in_(store_ids), VECTOR_STORES.c.tenant == tenant, unexpired(now))
                .values(last_active_at=now)
            )

    def delete(self, tenant: str, store_id: str) -> bool:
        """Delete the store with its passages and batches; its files stay. Return whether it existed."""
        with self._database.writing() as connection:
            row = connection.execute(select(VECTOR_STORES.c.id).where(*_owned(tenant, store_id))).first()
            if row is None:
                return False
            _clear(connection, tenant, store_id)
            connection.execute(delete(VECTOR_STORES).where(*_owned(tenant, store_id)))
            return True

    def clear_expired(self, now: float) -> int:
        """Remove files and passages of expired stores, which stay as empty ones; return the number of stores."""
        due = VECTOR_STORES.c.last_active_at + VECTOR_STORES.c.expires_days * DAY_S <= now
        with self._database.reading() as connection:
            rows = connection.execute(
                select(VECTOR_STORES.c.tenant, VECTOR_STORES.c.id)
                .where(VECTOR_STORES.c.expires_days.is_not(None), due)
                .where(VECTOR_STORES.c.id.in_(select(VECTOR_STORE_FILES.c.store_id)))
            ).all()
        for row in rows:
            with self._database.writing() as connection:
                # A request may have used the store meanwhile.
                if connection.execute(select(VECTOR_STORES.c.id).where(*_owned(row.tenant, row.id), due)).first():
                    _clear(connection, row.tenant, row.id)
                    count_change(connection, row.tenant, row.id)
        return len(rows)

    def attach(
        self,
        tenant: str,
        store_id: str,
        files: Sequence[NewStoreFile],
        *,
        key_id: str,
        now: float,
        batch: bool = False,
    ) -> str | None:
        """Attach ``files`` to the store, whose work then begins; return the id of their batch.

        An attached file is processed again; its old passages are found until the new ones replace them.

        Raises:
            KeyError: A file, or the store, does not exist for this tenant. Its argument is the id.
        """
        batch_id = new_id(FILE_BATCH) if batch else None
        with self._database.writing() as connection:
            ids = [file.file_id for file in files]
            # One statement a piece: databases limit the parameters of a statement.
            for start in range(0, len(ids), _MOST_PARAMETERS):
                piece = ids[start : start + _MOST_PARAMETERS]
                found = connection.execute(
                    select(FILES.c.id)
                    .where(FILES.c.tenant == tenant, FILES.c.id.in_(piece))
                    .where(or_(FILES.c.expires_at.is_(None), FILES.c.expires_at > now))
                )
                missing = set(piece) - {row.id for row in found}
                if missing:
                    raise KeyError(next(file_id for file_id in piece if file_id in missing))
            used = connection.execute(
                update(VECTOR_STORES).where(*_owned(tenant, store_id)).values(last_active_at=now)
            )
            if not used.rowcount:
                raise KeyError(store_id)
            for start in range(0, len(ids), _MOST_PARAMETERS):
                connection.execute(
                    delete(VECTOR_STORE_FILES)
                    .where(VECTOR_STORE_FILES.c.store_id == store_id, VECTOR_STORE_FILES.c.tenant == tenant)
                    .where(VECTOR_STORE_FILES.c.file_id.in_(ids[start : start + _MOST_PARAMETERS]))
                )
            if batch_id is not None:
                connection.execute(
                    insert(FILE_BATCHES).values(id=batch_id, store_id=store_id, tenant=tenant, created_at=now)
                )
            if files:
                connection.execute(
                    insert(VECTOR_STORE_FILES),
                    [
                        {
                            "store_id": store_id,
                            "file_id": file.file_id,
                            "tenant": tenant,
                            "key_id": key_id,
                            "status": "in_progress",
                            "attributes": _json(file.attributes),
                            "chunking": _json(file.chunking),
                            "created_at": now,
                            "batch_id": batch_id,
                        }
                        for file in files
                    ],
                )
                # Attributes of passages that are still found may have changed.
                count_change(connection, tenant, store_id)
        return batch_id

    def get_file(self, tenant: str, store_id: str, file_id: str) -> StoreFileRecord | None:
        """Return the file ``file_id`` of the store; ``None`` if the store does not have it."""
        with self._database.reading() as connection:
            row = connection.execute(select(VECTOR_STORE_FILES).where(_place(tenant, store_id, file_id))).first()
        return None if row is None else _store_file(row)

    def page_of_files(
        self,
        tenant: str,
        store_id: str,
        *,
        limit: int,
        after: str | None,
        before: str | None,
        newest_first: bool,
        status: str | None = None,
        batch_id: str | None = None,
    ) -> tuple[list[StoreFileRecord], bool]:
        """Return up to ``limit`` files of the store between ``after`` and ``before``, and whether there are more.

        Raises:
            KeyError: The store does not have the file ``after`` or ``before``. Its argument is the id.
        """
        columns = VECTOR_STORE_FILES.c
        query = select(VECTOR_STORE_FILES).where(columns.store_id == store_id, columns.tenant == tenant)
        if status is not None:
            query = query.where(columns.status == status)
        if batch_id is not None:
            query = query.where(columns.batch_id == batch_id)
        backwards = before is not None and after is None
        with self._database.reading() as connection:
            for file_id, later in ((after, not newest_first), (before, newest_first)):
                if file_id is not None:
                    query = query.where(_beyond(connection, tenant, store_id, file_id, later=later))
            order = [columns.created_at, columns.file_id]
            descending = newest_first != backwards
            query = query.order_by(*(column.desc() for column in order) if descending else order)
            rows = list(connection.execute(query.limit(limit + 1)).all())
        page = rows[:limit][::-1] if backwards else rows[:limit]
        return [_store_file(row) for row in page], len(rows) > limit

    def set_attributes(
        self, tenant: str, store_id: str, file_id: str, attributes: Mapping[str, str | float | bool]
    ) -> bool:
        """Replace the attributes of a file, which searches filter by; return whether the store has the file."""
        with self._database.writing() as connection:
            found = connection.execute(
                update(VECTOR_STORE_FILES)
                .where(_place(tenant, store_id, file_id))
                .values(attributes=_json(attributes))
            )
            if found.rowcount:
                count_change(connection, tenant, store_id)
            return found.rowcount > 0

    def detach(self, tenant: str, store_id: str, file_id: str) -> bool:
        """Remove the file and its passages from the store; return whether the store had it."""
        with self._database.writing() as connection:
            found = connection.execute(delete(VECTOR_STORE_FILES).where(_place(tenant, store_id, file_id)))
            if not found.rowcount:
                return False
            _forget(connection, tenant, store_id, file_id)
            return True

    def passage_texts(self, tenant: str, store_id: str, file_id: str) -> list[str]:
        """Return the texts of the file's passages in their order."""
        with self._database.reading() as connection:
            rows = connection.execute(
                select(PASSAGES.c.text)
                .where(PASSAGES.c.store_id == store_id, PASSAGES.c.group_id == file_id)
                .where(PASSAGES.c.tenant == tenant)
                .order_by(PASSAGES.c.number)
            )
            return [row.text for row in rows]

    def get_batch(self, tenant: str, store_id: str, batch_id: str) -> FileBatchRecord | None:
        """Return a batch of the store; ``None`` if it does not exist."""
        with self._database.reading() as connection:
            row = connection.execute(
                select(FILE_BATCHES)
                .where(FILE_BATCHES.c.id == batch_id, FILE_BATCHES.c.store_id == store_id)
                .where(FILE_BATCHES.c.tenant == tenant)
            ).first()
            if row is None:
                return None
            counts = connection.execute(
                select(VECTOR_STORE_FILES.c.status, func.count().label("files"))
                .where(VECTOR_STORE_FILES.c.batch_id == batch_id, VECTOR_STORE_FILES.c.tenant == tenant)
                .group_by(VECTOR_STORE_FILES.c.status)
            )
            by_status = {count.status: count.files for count in counts}
        return FileBatchRecord(row.id, row.store_id, row.created_at, bool(row.cancelled), by_status)

    def cancel_batch(self, tenant: str, store_id: str, batch_id: str) -> bool:
        """Cancel the files of a batch that are in progress; return whether the batch exists."""
        with self._database.writing() as connection:
            found = connection.execute(
                update(FILE_BATCHES)
                .where(FILE_BATCHES.c.id == batch_id, FILE_BATCHES.c.store_id == store_id)
                .where(FILE_BATCHES.c.tenant == tenant)
                .values(cancelled=True)
            )
            if not found.rowcount:
                return False
            connection.execute(
                update(VECTOR_STORE_FILES)
                .where(VECTOR_STORE_FILES.c.batch_id == batch_id, VECTOR_STORE_FILES.c.tenant == tenant)
                .where(VECTOR_STORE_FILES.c.status == "in_progress")
                .values(status="cancelled")
            )
            return True

    def pending(self) -> dict[str, tuple[int, float]]:
        """Return by tenant how many files are in progress, and when the first was attached."""
        with self._database.reading() as connection:
            rows = connection.execute(
                select(
                    VECTOR_STORE_FILES.c.tenant,
                    func.count().label("files"),
                    func.min(VECTOR_STORE_FILES.c.created_at).label("first"),
                )
                .where(VECTOR_STORE_FILES.c.status == "in_progress")
                .group_by(VECTOR_STORE_FILES.c.tenant)
            )
            return {row.tenant: (row.files, row.first) for row in rows}

    def oldest(self, tenant: str, skipped: Collection[tuple[str, str]]) -> StoreFileRecord | None:
        """Return the oldest file in progress of ``tenant`` that is not in ``skipped`` (store, file)."""
        with self._database.reading() as connection:
            rows = connection.execute(
                select(VECTOR_STORE_FILES)
                .where(VECTOR_STORE_FILES.c.tenant == tenant, VECTOR_STORE_FILES.c.status == "in_progress")
                .order_by(VECTOR_STORE_FILES.c.created_at, VECTOR_STORE_FILES.c.file_id)
                .limit(len(skipped) + 1)
            ).all()
        return next((_store_file(row) for row in rows if (row.store_id, row.file_id) not in skipped), None)

    def complete(
        self, file: StoreFileRecord, *, usage_bytes: int, now: float, write: Callable[[Connection], None]
    ) -> bool:
        """Mark ``file`` as completed and run ``write``, which replaces its passages, in one transaction.

        Return whether that happened: not if the file was attached again, detached, cancelled or deleted since
        ``file`` was read.
        """
        with self._database.writing() as connection:
            found = connection.execute(
                update(VECTOR_STORE_FILES)
                .where(_unchanged(file))
                .values(status="completed", error_code=None, error_message=None, usage_bytes=usage_bytes)
            )
            if not found.rowcount:
                return False
            write(connection)
            connection.execute(
                update(VECTOR_STORES).where(*_owned(file.tenant, file.store_id)).values(last_active_at=now)
            )
            return True

    def fail(self, file: StoreFileRecord, code: str, message: str) -> bool:
        """Record that ``file`` cannot be used, without passages; return whether it was still as read."""
        with self._database.writing() as connection:
            found = connection.execute(
                update(VECTOR_STORE_FILES)
                .where(_unchanged(file))
                .values(status="failed", error_code=code, error_message=message, usage_bytes=0)
            )
            if not found.rowcount:
                return False
            _forget(connection, file.tenant, file.store_id, file.file_id)
            return True


def unexpired(now: float) -> ColumnElement[bool]:
    """Return the condition that a store is not expired at ``now``."""
    return or_(
        VECTOR_STORES.c.expires_days.is_(None),
        VECTOR_STORES.c.last_active_at + VECTOR_STORES.c.expires_days * DAY_S > now,
    )


_MOST_PARAMETERS = 500
_STORE = (
    VECTOR_STORES.c.id,
    VECTOR_STORES.c.tenant,
    VECTOR_STORES.c.name,
    VECTOR_STORES.c.metadata,
    VECTOR_STORES.c.created_at,
    VECTOR_STORES.c.last_active_at,
    VECTOR_STORES.c.expires_days,
)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _owned(tenant: str, store_id: str) -> tuple[ColumnElement[bool], ...]:
    return VECTOR_STORES.c.id == store_id, VECTOR_STORES.c.tenant == tenant, VECTOR_STORES.c.kind == KIND


def _place(tenant: str, store_id: str, file_id: str) -> ColumnElement[bool]:
    columns = VECTOR_STORE_FILES.c
    return and_(columns.store_id == store_id, columns.file_id == file_id, columns.tenant == tenant)


def _unchanged(file: StoreFileRecord) -> ColumnElement[bool]:
    """Return the condition that ``file`` has the state in which it was read."""
    columns = VECTOR_STORE_FILES.c
    place = _place(file.tenant, file.store_id, file.file_id)
    return and_(place, columns.created_at == file.created_at, columns.status == "in_progress")


def _beyond(
    connection: Connection, tenant: str, store_id: str, file_id: str, *, later: bool
) -> ColumnElement[bool]:
    columns = VECTOR_STORE_FILES.c
    row = connection.execute(select(columns.created_at).where(_place(tenant, store_id, file_id))).first()
    if row is None:
        raise KeyError(file_id)
    same = columns.created_at == row.created_at
    if later:
        return or_(columns.created_at > row.created_at, and_(same, columns.file_id > file_id))
    return or_(columns.created_at < row.created_at, and_(same, columns.file_id < file_id))


def _forget(connection: Connection, tenant: str, store_id: str, file_id: str) -> None:
    """Remove the passages of a file, and count a change even without any, because its attributes are gone."""
    remove_group(connection, tenant, file_id, store_id)
    count_change(connection, tenant, store_id)


def _clear(connection: Connection, tenant: str, store_id: str) -> None:
    """Remove the passages, files and batches of a store."""
    for table in (PASSAGES, VECTOR_STORE_FILES, FILE_BATCHES):
        connection.execute(delete(table).where(table.c.store_id == store_id, table.c.tenant == tenant))


def _stores(connection: Connection, tenant: str, rows: Sequence[Any]) -> list[VectorStoreRecord]:
    counts: dict[str, dict[str, int]] = {row.id: {} for row in rows}
    usage = dict.fromkeys(counts, 0)
    for one in connection.execute(
        select(
            VECTOR_STORE_FILES.c.store_id,
            VECTOR_STORE_FILES.c.status,
            func.count().label("files"),
            func.sum(VECTOR_STORE_FILES.c.usage_bytes).label("usage"),
        )
        .where(VECTOR_STORE_FILES.c.tenant == tenant, VECTOR_STORE_FILES.c.store_id.in_(list(counts)))
        .group_by(VECTOR_STORE_FILES.c.store_id, VECTOR_STORE_FILES.c.status)
    ):
        counts[one.store_id][one.status] = one.files
        usage[one.store_id] += int(one.usage)
    return [
        VectorStoreRecord(
            id=row.id,
            tenant=row.tenant,
            name=row.name,
            metadata=json.loads(row.metadata),
            created_at=row.created_at,
            last_active_at=row.last_active_at,
            expires_days=row.expires_days,
            counts=counts[row.id],
            usage_bytes=usage[row.id],
        )
        for row in rows
    ]


def _store_file(row: Any) -> StoreFileRecord:
    return StoreFileRecord(
        store_id=row.store_id,
        file_id=row.file_id,
        tenant=row.tenant,
        key_id=row.key_id,
        status=row.status,
        error_code=row.error_code,
        error_message=row.error_message,
        attributes=json.loads(row.attributes),
        chunking=json.loads(row.chunking),
        usage_bytes=row.usage_bytes,
        created_at=row.created_at,
        batch_id=row.batch_id,
    )
