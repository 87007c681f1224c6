"""Each feature of ours in docs/features.md names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "features.md"
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def missing_tests(text: str, root: Path) -> list[str]:
    """Return the tests that ``text`` names and that are not functions of their files."""
    missing = []
    for file, name in _NAMED.findall(text):
        path = root / file
        tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        if name not in functions:
            missing.append(f"{file}::{name}")
    return missing


def feature_rows(text: str) -> list[list[str]]:
    """Return the cells of all rows of the tables with a column of tests."""
    rows, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
        elif "| test |" in line:
            inside = True
        elif inside and not line.startswith("|---"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_each_feature_of_ours_has_a_test_that_exists() -> None:
    text = PAGE.read_text()
    rows = feature_rows(text)
    assert len(rows) >= 20
    untested = [row[0] for row in rows if row[1] in ("yes", "part") and not _NAMED.search(row[-1])]
    assert untested == []
    assert missing_tests(text, ROOT) == []


def test_a_row_has_a_value_for_each_service() -> None:
    for row in feature_rows(PAGE.read_text()):
        assert len(row) == 7, row
        assert set(row[1:6]) <= {"yes", "part", "no", "?"}, row


@pytest.mark.parametrize(
    "named", ["tests/absent.py::test_x", "tests/client_programs/test_features.py::test_absent"]
)
def test_a_test_that_does_not_exist_is_reported(named: str) -> None:
    assert missing_tests(f"| a | yes | `{named}` |", ROOT) == [named]
