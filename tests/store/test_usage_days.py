"""Stored sums of closed days: equal to the usage records, also after a late record, a restore and a clock ahead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, delete, select, update

from appliance.gateway.usage_writer import UsageWriter
from appliance.store.calendar import DAY_S, day_of
from appliance.store.database import open_database
from appliance.store.models import UsageRow
from appliance.store.schema import USAGE, USAGE_DAYS
from appliance.store.usage_days import tokens_of_days
from tests.conftest import wait_until

TODAY = 20_000
NOW = TODAY * DAY_S + 3600.0
DAYS = range(TODAY - 4, TODAY + 2)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = open_database(tmp_path, None)
    yield made
    made.dispose()


@pytest.fixture
def clock() -> list[float]:
    """The time of the writer, which a test changes."""
    return [NOW]


@pytest.fixture
def writer(tmp_path: Path, engine: Engine, clock: list[float]) -> Iterator[UsageWriter]:
    made = UsageWriter(tmp_path, clock=lambda: clock[0])
    yield made
    made.close()


def usage_row(day: int, user: str, tokens: int) -> UsageRow:
    """Return a record of ``tokens`` prompt tokens."""
    return UsageRow(day * DAY_S + 60.0, "r", user, "0123456789ab", "/v1/chat/completions", prompt_tokens=tokens)


def write(writer: UsageWriter, *rows: UsageRow) -> None:
    for row in rows:
        writer.put(row)
    wait_until(lambda: writer.days(DAYS)[0] == writer.accepted, "the rows are committed", 60)


def stored_days(engine: Engine) -> set[int]:
    with engine.connect() as connection:
        return set(connection.execute(select(USAGE_DAYS.c.day)).scalars())


def test_closed_days_are_stored_and_the_two_newest_are_not(writer: UsageWriter, engine: Engine) -> None:
    write(writer, *(usage_row(TODAY - ago, user, 10 + ago) for ago in range(4) for user in ("ada", "bob/web")))
    expected: dict[int, dict[str, int]] = {day: {} for day in DAYS}
    expected |= {TODAY - ago: {"ada": 10 + ago, "bob": 10 + ago} for ago in range(4)}
    assert writer.days(DAYS)[1] == expected
    assert stored_days(engine) == {TODAY - 4, TODAY - 3, TODAY - 2}
    assert writer.days(DAYS)[1] == expected


def test_a_stored_day_is_not_computed_again(writer: UsageWriter, engine: Engine) -> None:
    write(writer, usage_row(TODAY - 3, "ada", 10), usage_row(TODAY, "ada", 1))
    with engine.begin() as connection:
        connection.execute(update(USAGE).values(prompt_tokens=99))
    found = writer.days(DAYS)[1]
    assert (found[TODAY - 3], found[TODAY]) == ({"ada": 10}, {"ada": 99})


def test_a_record_that_is_written_during_the_sum_is_in_the_next_one(
    writer: UsageWriter, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def summed(connection: Connection, days: range) -> tuple[dict[int, dict[str, int]], set[int]]:
        found = tokens_of_days(connection, days)
        writer.put(usage_row(TODAY - 3, "ada", 10))
        wait_until(lambda: writer.consistent(lambda _: None)[0] == 1, "the row is committed", 60)
        return found

    with monkeypatch.context() as patched:
        patched.setattr("appliance.gateway.usage_writer.tokens_of_days", summed)
        assert writer.days(DAYS)[1][TODAY - 3] == {}
    assert writer.days(DAYS)[1][TODAY - 3] == {"ada": 10}
    assert TODAY - 3 in stored_days(engine)


def test_a_late_record_counts(writer: UsageWriter, engine: Engine) -> None:
    write(writer, usage_row(TODAY - 3, "ada", 10))
    write(writer, usage_row(TODAY - 3, "bob", 5))
    assert writer.days(DAYS)[1][TODAY - 3] == {"ada": 10, "bob": 5}


def test_sums_of_a_clock_that_was_ahead_are_computed_again(
    writer: UsageWriter, engine: Engine, clock: list[float]
) -> None:
    write(writer, usage_row(TODAY, "ada", 10))
    clock[0] = NOW + 5 * DAY_S
    writer.days(DAYS)
    assert TODAY in stored_days(engine)
    clock[0] = NOW
    write(writer, usage_row(TODAY, "ada", 7))
    assert writer.days(DAYS)[1][TODAY] == {"ada": 17}
    clock[0] = NOW + 2 * DAY_S
    assert day_of(clock[0]) == TODAY + 2
    assert writer.days(DAYS)[1][TODAY] == {"ada": 17}


def test_a_restore_without_the_sums_loses_nothing(writer: UsageWriter, engine: Engine) -> None:
    write(writer, usage_row(TODAY - 3, "ada", 10))
    with engine.begin() as connection:
        connection.execute(delete(USAGE_DAYS))
    assert writer.days(DAYS)[1][TODAY - 3] == {"ada": 10}
    assert TODAY - 3 in stored_days(engine)
