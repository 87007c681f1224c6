"""Vector stores, their files and batches, over the real client."""

from __future__ import annotations

import openai
import pytest

from tests.assistant.files.conftest import FilesAssistant, upload, wait_for_file
from tests.assistant.made_documents import a_bomb, a_docx, a_pdf
from tests.conftest import wait_until

MISSING_STORE, MISSING_FILE = "vs_" + "0" * 32, "file-" + "0" * 32


def test_documents_in_two_languages_become_passages(assistant: FilesAssistant) -> None:
    client = assistant.client()
    documents: dict[str, bytes | str] = {
        "lease.pdf": a_pdf(
            ["Договор аренды № 17\nАрендатор платит 40 тысяч рублей.", "The tenant pays on day five."]
        ),
        "leave.docx": a_docx([("Heading1", "Отпуск"), ("", "Сотрудник имеет 28 дней отпуска.")]),
        "page.html": "<h1>Prices</h1><script>evil()</script><p>Ten euros.</p>",
        "old.txt": "Старый файл в другой кодировке.".encode("cp1251"),
        "tool.py": "# not a heading\nprint('hello')\n",
    }
    ids = [upload(client, name, content) for name, content in documents.items()]
    store = client.vector_stores.create(name="Handbook", file_ids=ids, metadata={"project": "x"})
    assert store.file_counts.total == 5
    found = {}
    for name, file in zip(documents, ids, strict=True):
        one = wait_for_file(client, store.id, file)
        assert (one.status, one.last_error) == ("completed", None), name
        assert one.usage_bytes > 0
        pages = client.vector_stores.files.content(file, vector_store_id=store.id)
        found[name] = "".join(part.text or "" for part in pages)
    assert "40 тысяч рублей" in found["lease.pdf"]
    assert "day five" in found["lease.pdf"]
    assert found["leave.docx"].startswith("# Отпуск\n\nСотрудник имеет 28 дней")
    assert found["page.html"] == "# Prices\n\nTen euros.\n"
    assert found["old.txt"] == "Старый файл в другой кодировке."
    assert found["tool.py"].startswith("```py\n# not a heading")
    after = client.vector_stores.retrieve(store.id)
    assert (after.status, after.file_counts.completed, after.metadata) == ("completed", 5, {"project": "x"})
    assert after.usage_bytes > 0
    sent = assistant.gateway.of("/v1/embeddings")
    assert {one.headers["x-appliance-user"] for one in sent} == {"ada"}
    assert {one.headers["x-appliance-background"] for one in sent} == {"1"}


def test_unusable_files_fail_with_a_code_and_the_others_proceed(assistant: FilesAssistant) -> None:
    client = assistant.client()
    documents = {
        "empty.txt": (b"", "invalid_file", "empty"),
        "secret.pdf": (a_pdf(["Secret"], encrypted=True), "invalid_file", "encrypted"),
        "bomb.docx": (a_bomb(), "invalid_file", "after decompression"),
        "long.pdf": (a_pdf(["x"] * 10_000), "invalid_file", "10000 pages"),
        "text.pdf": (b"This is not a PDF.", "invalid_file", "not in that format"),
        "photo.png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "unsupported_file", "image"),
        "scan.pdf": (a_pdf([""]), "invalid_file", "no text"),
    }
    ids = [upload(client, name, content) for name, (content, _, _) in documents.items()]
    good = upload(client, "good.md", "# Good\n\nA usable file.")
    store = client.vector_stores.create()
    batch = client.vector_stores.file_batches.create(store.id, file_ids=[*ids, good])
    assert batch.file_counts.total == 8
    for file, (name, (_, code, words)) in zip(ids, documents.items(), strict=True):
        one = wait_for_file(client, store.id, file)
        assert one.status == "failed", name
        assert one.last_error.code == code, name
        assert words in one.last_error.message, name
    assert wait_for_file(client, store.id, good).status == "completed"
    after = client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id)
    assert (after.status, after.file_counts.failed, after.file_counts.completed) == ("completed", 7, 1)
    failed = client.vector_stores.files.list(store.id, filter="failed")
    assert {one.id for one in failed} == set(ids)
    assert client.vector_stores.retrieve(store.id).status == "completed"


def test_a_pdf_with_the_name_of_a_text_is_parsed_as_pdf(assistant: FilesAssistant) -> None:
    client = assistant.client()
    file = upload(client, "notes.txt", a_pdf(["A page."]))
    store = client.vector_stores.create(file_ids=[file])
    assert wait_for_file(client, store.id, file).status == "completed"


