"""The copy for a backup: consistent while the database is in use, whole or refused, and its way back."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from appliance.assistant.store.copy import UNUSED_NUMBERS, load_copy, write_copy
from appliance.assistant.store.database import FILE, Database
from appliance.assistant.store.passages import numbers_of
from appliance.assistant.store.schema import CONVERSATION_ITEMS, CONVERSATIONS, ITEMS
from appliance.errors import StoreError
from tests.assistant.store.passage_rows import new_store, passage, put

ROOT = Path(__file__).parents[3]


def add(database: Database, number: int) -> None:
    """Add a conversation with one item, in one transaction."""
    with database.writing() as connection:
        common = {"tenant": "ada", "created_at": float(number)}
        conversation = {"id": f"conv_{number}", "updated_at": 1.0, "key_id": "0" * 12, **common}
        connection.execute(insert(CONVERSATIONS).values(conversation))
        connection.execute(
            insert(ITEMS).values(id=f"msg_{number}", type="message", body='{"text": "привет"}', **common)
        )
        connection.execute(
            insert(CONVERSATION_ITEMS).values(conversation_id=f"conv_{number}", position=0, item_id=f"msg_{number}")
        )


def test_a_copy_of_a_database_in_use_has_whole_transactions(tmp_path: Path) -> None:
    database = Database(tmp_path / "data")
    add(database, 0)
    stop = threading.Event()

    def write() -> None:
        number = 1
        while not stop.is_set():
            add(database, number)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            rows = write_copy(database, tmp_path / "copy")
            assert rows["conversations"] == rows["items"] == rows["conversation_items"] > 0
    finally:
        stop.set()
        writer.join()
        database.close()
    assert [file.name for file in (tmp_path / "copy").iterdir()] == [FILE]


def test_a_copy_becomes_an_empty_database_again(tmp_path: Path) -> None:
    origin, target = Database(tmp_path / "origin"), Database(tmp_path / "target")
    add(origin, 7)
    write_copy(origin, tmp_path / "copy")
    before = (tmp_path / "copy" / FILE).read_bytes()
    assert load_copy(tmp_path / "copy" / FILE, target)["conversations"] == 1
    with origin.reading() as one, target.reading() as other:
        for table in (CONVERSATIONS, ITEMS, CONVERSATION_ITEMS):
            assert one.execute(select(table)).all() == other.execute(select(table)).all() != []
    assert (tmp_path / "copy" / FILE).read_bytes() == before
    with pytest.raises(StoreError, match="the database already has"):
        load_copy(tmp_path / "copy" / FILE, target)
    origin.close()
    target.close()


def test_a_damaged_copy_is_refused(tmp_path: Path) -> None:
    origin, target = Database(tmp_path / "origin"), Database(tmp_path / "target")
    for number in range(200):
        add(origin, number)
    write_copy(origin, tmp_path / "copy")
    file = tmp_path / "copy" / FILE
    content = bytearray(file.read_bytes())
    page = len(content) // 2
    content[page : page + 3000] = bytes(3000)
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged|malformed"):
        load_copy(file, target)
    with target.reading() as connection:
        assert connection.execute(select(ITEMS)).all() == []
    origin.close()
    target.close()


def test_a_missing_copy_is_one_line(tmp_path: Path) -> None:
    database = Database(tmp_path / "data")
    with pytest.raises(StoreError, match="does not exist"):
        load_copy(tmp_path / "nothing.sqlite", database)
    database.close()


def test_a_copy_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    database = Database(tmp_path / "data")
    add(database, 1)
    write_copy(database, tmp_path / "copy")
    before = (tmp_path / "copy" / FILE).read_bytes()
    database.close()
    (tmp_path / "data" / FILE).write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError):
        write_copy(database, tmp_path / "copy")
    assert (tmp_path / "copy" / FILE).read_bytes() == before


def test_the_commands_copy_and_load(tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text((ROOT / "examples" / "laptop.toml").read_text())
    database = Database(tmp_path / "var" / "assistant")
    add(database, 1)
    database.close()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "appliance", "backup", *words, "--config", str(site)]
        return subprocess.run(
            argv, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )

    done = run("chats")
    assert (done.returncode, done.stdout) == (
        0, "copied 1 conversations and 0 passages to " + str(tmp_path / "var/assistant/backup") + "\n"
    )  # fmt: skip
    copy = tmp_path / "restored.sqlite"
    (tmp_path / "var/assistant/backup" / FILE).rename(copy)
    refused = run("load-chats", "--from", str(copy))
    assert (refused.returncode, "already has" in refused.stderr) == (1, True)
    (tmp_path / "var/assistant" / FILE).unlink()
    loaded = run("load-chats", "--from", str(copy))
    assert loaded.stdout == "loaded 1 conversations, 0 files, 0 passages\n", loaded.stderr
    with sqlite3.connect(tmp_path / "var/assistant" / FILE) as found:
        assert found.execute("SELECT id FROM conversations").fetchall() == [("conv_1",)]
    found.close()


@pytest.mark.parametrize("passages", [0, 2])
def test_a_loaded_copy_gives_no_number_that_was_given_after_the_copy(
    tmp_path: Path, url: str | None, passages: int
) -> None:
    # Qdrant may have points of the numbers that the lost database gave after its last backup.
    origin = Database(tmp_path / "origin")
    new_store(origin, "vs_1")
    put(origin, "kept", *[passage(str(number)) for number in range(passages)])
    write_copy(origin, tmp_path / "copy")
    put(origin, "lost", passage("lost"))
    target = Database(tmp_path / "target", url)
    assert load_copy(tmp_path / "copy" / FILE, target)["passages"] == passages
    put(target, "new", passage("new"), passage("newer"))
    with origin.reading() as connection:
        lost = max(numbers_of(connection, "ada", "vs_1"))
    with target.reading() as connection:
        numbers = [int(number) for number in numbers_of(connection, "ada", "vs_1")]
    assert numbers[:-2] == [*range(1, passages + 1)]
    assert numbers[-2:] == [passages + UNUSED_NUMBERS + 1, passages + UNUSED_NUMBERS + 2]
    assert lost < numbers[-2]
    origin.close()
    target.close()
