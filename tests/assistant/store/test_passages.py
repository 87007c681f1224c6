"""Passages on SQLite and PostgreSQL: whole groups, one embedder a store, superseded facts, tenants apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import insert, select, update

from appliance.assistant.store.database import Database
from appliance.assistant.store.passages import (
    attributes_of,
    count_change,
    count_passages,
    passages_of,
    present,
    remove_group,
    replace_group,
    state_of,
    versions_of,
)
from appliance.assistant.store.schema import FILES, PASSAGES, VECTOR_STORE_FILES
from appliance.errors import ConflictError
from tests.assistant.store.passage_rows import SMALL, new_store, passage, put


def texts(database: Database, tenant: str = "ada") -> list[str]:
    with database.reading() as connection:
        return [one.text for one in passages_of(connection, tenant, "vs_1")]


def validity(database: Database) -> dict[str, float | None]:
    with database.reading() as connection:
        return {one.text: one.valid_until for one in passages_of(connection, "ada", "vs_1")}


@pytest.fixture(autouse=True)
def _store(database: Database) -> None:
    new_store(database, "vs_1")


def test_a_passage_returns_as_it_was_stored(database: Database) -> None:
    stored = replace(
        passage("Заседание 27.11.2026", subject="meeting.date", since=5.0),
        section="§ 1",
        indexed_text="Context: Заседание 27.11.2026",
    )
    assert put(database, "g", stored)
    with database.reading() as connection:
        (found,) = passages_of(connection, "ada", "vs_1", group_id="g")
    assert (found.text, found.section, found.subject, found.date) == (stored.text, "§ 1", "meeting.date", 5.0)
    assert found.counts is not None
    assert found.counts["day:2026-11-27"] == 1
    assert found.counts["context"] == 1
    assert np.allclose(found.vector, np.array([1, 2]) / np.sqrt(5))


def test_a_group_is_replaced_whole_and_others_stay(database: Database) -> None:
    put(database, "g", passage("one"), passage("two"))
    put(database, "h", passage("other"))
    put(database, "g", passage("three"))
    assert sorted(texts(database)) == ["other", "three"]
    with database.reading() as connection:
        assert count_passages(connection, "ada", "vs_1") == 2
        assert count_passages(connection, "ada", "vs_1", group_id="g") == 1
        state = state_of(connection, "ada", "vs_1")
    assert state is not None
    assert (state.changes, state.fingerprint) == (3, SMALL)


def test_a_failure_in_the_transaction_leaves_the_old_group(database: Database) -> None:
    put(database, "g", passage("old"))

    def fails() -> None:
        with database.writing() as connection:
            replace_group(connection, "ada", "vs_1", "g", [passage("new")], fingerprint=SMALL)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert texts(database) == ["old"]


def test_numbers_of_removed_passages_are_not_used_again(database: Database) -> None:
    put(database, "g", passage("one"))
    with database.reading() as connection:
        before = versions_of(connection, "ada", "vs_1")
    put(database, "g", passage("two"))
    with database.reading() as connection:
        after = versions_of(connection, "ada", "vs_1")
        assert present(connection, "ada", [before[0].number, after[0].number, 10**6]) == {after[0].number}
    assert after[0].number > before[0].number


def test_another_tenant_changes_and_reads_nothing(database: Database) -> None:
    put(database, "g", passage("mine"))
    assert not put(database, "g", passage("theirs"), tenant="bob")
    with database.writing() as connection:
        assert remove_group(connection, "bob", "g") == 0
        assert not count_change(connection, "bob", "vs_1")
    with database.reading() as connection:
        numbers = [one.number for one in versions_of(connection, "ada", "vs_1")]
        assert state_of(connection, "bob", "vs_1") is None
        assert not present(connection, "bob", numbers)
        assert versions_of(connection, "bob", "vs_1") == []
    assert texts(database) == ["mine"]
    assert texts(database, "bob") == []


def test_an_absent_store_gets_no_passage(database: Database) -> None:
    with database.writing() as connection:
        assert not replace_group(connection, "ada", "vs_2", "g", [passage("x")], fingerprint=SMALL)
        assert connection.execute(select(PASSAGES.c.number)).all() == []


def test_a_group_leaves_all_stores_of_its_tenant(database: Database) -> None:
    new_store(database, "vs_2")
    put(database, "g", passage("one"), passage("two"))
    with database.writing() as connection:
        replace_group(connection, "ada", "vs_2", "g", [passage("three")], fingerprint=SMALL)
        assert remove_group(connection, "ada", "g", "vs_2") == 1
        replace_group(connection, "ada", "vs_2", "g", [passage("three")], fingerprint=SMALL)
        assert remove_group(connection, "ada", "g") == 3
        assert connection.execute(select(PASSAGES.c.number)).all() == []
        state = state_of(connection, "ada", "vs_1")
    assert state is not None
    assert state.changes == 2


def test_a_newer_fact_ends_the_older_one_whatever_the_order(database: Database) -> None:
    put(database, "new", passage("Lives in Kazan", subject="home", since=20.0))
    put(database, "old", passage("Lives in Omsk", subject="home", since=10.0), passage("no fact"))
    put(database, "other", passage("Works at a mill", subject="work", since=30.0))
    assert validity(database) == {
        "Lives in Omsk": 20.0,
        "Lives in Kazan": None,
        "no fact": None,
        "Works at a mill": None,
    }


def test_an_older_fact_is_valid_again_without_the_newer_one(database: Database) -> None:
    put(database, "old", passage("Lives in Omsk", subject="home", since=10.0))
    put(database, "new", passage("Lives in Kazan", subject="home", since=20.0))
    assert validity(database)["Lives in Omsk"] == 20.0
    with database.writing() as connection:
        remove_group(connection, "ada", "new")
    assert validity(database) == {"Lives in Omsk": None}
    put(database, "new", passage("Lives in Kazan", subject="home", since=20.0))
    put(database, "new", passage("Moved, unknown"))
    assert validity(database)["Lives in Omsk"] is None


def test_another_embedder_is_refused_until_the_store_is_empty(database: Database) -> None:
    put(database, "g", passage("one"))
    larger = replace(SMALL, revision="r2")
    with database.writing() as connection, pytest.raises(ConflictError, match="appliance memory reindex vs_1"):
        replace_group(connection, "ada", "vs_1", "h", [passage("two")], fingerprint=larger)
    words = replace(passage("words"), vector=np.zeros(0, np.float32))
    with database.writing() as connection, pytest.raises(ConflictError, match="reindex"):
        replace_group(connection, "ada", "vs_1", "h", [words], fingerprint=None)
    with database.writing() as connection:
        remove_group(connection, "ada", "g")
        assert replace_group(connection, "ada", "vs_1", "h", [words], fingerprint=None)
    with database.writing() as connection, pytest.raises(ConflictError, match="have no vectors"):
        replace_group(connection, "ada", "vs_1", "g", [passage("one")], fingerprint=SMALL)


@pytest.mark.parametrize("vector", [[0.0, 0.0], [1.0], [float("nan"), 1.0], []])
def test_a_vector_that_cannot_be_compared_is_refused(database: Database, vector: list[float]) -> None:
    unusable = replace(passage("x"), vector=np.array(vector, np.float32))
    with pytest.raises(ValueError, match="vector"):
        put(database, "g", unusable)
    assert texts(database) == []


def test_text_that_a_database_refuses_is_stored_without_it(database: Database) -> None:
    put(database, "g", replace(passage("a\0b\ud800c"), source="t\0" + "x" * 600))
    assert texts(database) == ["a b?c"]


def test_attributes_are_those_of_the_files_of_the_store(database: Database) -> None:
    file = {"id": "file-1", "tenant": "ada", "filename": "a", "purpose": "x", "bytes": 1, "digest": b""}
    link = {"store_id": "vs_1", "file_id": "file-1", "tenant": "ada", "key_id": "k", "status": "completed"}
    with database.writing() as connection:
        connection.execute(insert(FILES).values(file | {"created_at": 1.0}))
        connection.execute(insert(VECTOR_STORE_FILES).values(link | {"chunking": "{}", "created_at": 1.0}))
        assert attributes_of(connection, "ada", "vs_1") == {}
        connection.execute(update(VECTOR_STORE_FILES).values(attributes='{"year": 2026}'))
        assert attributes_of(connection, "ada", "vs_1") == {"file-1": {"year": 2026}}
        assert attributes_of(connection, "bob", "vs_1") == {}


def test_a_reader_sees_one_state_during_a_change(database: Database) -> None:
    put(database, "g", passage("old"))
    with database.reading() as connection:
        versions = versions_of(connection, "ada", "vs_1")
        put(database, "g", passage("new"))
        found = passages_of(connection, "ada", "vs_1", numbers=[one.number for one in versions])
        assert [one.text for one in found] == ["old"]
    assert texts(database) == ["new"]
