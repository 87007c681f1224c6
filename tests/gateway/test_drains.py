"""The file of the drains."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import StoreError
from appliance.gateway.drains import NAME, DrainFile, known_drains

REASONS = st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=40), max_size=4)


@settings(deadline=None, max_examples=30)
@given(REASONS)
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, reasons: dict[str, str]) -> None:
    file = DrainFile(tmp_path_factory.getbasetemp() / NAME)
    file.save(reasons)
    assert file.load() == reasons
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_missing_file_drains_nothing(tmp_path: Path) -> None:
    assert DrainFile(tmp_path / NAME).load() == {}


def test_an_unreadable_file_is_reported_and_drains_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).mkdir()
    with caplog.at_level(logging.ERROR):
        assert DrainFile(tmp_path / NAME).load() == {}
    assert "no replica is drained" in caplog.text
    with pytest.raises(StoreError):
        DrainFile(tmp_path / NAME).save({"left": "hot"})


@pytest.mark.parametrize("content", [b'{"left": 5}', b'{"left": null}', b'{"left": "hot', b"\xff\xfe", b"[]", b""])
def test_a_damaged_file_is_kept_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with caplog.at_level(logging.ERROR):
        assert DrainFile(tmp_path / NAME).load() == {}
    assert f"{NAME} is damaged" in caplog.text
    assert (tmp_path / "drained.damaged").read_bytes() == content
    assert not (tmp_path / NAME).exists()


def test_replicas_that_the_site_no_longer_has_are_dropped() -> None:
    assert known_drains({"left": "hot", "sold": "old"}, ["left", "right"]) == {"left": "hot"}
