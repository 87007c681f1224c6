"""A store of the memory and its passages, in a database of the assistant."""

from __future__ import annotations

import numpy as np
from sqlalchemy import insert

from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.assistant.store.database import Database
from appliance.assistant.store.passages import StoredPassage, replace_group
from appliance.assistant.store.schema import VECTOR_STORES

SMALL = EmbedderFingerprint("small", "r1", "mean", "", 2, "float32")


def new_store(database: Database, store_id: str, tenant: str = "ada") -> str:
    row = {"id": store_id, "tenant": tenant, "kind": "files", "created_at": 1.0, "last_active_at": 1.0}
    with database.writing() as connection:
        connection.execute(insert(VECTOR_STORES).values(row))
    return store_id


def passage(text: str, *, subject: str | None = None, since: float | None = None) -> StoredPassage:
    kind = "fact" if subject else "chunk"
    vector = np.array([1.0, 2.0], np.float32)
    return StoredPassage(kind, "title", text, vector, subject=subject, date=since, valid_from=since)


def put(database: Database, group: str, *passages: StoredPassage, tenant: str = "ada") -> bool:
    with database.writing() as connection:
        return replace_group(connection, tenant, "vs_1", group, passages, fingerprint=SMALL)
