"""The assistant's database on SQLite, and on a running PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.assistant.store.database import Database


@pytest.fixture
def database(tmp_path: Path, url: str | None) -> Iterator[Database]:
    """An empty database of each kind."""
    opened = Database(tmp_path, url)
    yield opened
    opened.close()
