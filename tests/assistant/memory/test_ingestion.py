"""The queue of files: retries, restarts, replaced files, fairness. Real parsers, a stand-in of the gateway."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from appliance.assistant.memory.ingestion import PendingFiles, next_tenant
from tests.assistant.files.conftest import FilesAssistant, files_assistant, upload, wait_for_file
from tests.conftest import wait_until

EMBEDDINGS = "/v1/embeddings"
LONG_S = 60.0


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FilesAssistant]:
    with files_assistant(tmp_path_factory.mktemp("ingestion")) as running:
        yield running


def texts(client: openai.OpenAI, store: str, file: str) -> list[str | None]:
    return [part.text for part in client.vector_stores.files.content(file, vector_store_id=store)]


def held(assistant: FilesAssistant) -> threading.Event:
    """Make the embedder wait; return the event that continues it."""
    event = assistant.gateway.held[EMBEDDINGS] = threading.Event()
    assistant.gateway.requests.clear()
    return event


def wait_for_embedding(assistant: FilesAssistant) -> None:
    wait_until(lambda: len(assistant.gateway.of(EMBEDDINGS)) > 0, "a request to the embedder", LONG_S)


def release(assistant: FilesAssistant, event: threading.Event) -> None:
    assistant.gateway.held.clear()
    event.set()


def test_a_file_waits_for_the_embedder_and_then_completes(assistant: FilesAssistant) -> None:
    client = assistant.client()
    assistant.gateway.errors[EMBEDDINGS] = (503, "engine_unavailable")
    file = upload(client, "a.txt", "Прогноз погоды.")
    store = client.vector_stores.create(file_ids=[file]).id
    wait_until(lambda: len(assistant.gateway.of(EMBEDDINGS)) >= 2, "a second attempt", LONG_S)
    assert client.vector_stores.files.retrieve(file, vector_store_id=store).status == "in_progress"
    assert client.vector_stores.retrieve(store).status == "in_progress"
    del assistant.gateway.errors[EMBEDDINGS]
    assert wait_for_file(client, store, file).status == "completed"
    assert texts(client, store, file) == ["Прогноз погоды."]


def test_an_invalid_key_fails_its_file_and_others_continue(assistant: FilesAssistant) -> None:
    client = assistant.client()
    assistant.gateway.errors[EMBEDDINGS] = (401, "invalid_api_key")
    file = upload(client, "a.txt", "text")
    store = client.vector_stores.create(file_ids=[file]).id
    found = wait_for_file(client, store, file)
    del assistant.gateway.errors[EMBEDDINGS]
    assert (found.status, found.last_error.code) == ("failed", "server_error")
    assert "no longer valid" in found.last_error.message
    client.vector_stores.files.create(store, file_id=file)
    assert wait_for_file(client, store, file).status == "completed"


def test_the_limit_of_one_user_delays_no_other(assistant: FilesAssistant) -> None:
    client, bob = assistant.client(), assistant.client("bob")
    assistant.gateway.errors[EMBEDDINGS] = (429, "rate_limit_exceeded")
    file = upload(client, "a.txt", "text")
    store = client.vector_stores.create(file_ids=[file]).id
    wait_until(lambda: len(assistant.gateway.of(EMBEDDINGS)) > 0, "a request", LONG_S)
    del assistant.gateway.errors[EMBEDDINGS]
    other = upload(bob, "b.txt", "text")
    other_store = bob.vector_stores.create(file_ids=[other]).id
    assert wait_for_file(bob, other_store, other).status == "completed"
    assert wait_for_file(client, store, file).status == "completed"


def test_an_attachment_during_the_work_discards_the_old_result(assistant: FilesAssistant) -> None:
    client = assistant.client()
    file = upload(client, "long.md", "\n\n".join(f"Paragraph {n} about topic {n}." for n in range(60)))
    store = client.vector_stores.create().id
    sizes = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
    event = held(assistant)
    client.vector_stores.files.create(store, file_id=file, attributes={"version": 1})
    wait_for_embedding(assistant)
    client.vector_stores.files.create(
        store,
        file_id=file,
        attributes={"version": 2},
        chunking_strategy=sizes,  # type: ignore[arg-type]
    )
    release(assistant, event)
    found = wait_for_file(client, store, file)
    assert (found.status, found.attributes) == ("completed", {"version": 2})
    assert len(texts(client, store, file)) > 4


def test_a_replaced_file_keeps_its_old_passages_until_the_new_ones_are_there(assistant: FilesAssistant) -> None:
    client = assistant.client()
    file = upload(client, "a.txt", "the text")
    store = client.vector_stores.create(file_ids=[file]).id
    wait_for_file(client, store, file)
    event = held(assistant)
    client.vector_stores.files.create(store, file_id=file)
    wait_for_embedding(assistant)
    assert texts(client, store, file) == ["the text"]
    release(assistant, event)
    assert wait_for_file(client, store, file).status == "completed"
    assert texts(client, store, file) == ["the text"]


@pytest.mark.parametrize("how", ["detached", "file deleted", "store deleted"])
def test_a_removed_file_leaves_no_passage_of_running_work(assistant: FilesAssistant, how: str) -> None:
    client = assistant.client()
    file = upload(client, "a.txt", f"removed: {how}")
    store = client.vector_stores.create().id
    event = held(assistant)
    client.vector_stores.files.create(store, file_id=file)
    wait_for_embedding(assistant)
    if how == "detached":
        client.vector_stores.files.delete(file, vector_store_id=store)
    elif how == "file deleted":
        client.files.delete(file)
    else:
        client.vector_stores.delete(store)
    release(assistant, event)
    # The queue takes the next file only after the removed one or at the same time; two of them cover both places.
    later = client.vector_stores.create().id
    for name in ("b.txt", "c.txt"):
        other = upload(client, name, "later")
        client.vector_stores.files.create(later, file_id=other)
        assert wait_for_file(client, later, other).status == "completed"
    database = sqlite3.connect(assistant.folder / "assistant" / "assistant.sqlite")
    rows = database.execute("SELECT count(*) FROM passages WHERE text LIKE ?", [f"removed: {how}%"]).fetchone()
    database.close()
    assert rows == (0,)


def test_a_killed_assistant_continues_after_its_start(tmp_path: Path) -> None:
    with files_assistant(tmp_path) as running:
        client = running.client()
        done = upload(client, "done.txt", "done")
        store = client.vector_stores.create(file_ids=[done]).id
        wait_for_file(client, store, done)
        event = held(running)
        files = [upload(client, f"{n}.txt", f"text {n}") for n in range(3)]
        client.vector_stores.file_batches.create(store, file_ids=files)
        wait_for_embedding(running)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        release(running, event)
        running.start()
        for number, file in enumerate(files):
            assert wait_for_file(client, store, file).status == "completed"
            assert texts(client, store, file) == [f"text {number}"]
        assert texts(client, store, done) == ["done"]


def test_without_an_embedder_files_are_found_by_words(tmp_path: Path) -> None:
    with files_assistant(tmp_path, embedder=False) as running:
        client = running.client()
        file = upload(client, "a.txt", "Только слова.")
        store = client.vector_stores.create(file_ids=[file]).id
        assert wait_for_file(client, store, file).status == "completed"
        assert running.gateway.requests == []
        database = sqlite3.connect(tmp_path / "assistant" / "assistant.sqlite")
        row = database.execute("SELECT text, length(vector), terms FROM passages").fetchone()
        database.close()
        assert row[:2] == ("Только слова.", 0)
        assert "слов" in row[2]


def test_the_next_tenant_is_the_one_that_was_served_least() -> None:
    now = time.time()
    pending = {"ada": PendingFiles(2000, now - 100), "bob": PendingFiles(1, now), "eve": PendingFiles(0, now - 500)}
    assert next_tenant(pending, {}, {}) == "ada"
    assert next_tenant(pending, {"ada": 1}, {}) == "bob"
    assert next_tenant(pending, {}, {"ada": 5.0}) == "bob"
    assert next_tenant(pending, {}, {"ada": 5.0, "bob": 6.0}) == "ada"
    assert next_tenant({"eve": PendingFiles(0, now)}, {}, {}) is None
