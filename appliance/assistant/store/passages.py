"""The passages of the memory: groups of a store that are written and removed whole.

A group is a file or a conversation. Each function runs within a transaction of its caller. So a group, the status
of its file and the counter ``changes`` of its store change together. A fact is valid until a newer fact with the
same subject. Each change of a group settles that anew, also when the newer fact is removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from appliance.assistant.retrieval.fingerprint import REINDEX, EmbedderFingerprint, require_same
from appliance.assistant.retrieval.terms import term_counts
from appliance.assistant.store.schema import PASSAGES, VECTOR_STORE_FILES, VECTOR_STORES
from appliance.errors import ConflictError

DAY_S = 86_400
CHUNK, ROUND, FACT = "chunk", "round", "fact"
"""The kinds of passages."""

_AT_ONCE = 500
"""Values of one condition: both databases limit them."""
_NO_VECTOR: NDArray[np.float32] = np.zeros(0, np.float32)
_COUNTS = msgspec.json.Decoder(dict[str, int])


@dataclass(frozen=True, slots=True, eq=False)
class StoredPassage:
    """A passage as the database has it. All times are seconds since the epoch."""

    kind: str
    source: str
    """A title for citations: a file name or the title of a chat; the database keeps 512 characters."""
    text: str
    vector: NDArray[np.float32] = field(default_factory=_NO_VECTOR.copy)
    """The embedding, shape (dimensions,), of any length except zero; shape (0,) without an embedder."""
    section: str = ""
    indexed_text: str = ""
    """The text that was embedded, if it differs from ``text``."""
    counts: Mapping[str, int] | None = None
    """How often each term occurs; None to count them when the passage is stored."""
    subject: str | None = None
    """The property that a fact is about."""
    date: float | None = None
    valid_from: float | None = None
    valid_until: float | None = None
    number: int = 0
    """The row, never used again after its removal; 0 before the passage is stored."""
    group_id: str = ""


@dataclass(frozen=True, slots=True)
class PassageVersion:
    """The number of a passage and the only one of its values that changes after it was stored."""

    number: int
    valid_until: float | None


@dataclass(frozen=True, slots=True, eq=False)
class PassageVector:
    """The vector of a passage, with the names that an index outside the database needs."""

    number: int
    group_id: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoreState:
    """The state of a store's passages: an index in memory compares it with its own."""

    changes: int
    fingerprint: EmbedderFingerprint | None
    """The embedder of the vectors; None without vectors."""
    last_active_at: float
    expires_at: float | None = None
    """The time at which the store expires if nothing uses it before."""


def state_of(connection: Connection, tenant: str, store_id: str) -> StoreState | None:
    """Return the state of the store, or None if the tenant has no such store."""
    stores = VECTOR_STORES.c
    columns = select(stores.changes, stores.fingerprint, stores.last_active_at, stores.expires_days)
    row = connection.execute(columns.where(*_its(tenant, store_id))).first()
    if row is None:
        return None
    expires_at = expiry_of(row.last_active_at, row.expires_days)
    return StoreState(row.changes, read_fingerprint(row.fingerprint), row.last_active_at, expires_at)


def expiry_of(last_active_at: float, expires_days: int | None) -> float | None:
    """Return the time at which a store expires if nothing uses it after ``last_active_at``; None for never."""
    return None if expires_days is None else last_active_at + expires_days * DAY_S


def replace_group(
    connection: Connection,
    tenant: str,
    store_id: str,
    group_id: str,
    passages: Sequence[StoredPassage],
    *,
    fingerprint: EmbedderFingerprint | None,
) -> bool:
    """Replace all passages of the group by ``passages`` and count a change of the store.

    Args:
        connection: A transaction of the caller; without its commit nothing has changed.
        tenant: The owner of the store.
        store_id: The store.
        group_id: The file or the conversation.
        passages: The passages in their order; none removes the group.
        fingerprint: The embedder of their vectors; None if they have none.

    Returns:
        Whether the tenant has such a store; otherwise nothing has changed.

    Raises:
        ConflictError: The passages of the store are of another embedder.
        ValueError: A vector is zero, not finite, or its dimensions are not those of ``fingerprint``.
    """
    if not count_change(connection, tenant, store_id):
        return False
    rows = [_row(tenant, store_id, group_id, one, fingerprint) for one in passages]
    old = _remove(connection, tenant, store_id, [group_id])
    if rows:
        _record(connection, tenant, store_id, fingerprint)
        connection.execute(insert(PASSAGES), rows)
    _settle(connection, tenant, store_id, old | {row["subject"] for row in rows if row["subject"]})
    return True


def remove_group(connection: Connection, tenant: str, group_id: str, store_id: str | None = None) -> int:
    """Remove the passages of the group from one store, or from every store of the tenant; return their number."""
    stores = select(PASSAGES.c.store_id).where(PASSAGES.c.tenant == tenant, PASSAGES.c.group_id == group_id)
    if store_id is not None:
        stores = stores.where(PASSAGES.c.store_id == store_id)
    removed = 0
    for name in connection.execute(stores.distinct()).scalars().all():
        count_change(connection, tenant, name)
        before = count_passages(connection, tenant, name)
        _settle(connection, tenant, name, _remove(connection, tenant, name, [group_id]))
        removed += before - count_passages(connection, tenant, name)
    return removed


