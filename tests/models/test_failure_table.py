"""The table of failures in docs/models.md: each test that it names exists."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

SECTION = (ROOT / "docs" / "models.md").read_text().partition("## Fifteen failures\n")[2].partition("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SECTION.splitlines()
    if re.match(r"\| \d", line)
]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_the_table_has_each_of_the_fifteen_failures_once() -> None:
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, 16)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_named_tests_exist(row: list[str]) -> None:
    proof = " ".join(row[3:])
    named = NAMED.findall(proof)
    assert named or "python -m tests." in proof, "a test or a command shows it"
    for file, name in named:
        text = (ROOT / file).read_text()
        assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file} has no {name}"