def test_attributes_and_chunk_sizes_belong_to_the_file_in_the_store(assistant: FilesAssistant) -> None:
    client = assistant.client()
    text = "\n\n".join(f"Paragraph {n} has some words about topic {n}." for n in range(100))
    file = upload(client, "long.md", text)
    store = client.vector_stores.create()
    attached = client.vector_stores.files.create(
        store.id,
        file_id=file,
        attributes={"year": 2026, "draft": False, "author": "Ада"},
        chunking_strategy={"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}},
    )
    assert attached.attributes == {"year": 2026, "draft": False, "author": "Ада"}
    assert attached.chunking_strategy.static.max_chunk_size_tokens == 100  # type: ignore[union-attr]
    assert wait_for_file(client, store.id, file).status == "completed"
    assert len(client.vector_stores.files.content(file, vector_store_id=store.id).data) > 8
    changed = client.vector_stores.files.update(file, vector_store_id=store.id, attributes={"year": 2027})
    assert changed.attributes == {"year": 2027}
    assert changed.status == "completed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"expires_after": {"anchor": "last_active_at", "days": 0}}, "expires_after.days"),
        ({"expires_after": {"anchor": "created_at", "days": 1}}, "expires_after.anchor"),
        ({"name": "n" * 256}, "name"),
        (
            {
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 101},
                }
            },
            "chunking_strategy.static.chunk_overlap_tokens",
        ),
        (
            {
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 99, "chunk_overlap_tokens": 0},
                }
            },
            "chunking_strategy.static.max_chunk_size_tokens",
        ),
        ({"chunking_strategy": {"type": "static"}}, "chunking_strategy.static"),
    ],
)
def test_a_store_with_invalid_settings_is_rejected_by_field(
    assistant: FilesAssistant, body: dict[str, object], param: str
) -> None:
    client = assistant.client("eve")
    file = upload(client, "a.txt", "text")
    with assistant.http("eve") as plain:
        response = plain.post("/v1/vector_stores", json={"file_ids": [file], **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert client.vector_stores.list().data == []


@pytest.mark.parametrize(
    "attributes",
    [
        {str(n): 1 for n in range(17)},
        {"k" * 65: 1},
        {"k": "v" * 513},
        {"k": [1]},
        {"k": None},
        {"k": 10**400},
    ],
)
def test_invalid_attributes_are_rejected(assistant: FilesAssistant, attributes: dict[str, object]) -> None:
    client = assistant.client()
    file, store = upload(client, "a.txt", "text"), client.vector_stores.create().id
    with assistant.http() as plain:
        response = plain.post(f"/v1/vector_stores/{store}/files", json={"file_id": file, "attributes": attributes})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith("attributes")
    assert client.vector_stores.retrieve(store).file_counts.total == 0


def test_a_batch_has_at_most_2000_files_and_only_files_of_the_caller(assistant: FilesAssistant) -> None:
    client, bob = assistant.client(), assistant.client("bob")
    store = client.vector_stores.create().id
    foreign = upload(bob, "b.txt", "Bob's text")
    own = upload(client, "a.txt", "text")
    with pytest.raises(openai.BadRequestError) as refused:
        client.vector_stores.file_batches.create(store, file_ids=[own] * 2001)
    assert refused.value.param == "file_ids"
    with pytest.raises(openai.NotFoundError) as missing:
        client.vector_stores.file_batches.create(store, file_ids=[own, foreign])
    assert foreign in str(missing.value)
    with pytest.raises(openai.BadRequestError):
        client.vector_stores.file_batches.create(store)
    assert client.vector_stores.retrieve(store).file_counts.total == 0


def test_a_cancelled_batch_stops_its_files(assistant: FilesAssistant) -> None:
    client = assistant.client()
    ids = [upload(client, f"{n}.txt", f"text {n}") for n in range(40)]
    store = client.vector_stores.create().id
    batch = client.vector_stores.file_batches.create(
        store, files=[{"file_id": one, "attributes": {"n": n}} for n, one in enumerate(ids)]
    )
    cancelled = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store)
    assert cancelled.status == "cancelled"
    assert cancelled.file_counts.in_progress == 0
    assert cancelled.file_counts.cancelled > 20
    listed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store, limit=100)
    assert {one.attributes["n"] for one in listed.data if one.attributes} == set(range(40))
    # A file that ran is discarded: its text is in no passage.
    other = upload(client, "later.txt", "later")
    client.vector_stores.files.create(store, file_id=other)
    wait_for_file(client, store, other)
    for one in listed.data:
        if one.status == "cancelled":
            assert client.vector_stores.files.content(one.id, vector_store_id=store).data == []