def count_change(connection: Connection, tenant: str, store_id: str) -> bool:
    """Count a change of the store, such as one of its files' attributes; return whether the tenant has it.

    On PostgreSQL this also makes concurrent changes of a store wait for each other.
    """
    statement = update(VECTOR_STORES).where(*_its(tenant, store_id)).values(changes=VECTOR_STORES.c.changes + 1)
    return connection.execute(statement).rowcount == 1


def count_passages(connection: Connection, tenant: str, store_id: str, *, group_id: str | None = None) -> int:
    """Return the number of passages of the store, or of one of its groups."""
    statement = select(func.count()).select_from(PASSAGES).where(*_of(tenant, store_id))
    if group_id is not None:
        statement = statement.where(PASSAGES.c.group_id == group_id)
    return int(connection.execute(statement).scalar_one())


def passages_of(
    connection: Connection,
    tenant: str,
    store_id: str,
    *,
    group_id: str | None = None,
    numbers: Sequence[int] | None = None,
    with_vectors: bool = True,
) -> Iterator[StoredPassage]:
    """Yield the passages of the store by their numbers, or those of a group, or those with ``numbers``.

    Without ``with_vectors`` their vectors are empty and are not read.
    """
    omitted = {"next_vector"} if with_vectors else {"next_vector", "vector"}
    columns = [column for column in PASSAGES.c if column.name not in omitted]
    statement = select(*columns).where(*_of(tenant, store_id)).order_by(PASSAGES.c.number)
    statement = statement.execution_options(yield_per=_AT_ONCE)
    if group_id is not None:
        statement = statement.where(PASSAGES.c.group_id == group_id)
    for part in [None] if numbers is None else _parts(sorted(numbers)):
        chosen = statement if part is None else statement.where(PASSAGES.c.number.in_(part))
        yield from map(_stored, connection.execute(chosen))


def numbers_of(connection: Connection, tenant: str, store_id: str) -> NDArray[np.int64]:
    """Return the numbers of all passages of the store that have a vector, in their order."""
    statement = select(PASSAGES.c.number).where(*_of(tenant, store_id), func.length(PASSAGES.c.vector) > 0)
    return np.fromiter(connection.execute(statement.order_by(PASSAGES.c.number)).scalars(), np.int64)


def vectors_of(connection: Connection, tenant: str, store_id: str, numbers: Sequence[int]) -> list[PassageVector]:
    """Return the vectors of those of ``numbers`` that are passages of the store and have one."""
    found: list[PassageVector] = []
    for part in _parts(sorted(numbers)):
        statement = select(PASSAGES.c.number, PASSAGES.c.group_id, PASSAGES.c.vector)
        statement = statement.where(*_of(tenant, store_id), PASSAGES.c.number.in_(part))
        for number, group_id, vector in connection.execute(statement):
            if vector:
                found.append(PassageVector(number, group_id, np.frombuffer(vector, "<f4")))
    return found


def versions_of(connection: Connection, tenant: str, store_id: str) -> list[PassageVersion]:
    """Return the versions of all passages of the store, by number."""
    statement = select(PASSAGES.c.number, PASSAGES.c.valid_until).where(*_of(tenant, store_id))
    rows = connection.execute(statement.order_by(PASSAGES.c.number))
    return [PassageVersion(number, valid_until) for number, valid_until in rows]


def attributes_of(connection: Connection, tenant: str, store_id: str) -> dict[str, dict[str, Any]]:
    """Return the attributes of the store's files by the id of the file, without files that have none."""
    files = VECTOR_STORE_FILES.c
    statement = select(files.file_id, files.attributes).where(
        files.tenant == tenant, files.store_id == store_id, files.attributes != "{}"
    )
    return {file_id: json.loads(attributes) for file_id, attributes in connection.execute(statement)}


def present(connection: Connection, tenant: str, numbers: Iterable[int]) -> set[int]:
    """Return those of ``numbers`` that are passages of the tenant now."""
    found: set[int] = set()
    for part in _parts(sorted(set(numbers))):
        statement = select(PASSAGES.c.number).where(PASSAGES.c.tenant == tenant, PASSAGES.c.number.in_(part))
        found.update(connection.execute(statement).scalars())
    return found


def write_fingerprint(fingerprint: EmbedderFingerprint) -> str:
    """Return ``fingerprint`` as the database stores it."""
    return json.dumps(asdict(fingerprint), sort_keys=True)


def read_fingerprint(text: str | None) -> EmbedderFingerprint | None:
    """Return the stored fingerprint; None if the store has no vectors."""
    return None if text is None else EmbedderFingerprint(**json.loads(text))


def _its(tenant: str, store_id: str) -> tuple[Any, Any]:
    return VECTOR_STORES.c.id == store_id, VECTOR_STORES.c.tenant == tenant


