"""Reports of the smoke test: kept, read again, shown as a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.smoketest import report
from appliance.smoketest.report import Proof, SmokeStep
from tests.smoketest.conftest import HERE, a_proof


def test_an_incomplete_report_is_ignored(tmp_path: Path) -> None:
    folder = report.folder_of(tmp_path, HERE.running.generation)
    report.save(a_proof(), folder)
    text = (folder / "report.json").read_text()
    (folder / "report.json").write_text(text[: len(text) // 2])
    assert report.latest(tmp_path, HERE.running.generation) is None
    (folder / "report.json").write_text("[]")
    assert report.latest(tmp_path, HERE.running.generation) is None


def test_a_report_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        report.save(a_proof(), tmp_path / "file" / "8")


def test_a_test_without_steps_does_not_pass() -> None:
    empty = Proof("/nix/store/here", None, True, "", 0.0, ())
    assert not empty.passed
    assert "no step was run" in empty.line


def test_the_page_escapes_its_text() -> None:
    page = report.page(Proof("/nix/store/<b>", None, True, "", 0.0, (SmokeStep("<i>", "fail", "<script>"),)))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
