"""The file of results: appended, checked, resumed; damage and other conditions are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from appliance.bench.grid import BenchCell
from appliance.bench.results import BenchConditions, BenchFigures, CellResult, ResultFile
from appliance.errors import StoreError, UsageError
from tests.smalldisk import SmallDisk

CONDITIONS = BenchConditions(
    host="gpu", model="chat", engine="chat", settings="1", cards="1 x A", driver="580", output=128
)


def result(batch: int, rate: float = 10.0) -> CellResult:
    cell = BenchCell("load", batch=batch, input=512)
    return CellResult(cell=cell, outcome="measured", at=1.0, figures=BenchFigures(rate=rate))


@pytest.fixture
def file(tmp_path: Path) -> ResultFile:
    """A file with two results."""
    made = ResultFile.open(tmp_path / "results.jsonl", CONDITIONS)
    made.append(result(1))
    made.append(result(4))
    return made


def test_a_second_run_has_the_results_of_the_first(file: ResultFile) -> None:
    again = ResultFile.open(file.path, CONDITIONS)
    assert again.done == {result(1).cell, result(4).cell}
    again.append(result(16))
    assert [one.cell.batch for one in ResultFile.read(file.path).results] == [1, 4, 16]


@pytest.mark.parametrize("rest", [b"{", b'{"cell"', b"x" * 5000])
def test_the_incomplete_line_of_a_killed_run_is_removed(file: ResultFile, rest: bytes) -> None:
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + rest)
    again = ResultFile.open(file.path, CONDITIONS)
    assert file.path.read_bytes() == whole
    again.append(result(16))
    assert len(ResultFile.read(file.path).results) == 3


def test_a_file_that_was_killed_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"version":1,"ho')
    ResultFile.open(path, CONDITIONS)
    assert ResultFile.read(path).conditions == CONDITIONS


def test_a_damaged_line_is_named(file: ResultFile) -> None:
    file.path.write_bytes(file.path.read_bytes().replace(b'"rate":10.0', b'"rate":90.0', 1))
    with pytest.raises(StoreError, match=r"results\.jsonl: line 2 is damaged"):
        ResultFile.open(file.path, CONDITIONS)


def test_a_lost_and_a_repeated_line_are_found(file: ResultFile) -> None:
    lines = file.path.read_bytes().splitlines(keepends=True)
    file.path.write_bytes(lines[0] + lines[2])
    with pytest.raises(StoreError, match="line 2 is damaged"):
        ResultFile.read(file.path)
    file.path.write_bytes(b"".join([*lines, lines[2]]))
    with pytest.raises(StoreError, match="line 4 is damaged"):
        ResultFile.read(file.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": "2"}, "settings = 1, now it is 2"),
        ({"driver": ""}, "driver = 580, now it is none"),
        ({"output": 64}, "output = 128, now it is 64"),
    ],
)
def test_other_conditions_are_refused_and_named(file: ResultFile, changes: dict[str, str], message: str) -> None:
    before = file.path.read_bytes()
    with pytest.raises(UsageError, match=message):
        ResultFile.open(file.path, replace(CONDITIONS, **changes))
    assert file.path.read_bytes() == before


def test_a_full_disk_leaves_the_lines_before(small_disk: SmallDisk) -> None:
    file = ResultFile.open(small_disk.folder / "results.jsonl", CONDITIONS)
    # Lines that begin in the last free block of the file do not fit into it.
    small_disk.fill()

    def fill() -> None:
        for number in range(200):
            file.append(result(number))

    with pytest.raises(StoreError, match=r"results\.jsonl"):
        fill()
    kept = ResultFile.read(file.path)
    assert len(kept.results) == len(file.results) < 200
    small_disk.free()
    file.append(result(500))
    assert ResultFile.read(file.path).results[-1].cell.batch == 500


def test_a_missing_file_is_an_error_of_the_report(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist; run the benchmark first"):
        ResultFile.read(tmp_path / "results.jsonl")
