"""Takes over what earlier versions kept in two files, ``keys.sqlite`` and ``usage.sqlite``; nothing is lost."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

KEYS = """
INSERT OR IGNORE INTO keys (id, "user", digest, created_at, expires_at, revoked_at)
SELECT id, user, digest, created_at, expires_at, revoked_at FROM old.keys
"""

USAGE = """
INSERT INTO usage (started_at, request_id, "user", key_id, endpoint, name, model, role, engine, stream, status,
    outcome, prompt_tokens, cached_tokens, completion_tokens, estimated, queue_ms, ttft_ms, duration_ms)
SELECT started_at, request_id, user, key_id, endpoint, name, model, '', engine, stream, status,
    outcome, prompt_tokens, cached_tokens, completion_tokens, estimated, 0.0, ttft_ms, duration_ms FROM old.usage
ORDER BY rowid
"""


def take_over(engine: Engine, folder: Path) -> None:
    """Copy both old files' rows and keep the files under another name."""
    for name, statement in (("keys", KEYS), ("usage", USAGE)):
        path = folder / f"{name}.sqlite"
        if not path.exists():
            continue
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ATTACH DATABASE ? AS old", (str(path),))
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.exec_driver_sql(statement)
            if name == "keys":
                connection.exec_driver_sql("UPDATE changes SET number = number + 1 WHERE what = 'keys'")
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("DETACH DATABASE old")
        path.rename(folder / f"{name}.sqlite.taken-over")
        for rest in ("-wal", "-shm"):
            (folder / f"{name}.sqlite{rest}").unlink(missing_ok=True)