def test_lists_page_in_both_directions(assistant: FilesAssistant) -> None:
    client = assistant.client("carol")
    stores = [client.vector_stores.create(name=str(n)).id for n in range(5)]
    assert [one.id for one in client.vector_stores.list(limit=2)] == stores[::-1]
    assert [one.id for one in client.vector_stores.list(order="asc", limit=2).data] == stores[:2]
    assert [one.id for one in client.vector_stores.list(order="asc", before=stores[3], limit=2).data] == stores[1:3]
    ids = [upload(client, f"{n}.txt", f"text {n}") for n in range(5)]
    client.vector_stores.file_batches.create(stores[0], file_ids=ids)
    assert [one.id for one in client.vector_stores.files.list(stores[0], limit=2, order="asc")] == ids
    back = client.vector_stores.files.list(stores[0], limit=2, order="asc", before=ids[4])
    assert [one.id for one in back.data] == ids[2:4]
    with pytest.raises(openai.BadRequestError) as refused:
        client.vector_stores.files.list(stores[0], after=MISSING_FILE)
    assert refused.value.param == "after"
    with pytest.raises(openai.BadRequestError):
        client.vector_stores.list(limit=101)


def test_a_foreign_store_has_the_response_of_an_unknown_one(assistant: FilesAssistant) -> None:
    client = assistant.client()
    file = upload(client, "a.txt", "Ada's secret")
    store = client.vector_stores.create(file_ids=[file]).id
    wait_for_file(client, store, file)
    batch = client.vector_stores.file_batches.create(store, file_ids=[file]).id
    wait_for_file(client, store, file)
    with assistant.http("bob") as bob:
        own = bob.post("/v1/vector_stores").json()["id"]
        for method, path, body in (
            ("GET", "{store}", None),
            ("POST", "{store}", {"name": "mine"}),
            ("DELETE", "{store}", None),
            ("GET", "{store}/files", None),
            ("POST", "{store}/files", {"file_id": "{file}"}),
            ("GET", "{store}/files/{file}", None),
            ("POST", "{store}/files/{file}", {"attributes": {}}),
            ("DELETE", "{store}/files/{file}", None),
            ("GET", "{store}/files/{file}/content", None),
            ("POST", "{store}/file_batches", {"file_ids": ["{file}"]}),
            ("GET", "{store}/file_batches/{batch}", None),
            ("POST", "{store}/file_batches/{batch}/cancel", None),
            ("GET", "{store}/file_batches/{batch}/files", None),
        ):
            bodies = []
            for one in (store, MISSING_STORE):
                url = path.format(store=one, file=file, batch=batch)
                response = bob.request(method, f"/v1/vector_stores/{url}", json=body)
                assert response.status_code == 404, (method, path, response.text)
                bodies.append(response.text.replace(one, "ID"))
            assert bodies[0] == bodies[1], (method, path)
        # A foreign file in an own store, and a foreign batch below an own store.
        assert bob.post(f"/v1/vector_stores/{own}/files", json={"file_id": file}).status_code == 404
        assert bob.get(f"/v1/vector_stores/{own}/file_batches/{batch}").status_code == 404
    assert client.vector_stores.retrieve(store).name == ""
    assert client.vector_stores.files.content(file, vector_store_id=store).data[0].text == "Ada's secret"


def test_changes_and_deletions_leave_the_files(assistant: FilesAssistant) -> None:
    client = assistant.client()
    file = upload(client, "a.txt", "text")
    store = client.vector_stores.create(
        name="old", file_ids=[file], expires_after={"anchor": "last_active_at", "days": 1}
    )
    assert store.expires_at is not None
    changed = client.vector_stores.update(store.id, name="new", expires_after=None, metadata={"a": "b"})
    assert (changed.name, changed.expires_after, changed.metadata) == ("new", None, {"a": "b"})
    assert client.vector_stores.update(store.id).name == "new"
    wait_for_file(client, store.id, file)
    assert client.vector_stores.files.delete(file, vector_store_id=store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.retrieve(file, vector_store_id=store.id)
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.delete(file, vector_store_id=store.id)
    assert client.files.content(file).read() == b"text"
    client.vector_stores.files.create(store.id, file_id=file)
    assert client.vector_stores.delete(store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)
    assert client.files.retrieve(file).status == "processed"


def test_a_deleted_file_leaves_its_stores(assistant: FilesAssistant) -> None:
    client = assistant.client()
    file = upload(client, "a.txt", "text")
    store = client.vector_stores.create(file_ids=[file]).id
    wait_for_file(client, store, file)
    assert client.files.delete(file).deleted
    assert client.vector_stores.retrieve(store).file_counts.total == 0
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.content(file, vector_store_id=store)
    wait_until(lambda: not (assistant.contents / f"{file}.deleted").exists(), "the removal of the content")
    assert not (assistant.contents / file).exists()
