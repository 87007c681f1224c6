"""The table of the network tests, from their reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.network import together
from tests.network.table import BEGIN, END, Row, put, read, table

REPORT = """<testsuites><testsuite>
<testcase name="test_a" time="1.25"><properties>
<property name="row" value="5 cut&#9;back&#9;{seen}"/>
</properties></testcase>
<testcase name="test_control_b" time="1"/>
<testcase name="test_c" time="0"><skipped message="NOT CHECKED"/></testcase>
</testsuite></testsuites>"""


def test_the_table_has_rows_and_runs(tmp_path: Path) -> None:
    rows: dict[str, Row] = {}
    runs = []
    for number, seen in enumerate(("1 s", "1 s", "2 s")):
        report = tmp_path / f"{number}.xml"
        report.write_text(REPORT.format(seen=seen))
        runs.append(read([report], rows, 60 + number))
    text = table(rows, runs)
    assert "| 5 cut | back | 1 s / 2 s | 1.2 / 1.2 / 1.2 |" in text
    assert "2 passed in 60 s, 1 skipped; 2 passed in 61 s, 1 skipped" in text
    assert "1 of the tests are controls" in text


def test_only_the_text_between_the_marks_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    put("new", document)
    assert document.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    document.write_text("no marks")
    with pytest.raises(SystemExit, match="no marks for the table"):
        put("new", document)


def test_every_file_is_run_once() -> None:
    names = [name for group in together.groups() for name in group]
    assert sorted(names) == sorted(file.name for file in together.HERE.glob("test_*.py"))
    assert set(together.APART) < set(names)
