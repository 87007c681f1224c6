"""Uploads, lists, contents and deletions of files, over the real client and with invalid bodies."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from pathlib import Path

import openai
import pytest

from tests.assistant.files.conftest import FilesAssistant, files_assistant, upload
from tests.assistant.files.conftest import assistant as assistant  # noqa: PLC0414 - a fixture
from tests.conftest import wait_until
from tests.smalldisk import SmallDisk

MISSING = "file-" + "0" * 32
BOUNDARY = "b0undary"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    """One part of a multipart body, written by hand."""
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def test_a_file_is_returned_as_it_was_sent(assistant: FilesAssistant) -> None:
    client = assistant.client()
    content = os.urandom(3_000_000)
    file = client.files.create(file=("Отчёт 2026.pdf", content), purpose="assistants")
    assert (file.filename, file.bytes, file.purpose) == ("Отчёт 2026.pdf", 3_000_000, "assistants")
    assert client.files.retrieve(file.id) == file
    response = client.files.content(file.id)
    assert response.read() == content
    headers = response.response.headers
    assert headers["content-disposition"].startswith("attachment; ")
    assert "filename*=UTF-8''%D0%9E" in headers["content-disposition"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "application/octet-stream"
    assert (assistant.contents / file.id).read_bytes() == content
    with sqlite3.connect(assistant.folder / "assistant" / "assistant.sqlite") as database:
        digest = database.execute("SELECT digest FROM files WHERE id = ?", [file.id]).fetchone()[0]
    database.close()
    assert digest == hashlib.sha256(content).digest()


def test_lists_filter_and_page(assistant: FilesAssistant) -> None:
    client = assistant.client("carol")
    ids = [upload(client, f"{n}.txt", "x") for n in range(5)]
    other = client.files.create(file=("v.txt", b"x"), purpose="vision").id
    assert [one.id for one in client.files.list()] == [other, *ids[::-1]]
    assert [one.id for one in client.files.list(purpose="vision")] == [other]
    assert [one.id for one in client.files.list(limit=2, order="asc")] == [*ids, other]
    client.files.delete(ids[1])
    assert [one.id for one in client.files.list(after=ids[1], order="asc", limit=2).data] == ids[2:4]
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.list(limit=10_001)
    assert refused.value.param == "limit"


def test_a_foreign_file_has_the_response_of_an_unknown_one(assistant: FilesAssistant) -> None:
    file = upload(assistant.client(), "a.txt", "secret")
    with assistant.http("bob") as bob:
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
            bodies = []
            for one in (file, MISSING):
                response = bob.request(method, f"/v1/files/{one}{path}")
                assert response.status_code == 404
                bodies.append(response.text.replace(one, "ID"))
            assert bodies[0] == bodies[1]
        assert bob.get("/v1/files").json()["data"] == []
    assert assistant.client().files.content(file).read() == b"secret"


def test_path_parts_of_a_name_are_dropped(assistant: FilesAssistant) -> None:
    client = assistant.client()
    for name, kept in (
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\ada\\notes.txt", "notes.txt"),
        ("a" * 255, "a" * 255),
    ):
        body = form(part("purpose", b"user_data"), part("file", b"x", name.replace("\\", "\\\\")))
        with assistant.http() as plain:
            response = plain.post("/v1/files", content=body, headers=FORM)
        assert response.status_code == 200, response.text
        assert response.json()["filename"] == kept
        client.files.delete(response.json()["id"])


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([part("file", b"x", "a" * 256)], "file"),
        ([part("file", b"x", "bell\x07.txt")], "file"),
        ([part("file", b"x", "photo\u202etxt.exe")], "file"),
        ([part("file", b"x", "..")], "file"),
        ([part("file", b"x", "")], "file"),
        ([part("file", b"x")], "file"),
        ([], "file"),
        ([part("file", b"x", "a.txt"), part("file", b"y", "b.txt")], "file"),
        ([part("file", b"x", "a.txt"), part("purpose", b"world")], "purpose"),
        ([part("file", b"x", "a.txt"), part("purpose", b"v" * 5000)], "purpose"),
        (
            [
                part("file", b"x", "a.txt"),
                part("expires_after[anchor]", b"created_at"),
                part("expires_after[seconds]", b"3599"),
            ],
            "expires_after.seconds",
        ),
        ([part("file", b"x", "a.txt"), part("expires_after[seconds]", b"3600")], "expires_after.anchor"),
    ],
)
def test_an_invalid_upload_is_rejected_and_leaves_nothing(
    assistant: FilesAssistant, parts: list[bytes], param: str
) -> None:
    before = sorted(path.name for path in assistant.contents.glob("*"))
    with assistant.http("eve") as plain:
        response = plain.post("/v1/files", content=form(part("purpose", b"user_data"), *parts), headers=FORM)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
        assert plain.get("/v1/files").json()["data"] == []
    assert sorted(path.name for path in assistant.contents.glob("*")) == before


def test_bodies_that_are_not_multipart_are_rejected(assistant: FilesAssistant) -> None:
    with assistant.http("eve") as plain:
        assert plain.post("/v1/files", json={"file": "x"}).status_code == 400
        assert (
            plain.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"}).status_code
            == 400
        )
        assert plain.post("/v1/files", content=b"no parts", headers=FORM).status_code == 400
        cut = part("file", b"x", "a.txt") + part("purpose", b"user_data")
        assert plain.post("/v1/files", content=cut, headers=FORM).status_code == 400
        assert plain.get("/v1/files").json()["data"] == []
    assert not list(assistant.contents.glob("*.partial"))


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    with files_assistant(tmp_path, max_file_bytes=100_000) as running:
        client = running.client()
        upload(client, "fits.bin", bytes(100_000))
        with pytest.raises(openai.APIStatusError) as refused:
            upload(client, "large.bin", bytes(100_001))
        assert refused.value.status_code == 413
        assert len(list(running.contents.glob("*"))) == 1


def test_a_full_disk_leaves_nothing_and_old_files_readable(tmp_path: Path, small_disk: SmallDisk) -> None:
    with files_assistant(tmp_path, data=tmp_path / "assistant") as running:
        client = running.client()
        running.contents.mkdir(exist_ok=True)
        running.contents.rmdir()
        running.contents.symlink_to(small_disk.folder)
        old = upload(client, "old.txt", "old")
        with pytest.raises(openai.InternalServerError) as refused:
            upload(client, "large.bin", os.urandom(4_000_000))
        assert (refused.value.status_code, refused.value.code) == (503, "storage_failed")
        assert client.files.content(old).read() == b"old"
        assert [one.id for one in client.files.list()] == [old]
        assert [path.name for path in running.contents.iterdir() if path.name.startswith("file-")] == [old]
        upload(client, "small.txt", "small")


def test_the_sweep_ends_what_expired_and_what_a_crash_left(tmp_path: Path) -> None:
    with files_assistant(tmp_path) as running:
        client = running.client()
        kept = client.files.create(
            file=("a.txt", b"text"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert kept.expires_at is not None
        assert kept.expires_at - kept.created_at == 3600
        expired, cut, half = (upload(client, f"{n}.txt", f"text {n}") for n in range(3))
        store = client.vector_stores.create(
            file_ids=[kept.id], expires_after={"anchor": "last_active_at", "days": 1}
        ).id
        running.stop()
        with sqlite3.connect(tmp_path / "assistant" / "assistant.sqlite") as database:
            database.execute("UPDATE files SET expires_at = ? WHERE id = ?", [time.time() - 1, expired])
            database.execute("UPDATE vector_stores SET last_active_at = last_active_at - 90000")
        database.close()
        (running.contents / cut).rename(running.contents / f"{cut}.partial")
        (running.contents / half).rename(running.contents / f"{half}.deleted")
        (running.contents / f"{MISSING}.partial").write_bytes(b"dead")
        (running.contents / f"{MISSING}.deleted").write_bytes(b"dead")
        (running.contents / MISSING).write_bytes(b"of another database")
        running.start()
        assert {path.name for path in running.contents.iterdir()} == {kept.id, cut, half, MISSING}
        assert {one.id for one in client.files.list()} == {kept.id, cut, half}
        assert client.files.content(cut).read() == b"text 1"
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(expired)
        after = client.vector_stores.retrieve(store)
        assert (after.status, after.file_counts.total) == ("expired", 0)
        with pytest.raises(openai.BadRequestError):
            client.vector_stores.files.create(store, file_id=kept.id)
        wait_until(lambda: not list(running.contents.glob("*.partial")), "the sweep")
