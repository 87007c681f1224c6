"""Vector stores as sources of the memory: the store of a tenant's past chats, and stores by their names."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from sqlalchemy import Connection, and_, insert, or_, select
from sqlalchemy.exc import IntegrityError

from appliance.assistant import ids
from appliance.assistant.store.schema import VECTOR_STORES
from appliance.assistant.store.vector_stores import unexpired

CHATS = "chats"
"""The kind of the one store of a tenant's past chats, and its name as a source."""


def chats_store_id(tenant: str) -> str:
    """Return the id of the store of past chats: a digest, so that a tenant never has two of them."""
    return f"{ids.VECTOR_STORE}_{hashlib.sha256(f'chats of {tenant}'.encode()).hexdigest()[:32]}"


def ensure_chats_store(connection: Connection, tenant: str, now: float) -> str:
    """Make the store of past chats if the tenant has none; return its id."""
    store_id = chats_store_id(tenant)
    if connection.execute(select(VECTOR_STORES.c.id).where(VECTOR_STORES.c.id == store_id)).first() is None:
        row = {"id": store_id, "tenant": tenant, "kind": CHATS, "created_at": now, "last_active_at": now}
        try:
            with connection.begin_nested():
                connection.execute(insert(VECTOR_STORES).values(row))
        except IntegrityError:
            # Another process has made it meanwhile.
            return store_id
    return store_id


def memory_stores(connection: Connection, tenant: str, sources: Sequence[str]) -> list[str]:
    """Return the stores of the tenant that ``sources`` name; others, and expired stores, are omitted.

    Args:
        connection: A connection that reads.
        tenant: The owner.
        sources: `chats`, or ids or names of stores. A name that several stores have names all of them.
    """
    columns = select(VECTOR_STORES.c.id, VECTOR_STORES.c.name, VECTOR_STORES.c.kind)
    wanted = and_(VECTOR_STORES.c.tenant == tenant, unexpired(time.time()))
    named = or_(VECTOR_STORES.c.id.in_(sources), VECTOR_STORES.c.name.in_(sources), VECTOR_STORES.c.kind == CHATS)
    rows = connection.execute(columns.where(wanted, named).order_by(VECTOR_STORES.c.id)).all()
    found: list[str] = []
    for source in sources:
        if source == CHATS:
            found += [row.id for row in rows if row.kind == CHATS]
        else:
            found += [row.id for row in rows if row.kind != CHATS and source in (row.id, row.name)]
    return list(dict.fromkeys(found))


def unexpired_stores(connection: Connection, tenant: str, now: float) -> list[str]:
    """Return the ids of all stores of the tenant that are not expired at ``now``, past chats included."""
    wanted = and_(VECTOR_STORES.c.tenant == tenant, unexpired(now))
    return [*connection.scalars(select(VECTOR_STORES.c.id).where(wanted).order_by(VECTOR_STORES.c.id))]
