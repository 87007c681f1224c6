"""The check of type names: a name with two definitions is an error that names both places."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import names


def test_a_name_with_two_definitions_is_reported_with_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "appliance").mkdir()
    (tmp_path / "appliance" / "a.py").write_text("class Card:\n    pass\n")
    monkeypatch.setattr(names, "ROOT", tmp_path)
    assert names.main() == 0
    (tmp_path / "appliance" / "b.py").write_text("x = 1\nclass Card:\n    pass\n")
    assert names.main() == 1
    assert "Card: appliance/a.py:1, appliance/b.py:2" in capsys.readouterr().out
