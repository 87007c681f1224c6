"""Each feature of ours in docs/features.md names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "features.md"
_SOURCE = re.compile(r"^(\d+)\. ", re.MULTILINE)
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


def unsourced(text: str) -> list[str]:
    """Return the rows whose cells of other services have no known value, or no source in the list of ``text``."""
    listed = set(_SOURCE.findall(text))
    found = []
    for row in feature_rows(text):
        for cell in row[2:6]:
            value, _, number = cell.partition(" ")
            valid = number in listed if value in ("yes", "part") else not number and value in ("no", "?")
            if not valid:
                found.append(f"{row[0]}: {cell}")
    return found


def test_a_row_has_a_value_for_each_service_with_its_source() -> None:
    text = PAGE.read_text()
    for row in feature_rows(text):
        assert len(row) == 7, row
        assert row[1] in ("yes", "part", "no"), row
    assert unsourced(text) == []
    used = {cell.partition(" ")[2] for row in feature_rows(text) for cell in row[2:6]} - {""}
    assert used == set(_SOURCE.findall(text)), "each source is used"


def test_a_claim_without_a_source_is_found() -> None:
    table = "| feature | here | a | b | c | d | test |\n|---|\n| x | no | {} | no | ? | no | |\n\n1. A page\n"
    assert unsourced(table.format("yes 1")) == []
    for cell in ("yes", "yes 2", "no 1", "maybe"):
        assert unsourced(table.format(cell)) == [f"x: {cell}"]


@pytest.mark.parametrize(
    "named", ["tests/absent.py::test_x", "tests/client_programs/test_features.py::test_absent"]
)
def test_a_test_that_does_not_exist_is_reported(named: str) -> None:
    assert missing_tests(f"| a | yes | `{named}` |", ROOT) == [named]
