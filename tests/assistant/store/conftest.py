"""The assistant's database on SQLite, and on a running PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.assistant.store.database import Database


@pytest.fixture
def database(tmp_path: Path, migrated_folder: Path, migrated_url: str | None) -> Iterator[Database]:
    """A database of each kind, without a row."""
    if migrated_url is None:
        shutil.copytree(migrated_folder, tmp_path, dirs_exist_ok=True)
    opened = Database(tmp_path, migrated_url)
    yield opened
    opened.close()
