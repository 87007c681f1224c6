"""Fixtures: a machine with backups, fresh for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.watch.backup.site import BackedUpMachine, make_machine


@pytest.fixture
def machine(tmp_path: Path) -> BackedUpMachine:
    return make_machine(tmp_path / "machine")
