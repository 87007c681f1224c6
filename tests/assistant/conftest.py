"""Databases of the assistant: SQLite, and a running PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.assistant.store.database import Database
from tests.postgres import Cluster, running_cluster

MIGRATED = "migrated"
"""The PostgreSQL database from which others are copied."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as started:
        yield started


@pytest.fixture(scope="session")
def migrated_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a SQLite database that has all tables and no row. A copy is faster than the migrations."""
    folder = tmp_path_factory.mktemp(MIGRATED)
    Database(folder).close()
    return folder


@pytest.fixture(scope="session")
def migrated_cluster(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The running PostgreSQL with the database :data:`MIGRATED`."""
    Database(tmp_path_factory.mktemp(MIGRATED), cluster.database(MIGRATED)).close()
    return cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of the database."""
    return str(request.param)


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str | None:
    """The URL of a new PostgreSQL database, or ``None`` for SQLite."""
    if kind == "sqlite":
        return None
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster.database(f"d{time.monotonic_ns()}")


@pytest.fixture
def migrated_url(kind: str, request: pytest.FixtureRequest) -> str | None:
    """The URL of a PostgreSQL database with all tables and no row, or ``None`` for SQLite."""
    if kind == "sqlite":
        return None
    cluster: Cluster = request.getfixturevalue("migrated_cluster")
    return cluster.database(f"m{time.monotonic_ns()}", MIGRATED)
