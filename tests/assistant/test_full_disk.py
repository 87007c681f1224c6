"""A full disk under the assistant's database: a clear error, old chats readable, nothing half, and a recovery."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from appliance.assistant.store.database import FILE
from tests.assistant.crashes import TURNS, UNUSED, check_items
from tests.assistant.running import AssistantUnderTest, whole_service
from tests.conftest import wait_until
from tests.smalldisk import SmallDisk, mounted

FAST = "fake: tokens=3 itl_ms=0 ttft_ms=0 think=1"
LARGE = "word " * 400


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AssistantUnderTest, SmallDisk]]:
    folder = tmp_path_factory.mktemp("full")
    with (
        mounted(folder / "small") as disk,
        whole_service(folder, assistant={"data_dir": str(disk.folder)}) as (_, assistant),
    ):
        yield assistant, disk


def refused(call: Any) -> openai.APIStatusError:
    """Repeat ``call`` until it is refused: SQLite may have some room in its own files."""
    for _ in range(200):
        try:
            call()
        except openai.APIStatusError as error:
            return error
    pytest.fail("a full disk refuses nothing")


def rows(disk: SmallDisk, statement: str) -> list[Any]:
    with sqlite3.connect(disk.folder / FILE) as database:
        database.row_factory = sqlite3.Row
        found = [SimpleNamespace(**dict(row)) for row in database.execute(statement)]
    database.close()
    return found


def texts(client: openai.OpenAI, talk: str) -> list[str]:
    items = client.conversations.items.list(talk, order="asc", limit=100)
    return [item.to_dict()["content"][0]["text"] for item in items if item.type == "message"]  # type: ignore[index]


def test_new_turns_get_503_and_old_chats_stay_readable(full: tuple[AssistantUnderTest, SmallDisk]) -> None:
    assistant, disk = full
    with assistant.client() as client:
        talk = client.conversations.create(metadata={"title": "Old"}).id
        made = client.responses.create(model="fake", input=f"one {FAST}", conversation=talk)
        before = texts(client, talk)
        disk.fill()
        calls: list[Any] = [
            lambda: client.responses.create(model="fake", input=f"{LARGE} {FAST}", conversation=talk),
            lambda: client.responses.create(model="fake", input=f"{LARGE} {FAST}", background=True),
            lambda: client.conversations.create(items=[{"role": "user", "content": LARGE}]),
            lambda: client.conversations.items.create(talk, items=[{"role": "user", "content": LARGE}]),
            lambda: client.vector_stores.create(name="x" * 200),
            lambda: client.files.create(file=("a.txt", b"text"), purpose="assistants"),
        ]
        for call in calls:
            error = refused(call)
            assert (error.status_code, error.code) == (503, "storage_failed"), error
            assert error.response.headers["retry-after"]
        # Deleting writes as well.
        assert client.responses.retrieve(made.id).output_text == made.output_text
        assert texts(client, talk)[: len(before)] == before
        assert talk in {one["id"] for one in assistant_list(assistant)}
        wait_until(lambda: not rows(disk, "SELECT 1 FROM responses WHERE status = 'queued'"), "the end of turns")
        disk.free()
        client.responses.create(model="fake", input=f"two {FAST}", conversation=talk)
        assert texts(client, talk)[-2].startswith("two")
        wait_until(lambda: not unfinished(disk), "the end of turns", 60)
    check_items(rows(disk, TURNS), rows(disk, UNUSED))


def test_a_disk_that_fills_within_a_turn_gives_a_failed_response(
    full: tuple[AssistantUnderTest, SmallDisk],
) -> None:
    assistant, disk = full
    with assistant.client() as client:
        talk = client.conversations.create().id
        stream = client.responses.create(
            model="fake", input="x fake: tokens=4 hold=2", conversation=talk, stream=True
        )
        seen = [next(event for event in stream if event.type == "response.output_text.delta").type]
        disk.fill()
        refused(lambda: client.conversations.create(items=[{"role": "user", "content": LARGE}]))
        refused(client.conversations.create)
        assistant.release()
        final = list(stream)[-1]
        assert seen
        assert final.type == "response.failed"
        assert final.response.error is not None
        assert "cannot be stored" in final.response.error.message
        identifier = final.response.id
        assert texts(client, talk) == []
        disk.free()
        wait_until(lambda: client.responses.retrieve(identifier).status == "failed", "the stored end", 60)
        assert texts(client, talk) == []
        client.responses.create(model="fake", input=f"two {FAST}", conversation=talk)
        assert len(texts(client, talk)) == 2
    check_items(rows(disk, TURNS), rows(disk, UNUSED))


def assistant_list(assistant: AssistantUnderTest) -> list[dict[str, Any]]:
    with assistant.http() as client:
        found: list[dict[str, Any]] = client.get("/conversations", params={"limit": 100}).json()["data"]
        return found


def unfinished(disk: SmallDisk) -> list[Any]:
    return rows(disk, "SELECT id FROM responses WHERE status IN ('queued', 'in_progress')")
