"""A consistent copy of the bot's database for backups. A restore puts the file back while the bot is stopped."""

from __future__ import annotations

from pathlib import Path

from appliance.store.copies import check_sqlite, copy_sqlite
from appliance.system import files
from appliance.telegram.store.database import FILE

COPY = "backup"
"""Folder of the copy in the bot's data folder."""


def write_bot_copy(folder: Path) -> int | None:
    """Replace the copy of the database in ``folder``; return its number of links.

    Returns ``None`` before the first start of the bot, when there is no database. Raises :class:`StoreError` if
    something cannot be read or written; the earlier copy then stays.
    """
    source, target = folder / FILE, folder / COPY
    files.make_folder(target)
    if not source.exists():
        return None
    new = target / f"{FILE}.new"
    copy_sqlite(source, new)
    rows = check_sqlite(new, fix="restore the bot's database from an earlier snapshot", close=True, count=["links"])
    files.move(new, target / FILE)
    files.sync_folder(target)
    return rows["links"]
