"""The file of results of a benchmark: one line of JSON a measurement, appended and never changed.

The first line has the conditions of the run. Each line ends with a checksum over it and over that of the line
before, which shows a changed, a lost and a repeated line. A killed process leaves at most one incomplete last line,
which the next run removes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import msgspec

from appliance.bench.grid import BenchCell
from appliance.errors import StoreError, UsageError
from appliance.system import files

VERSION = 1
MARK_BYTES = 16
"""Hexadecimal digits of a checksum."""

CellOutcome = Literal["measured", "failed"]


class BenchConditions(msgspec.Struct, frozen=True, kw_only=True):
    """All that must be equal in two runs that share a file. Empty strings are not known."""

    version: int = VERSION
    host: str
    model: str
    engine: str
    settings: str
    """A digest of the settings of the engine and its model."""
    cards: str
    driver: str
    output: int
    """Tokens of each response."""


class BenchFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The figures of one cell; None for a figure that was not measured."""

    rate: float | None = None
    """Output tokens per second."""
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    """Medians over the requests."""
    input: float | None = None
    output: float | None = None
    """Tokens per request, as the engine counted them."""
    prefix_hit: float = 0.0
    concurrency: float | None = None
    seconds: float | None = None
    power_w: float | None = None
    """Mean draw of the cards of the engine in watts."""
    limit_w: float | None = None
    """Power limit of a card during the cell."""
    joules_per_token: float | None = None
    """Energy of the cards for an output token, the prompt's energy included."""
    users_load: int = 0
    """The most requests of others that ran in the meantime."""
    stages: dict[str, float] = msgspec.field(default_factory=dict)
    """Seconds of the stages of a swap or a cold start."""


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file: a cell and its figures, or the reason of its failure."""

    cell: BenchCell
    outcome: CellOutcome
    at: float
    """Unix time of its end."""
    reason: str = ""
    figures: BenchFigures = BenchFigures()
    notes: tuple[str, ...] = ()


class ResultFile:
    """The results of one grid, in a file that only this process writes.

    Example::

        results = ResultFile.open(Path("bench/results.jsonl"), conditions)
        results.append(CellResult(cell=cell, outcome="measured", at=time.time(), figures=figures))
    """

    def __init__(self, path: Path, conditions: BenchConditions, results: list[CellResult], mark: str) -> None:
        self.path = path
        self.conditions = conditions
        self.results = results
        self._mark = mark

    @classmethod
    def open(cls, path: Path, conditions: BenchConditions) -> ResultFile:
        """Return the file, which is made unless it exists; an incomplete last line is removed.

        Raises :class:`UsageError` if it has other conditions, :class:`StoreError` if it is damaged or unwritable.
        """
        content = files.read(path)
        whole = b"" if content is None else content[: content.rfind(b"\n") + 1]
        if not whole:
            files.make_folder(path.parent)
            found = cls(path, conditions, [], "")
            _truncate(path, 0)
            found._write(msgspec.json.encode(conditions))
            return found
        found = cls._parsed(path, whole)
        if found.conditions != conditions:
            before, now = msgspec.to_builtins(found.conditions), msgspec.to_builtins(conditions)
            name = next(name for name in now if before[name] != now[name])
            raise UsageError(
                f"{path}: was measured with {name} = {before[name] or 'none'}, now it is {now[name] or 'none'}; "
                "name another folder with --out"
            )
        if content is not None and len(whole) < len(content):
            _truncate(path, len(whole))
        return found

    @classmethod
    def read(cls, path: Path) -> ResultFile:
        """Return the complete lines of the file; raises :class:`StoreError` that names a damaged line."""
        content = files.read(path)
        if content is None:
            raise StoreError(f"{path}: does not exist; run the benchmark first")
        return cls._parsed(path, content)

    @classmethod
    def _parsed(cls, path: Path, content: bytes) -> ResultFile:
        conditions: BenchConditions | None = None
        results = []
        mark = ""
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            body, _, found = line.rpartition(b" ")
            mark = _mark_of(mark, body)
            try:
                if found.decode("ascii", "replace") != mark:
                    raise ValueError("its checksum differs")  # noqa: TRY301 - one message for all damage
                if number == 1:
                    conditions = msgspec.json.decode(body, type=BenchConditions)
                else:
                    results.append(msgspec.json.decode(body, type=CellResult))
            except ValueError as error:
                raise StoreError(
                    f"{path}: line {number} is damaged ({error}); restore the file, or name another --out"
                ) from None
        if conditions is None:
            raise StoreError(f"{path}: has no complete line; delete it")
        return cls(path, conditions, results, mark)

    @property
    def done(self) -> frozenset[BenchCell]:
        """The cells that are measured, and those that failed."""
        return frozenset(result.cell for result in self.results)

    def append(self, result: CellResult) -> None:
        """Add ``result`` durably. Raises :class:`StoreError`; the file then ends with the line before."""
        self._write(msgspec.json.encode(result))
        self.results.append(result)

    def _write(self, body: bytes) -> None:
        mark = _mark_of(self._mark, body)
        line = body + b" " + mark.encode() + b"\n"
        size = 0
        try:
            number = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                size = os.fstat(number).st_size
                _write_whole(number, line, size)
            finally:
                os.close(number)
        except OSError as error:
            raise StoreError.unwritable(self.path, error) from None
        self._mark = mark


def _write_whole(number: int, line: bytes, size: int) -> None:
    """Append ``line`` to a file of ``size`` bytes, or leave it as it was."""
    try:
        left = line
        while left:
            left = left[os.write(number, left) :]
        os.fsync(number)
    except OSError:
        os.ftruncate(number, size)
        raise


def _mark_of(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + b" " + body).hexdigest()[:MARK_BYTES]


def _truncate(path: Path, size: int) -> None:
    try:
        if path.exists():
            os.truncate(path, size)
    except OSError as error:
        raise StoreError.unwritable(path, error) from None
