"""The metrics of an agent: other users read them, and a folder that refuses them is an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from appliance.errors import StoreError
from appliance.system.metrics_file import write_metrics


@pytest.fixture
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("appliance_x", "A figure.", registry=made).set(3)
    return made


@pytest.fixture
def private() -> Iterator[None]:
    """The umask of a hardened unit."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("private")
def test_every_user_reads_the_file_of_a_hardened_unit(tmp_path: Path, registry: CollectorRegistry) -> None:
    file = tmp_path / "x.prom"
    for _ in range(2):
        write_metrics(file, registry)
        assert file.stat().st_mode & 0o777 == 0o644
    assert "appliance_x 3.0" in file.read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["x.prom"]


def test_a_missing_folder_is_an_error(tmp_path: Path, registry: CollectorRegistry) -> None:
    with pytest.raises(StoreError, match=r"absent/x\.prom cannot be written"):
        write_metrics(tmp_path / "absent" / "x.prom", registry)