def _of(tenant: str, store_id: str) -> tuple[Any, Any]:
    return PASSAGES.c.store_id == store_id, PASSAGES.c.tenant == tenant


def _record(connection: Connection, tenant: str, store_id: str, fingerprint: EmbedderFingerprint | None) -> None:
    """Record the embedder of a store without passages; reject another embedder for a store that has some."""
    state = state_of(connection, tenant, store_id)
    stored = None if state is None else state.fingerprint
    if stored == fingerprint:
        return
    if not count_passages(connection, tenant, store_id):
        text = None if fingerprint is None else write_fingerprint(fingerprint)
        connection.execute(update(VECTOR_STORES).where(*_its(tenant, store_id)).values(fingerprint=text))
        return
    if stored is not None and fingerprint is not None:
        require_same(stored, fingerprint, store=store_id)
    have = "have no vectors, and the site has an embedder" if stored is None else "have vectors without an embedder"
    raise ConflictError(
        f"the passages of {store_id} {have}. Run `{REINDEX} {store_id}` or configure the embedder as before",
        code="embedder_changed",
    )


def _remove(connection: Connection, tenant: str, store_id: str, groups: Sequence[str]) -> set[str]:
    """Remove the passages of ``groups``; return the subjects of their facts."""
    its = (*_of(tenant, store_id), PASSAGES.c.group_id.in_(groups))
    with_subject = select(PASSAGES.c.subject).where(*its, PASSAGES.c.subject.is_not(None)).distinct()
    subjects = set(connection.execute(with_subject).scalars())
    connection.execute(delete(PASSAGES).where(*its))
    return subjects


def _settle(connection: Connection, tenant: str, store_id: str, subjects: Iterable[str]) -> None:
    """Make each fact with one of ``subjects`` valid until the next one with its subject."""
    for part in _parts(sorted(subjects)):
        statement = (
            select(PASSAGES.c.number, PASSAGES.c.subject, PASSAGES.c.valid_until, _begin())
            .where(*_of(tenant, store_id), PASSAGES.c.subject.in_(part))
            .order_by(PASSAGES.c.subject, _begin(), PASSAGES.c.number)
        )
        rows = connection.execute(statement).all()
        for row, following in zip_longest(rows, rows[1:]):
            superseded = following is not None and following.subject == row.subject
            until = following.begin if following is not None and superseded else None
            if until != row.valid_until:
                connection.execute(
                    update(PASSAGES).where(PASSAGES.c.number == row.number).values(valid_until=until)
                )


def _begin() -> Any:
    return func.coalesce(PASSAGES.c.valid_from, PASSAGES.c.date, 0.0).label("begin")


def _row(
    tenant: str,
    store_id: str,
    group_id: str,
    passage: StoredPassage,
    fingerprint: EmbedderFingerprint | None,
) -> dict[str, Any]:
    counts = passage.counts
    if counts is None:
        counts = term_counts(passage.indexed_text or passage.text)
    return {
        "store_id": store_id,
        "tenant": tenant,
        "group_id": group_id,
        "kind": passage.kind,
        "subject": _storable(passage.subject)[:255] if passage.subject else None,
        "source": _storable(passage.source)[:512],
        "section": _storable(passage.section),
        "text": _storable(passage.text),
        "indexed_text": _storable(passage.indexed_text),
        "terms": _storable(json.dumps(dict(counts), ensure_ascii=False, separators=(",", ":"))),
        "vector": vector_bytes(passage.vector, 0 if fingerprint is None else fingerprint.dimensions),
        "date": passage.date,
        "valid_from": passage.valid_from,
        "valid_until": passage.valid_until,
    }


def vector_bytes(vector: NDArray[np.float32], dimensions: int) -> bytes:
    """Return ``vector`` with length 1 as the database stores it; ``dimensions`` 0 requires an empty one.

    Raises :class:`ValueError` if it has other dimensions, is zero or is not finite.
    """
    exact = np.asarray(vector, np.float64)
    if exact.shape != (dimensions,):
        raise ValueError(f"the vector has shape {exact.shape}; the embedder has {dimensions} dimensions")
    if not dimensions:
        return b""
    length = float(np.linalg.norm(exact))
    if not np.isfinite(length) or length == 0:
        raise ValueError("the vector is zero or not finite; check the embedder's response")
    return (exact / length).astype("<f4").tobytes()


def _storable(text: str) -> str:
    """Return ``text`` without the characters that UTF-8 or PostgreSQL refuses."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


def _stored(row: Row[Any]) -> StoredPassage:
    return StoredPassage(
        kind=row.kind,
        source=row.source,
        text=row.text,
        vector=np.frombuffer(getattr(row, "vector", b""), "<f4"),
        section=row.section,
        indexed_text=row.indexed_text,
        counts=_COUNTS.decode(row.terms),
        subject=row.subject,
        date=row.date,
        valid_from=row.valid_from,
        valid_until=row.valid_until,
        number=row.number,
        group_id=row.group_id,
    )


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
