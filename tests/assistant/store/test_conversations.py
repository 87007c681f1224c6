"""Conversations and their items, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from appliance.assistant import ids
from appliance.assistant.store.conversations import ConversationStore
from appliance.assistant.store.database import Database
from appliance.assistant.store.items import put_items, read_items
from appliance.assistant.store.schema import (
    CONVERSATION_TERMS,
    METADATA,
    PASSAGES,
    RESPONSE_ITEMS,
    RESPONSES,
    VECTOR_STORES,
)
from appliance.errors import InvalidRequestError, NotFoundError, StoreError

KEY = "0123456789ab"


def a_message(text: str, role: str = "user") -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "status": "completed", "content": [{"type": kind, "text": text}]}


def rows(database: Database) -> dict[str, int]:
    """Return the number of rows of each table that has any."""
    with database.reading() as connection:
        counts = {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in METADATA.sorted_tables
        }
    return {name: count for name, count in counts.items() if count}


def add_response(database: Database, tenant: str, conversation_id: str, text: str) -> str:
    """Store a response with one item of its own, in ``conversation_id``; return its id."""
    identifier = ids.new_id(ids.RESPONSE)
    with database.writing() as connection:
        (item,) = put_items(connection, tenant, [a_message(text, "assistant")], 5.0)
        connection.execute(
            insert(RESPONSES).values(
                id=identifier,
                tenant=tenant,
                key_id=KEY,
                conversation_id=conversation_id,
                status="completed",
                created_at=5.0,
                body='{"object":"response"}',
            )
        )
        connection.execute(
            insert(RESPONSE_ITEMS).values(response_id=identifier, position=0, item_id=item["id"], output=True)
        )
        ConversationStore(database).append(connection, tenant, conversation_id, [item["id"]], 5.0, KEY)
    return identifier


def add_passage(database: Database, tenant: str, conversation_id: str) -> str:
    """Store a passage of ``conversation_id`` in a new vector store; return the store's id."""
    store = ids.new_id(ids.VECTOR_STORE)
    with database.writing() as connection:
        connection.execute(
            insert(VECTOR_STORES).values(id=store, tenant=tenant, kind="chats", created_at=1.0, last_active_at=1.0)
        )
        connection.execute(
            insert(PASSAGES).values(
                store_id=store,
                tenant=tenant,
                group_id=conversation_id,
                kind="round",
                source="chat",
                text="a round",
                terms="{}",
                vector=b"",
            )
        )
    return store


def test_a_conversation_is_kept_whole(database: Database) -> None:
    store = ConversationStore(database)
    items = [a_message("hello"), {"type": "reasoning", "summary": []}, {"type": "mcp_call", "name": "x"}]
    made = store.create("ada", key_id=KEY, now=10.0, metadata={"title": "Greeting"}, items=items)
    assert store.get("ada", made.id) == made
    page = store.items("ada", made.id, order="asc")
    assert [item | {"id": ""} for item in page.data] == [item | {"id": ""} for item in items]
    assert [item["id"].split("_")[0] for item in page.data] == ["msg", "rs", "item"]
    export = store.export("ada", made.id)
    assert (export.conversation, export.items, export.responses) == (made, page.data, [])


def test_items_are_paged_in_both_orders(database: Database) -> None:
    store = ConversationStore(database)
    made = store.create("ada", key_id=KEY, now=1.0)
    for first in range(0, 40, 20):
        store.add_items("ada", made.id, [a_message(str(first + at)) for at in range(20)], key_id=KEY, now=2.0)

    def walk(order: Any) -> list[str]:
        seen: list[str] = []
        after = None
        while True:
            page = store.items("ada", made.id, after=after, limit=7, order=order)
            seen += [item["content"][0]["text"] for item in page.data]
            if not page.has_more:
                return seen
            after = page.data[-1]["id"]

    assert walk("asc") == [str(number) for number in range(40)]
    assert walk("desc") == walk("asc")[::-1]


def test_an_id_that_a_client_chose_is_replaced(database: Database) -> None:
    store = ConversationStore(database)
    chosen = [a_message("one") | {"id": "msg_mine"}]
    first = store.create("ada", key_id=KEY, now=1.0, items=chosen)
    second = store.create("bob", key_id=KEY, now=1.0, items=chosen)
    one, two = (store.items(user, made.id).data[0]["id"] for user, made in (("ada", first), ("bob", second)))
    assert len({one, two, "msg_mine"}) == 3


def test_a_reference_adds_the_same_item_and_stores_nothing(database: Database) -> None:
    store = ConversationStore(database)
    first = store.create("ada", key_id=KEY, now=1.0, items=[a_message("shared")])
    second = store.create("ada", key_id=KEY, now=1.0)
    item = store.items("ada", first.id).data[0]
    reference = {"type": "item_reference", "id": item["id"]}
    assert store.add_items("ada", second.id, [reference], key_id=KEY, now=2.0) == [item]
    assert rows(database)["items"] == 1
    with pytest.raises(InvalidRequestError, match="already") as refused:
        store.add_items("ada", second.id, [a_message("new"), reference], key_id=KEY, now=3.0)
    assert refused.value.param == "items"
    # The conversation that keeps the item protects it from the deletion of the other.
    assert store.delete("ada", first.id).items == 0
    assert store.items("ada", second.id).data == [item]
    assert store.delete("ada", second.id).items == 1
    assert rows(database) == {}


def test_a_reference_to_an_item_of_another_tenant_stores_nothing(database: Database) -> None:
    store = ConversationStore(database)
    foreign = store.create("bob", key_id=KEY, now=1.0, items=[a_message("secret")])
    made = store.create("ada", key_id=KEY, now=1.0)
    reference = {"type": "item_reference", "id": store.items("bob", foreign.id).data[0]["id"]}
    with pytest.raises(NotFoundError):
        store.add_items("ada", made.id, [a_message("mine"), reference], key_id=KEY, now=2.0)
    assert store.items("ada", made.id).data == []
    assert rows(database)["items"] == 1


def test_a_new_turn_moves_a_conversation_to_the_front_and_opens_it(database: Database) -> None:
    store = ConversationStore(database)
    old = store.create("ada", key_id=KEY, now=1.0)
    new = store.create("ada", key_id=KEY, now=2.0)
    store.update("ada", old.id, {"title": "renamed"})
    assert [one.id for one in store.list("ada").data] == [new.id, old.id]
    assert store.close("ada", old.id, 3.0).closed_at == 3.0
    assert store.close("ada", old.id, 4.0).closed_at == 3.0
    store.add_items("ada", old.id, [a_message("more")], key_id=KEY, now=5.0)
    assert [one.id for one in store.list("ada").data] == [old.id, new.id]
    assert store.get("ada", old.id).closed_at is None
    assert [one.id for one in store.list("ada", order="asc").data] == [new.id, old.id]


def test_a_list_is_paged_without_a_gap_among_equal_times(database: Database) -> None:
    store = ConversationStore(database)
    made = [store.create("ada", key_id=KEY, now=float(number // 4)).id for number in range(18)]
    store.create("bob", key_id=KEY, now=2.0)
    seen: list[str] = []
    after = None
    while True:
        page = store.list("ada", after=after, limit=5)
        seen += [one.id for one in page.data]
        if not page.has_more:
            break
        after = seen[-1]
    assert seen == made[::-1]


def test_a_search_finds_inflected_words_of_title_and_messages(database: Database) -> None:
    store = ConversationStore(database)
    made = store.create(
        "ada",
        key_id=KEY,
        now=1.0,
        metadata={"title": "Отчёт за ноябрь"},
        items=[a_message("Сколько стоят видеокарты?"), a_message("Prices of graphics cards rise.", "assistant")],
    )
    store.create("ada", key_id=KEY, now=2.0, items=[a_message("видеокарта")])
    store.create("bob", key_id=KEY, now=3.0, items=[a_message("отчёт про видеокарты, price of cards")])

    def found(query: str) -> list[str]:
        return [one.id for one in store.list("ada", query).data]

    for query in ("отчеты про видеокарты", "price card", "ОТЧЁТ", "graphics-card"):
        assert found(query) == [made.id], query
    assert len(found("видеокарту")) == 2
    for query in ("видеокарты вчера", "!!!", "x" * 300):
        assert found(query) == [], query
    assert len(found("  ")) == 2


def test_a_search_of_common_terms_finds_the_same_as_one_of_rare_terms(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ConversationStore(database)
    words = ("alpha", "beta", "gamma", "delta")
    for number in range(16):
        text = " ".join(word for at, word in enumerate(words) if number >> at & 1)
        store.create("ada", key_id=KEY, now=float(number), items=[a_message(text)])
    queries = ["alpha", "alpha beta", "beta gamma delta", "alpha beta gamma delta", "alpha omega"]
    rare = [store.list("ada", query) for query in queries]
    assert [len(page.data) for page in rare] == [8, 4, 2, 1, 0]
    monkeypatch.setattr("appliance.assistant.store.conversations.RARE", -1)
    assert [store.list("ada", query) for query in queries] == rare


def test_a_former_title_is_not_found_but_the_words_of_messages_stay(database: Database) -> None:
    store = ConversationStore(database)
    made = store.create("ada", key_id=KEY, now=1.0, metadata={"title": "Kittens"}, items=[a_message("dogs bark")])
    store.update("ada", made.id, {"title": "Dogs"})
    store.update("ada", made.id, {})
    assert [len(store.list("ada", query).data) for query in ("kitten", "dog", "barking")] == [0, 1, 1]


def test_a_deleted_item_is_forgotten_by_search_and_memory(database: Database) -> None:
    store = ConversationStore(database)
    made = store.create("ada", key_id=KEY, now=1.0, items=[a_message("first password"), a_message("second thing")])
    memory = add_passage(database, "ada", made.id)
    item = store.items("ada", made.id, order="asc").data[0]
    assert store.delete_item("ada", made.id, item["id"]) == made
    assert [one["content"][0]["text"] for one in store.items("ada", made.id).data] == ["second thing"]
    assert [len(store.list("ada", query).data) for query in ("password", "thing")] == [0, 1]
    assert "passages" not in rows(database)
    assert rows(database)["items"] == 1
    with database.reading() as connection:
        assert connection.scalar(select(VECTOR_STORES.c.changes).where(VECTOR_STORES.c.id == memory)) == 1
    with pytest.raises(NotFoundError):
        store.get_item("ada", made.id, item["id"])
    # The place of a deleted item is not used again: a page that begins after it stays valid.
    store.add_items("ada", made.id, [a_message("third")], key_id=KEY, now=2.0)
    assert len(store.items("ada", made.id).data) == 2


def test_a_deleted_conversation_leaves_no_row(database: Database) -> None:
    store = ConversationStore(database)
    made = store.create(
        "ada", key_id=KEY, now=1.0, metadata={"title": "t"}, items=[a_message("one"), a_message("two")]
    )
    add_response(database, "ada", made.id, "three")
    memory = add_passage(database, "ada", made.id)
    other = store.create("bob", key_id=KEY, now=1.0, metadata={"title": "t"}, items=[a_message("one")])
    add_response(database, "bob", other.id, "three")
    add_passage(database, "bob", other.id)
    before = rows(database)
    assert set(before) >= {"responses", "response_items", "passages", "conversation_terms", "items"}
    sums = store.delete("ada", made.id)
    assert (sums.items, sums.responses, sums.passages) == (3, 1, 1)
    with database.reading() as connection:
        for table in METADATA.sorted_tables:
            left = [dict(row) for row in connection.execute(select(table)).mappings()]
            assert made.id not in repr(left), table.name
            if "tenant" in table.c:
                mine = [row for row in left if row["tenant"] == "ada"]
                assert [row["id"] for row in mine] == ([memory] if table is VECTOR_STORES else []), table.name
        assert connection.scalar(select(VECTOR_STORES.c.changes).where(VECTOR_STORES.c.id == memory)) == 1
    # Nothing of the other tenant is missing.
    store.delete("bob", other.id)
    assert rows(database) == {"vector_stores": 2}


def test_items_of_a_response_of_another_conversation_stay(database: Database) -> None:
    store = ConversationStore(database)
    made = store.create("ada", key_id=KEY, now=1.0, items=[a_message("one")])
    other = store.create("ada", key_id=KEY, now=1.0)
    response = add_response(database, "ada", other.id, "reply")
    item = store.items("ada", made.id).data[0]
    with database.writing() as connection:
        connection.execute(
            insert(RESPONSE_ITEMS).values(response_id=response, position=1, item_id=item["id"], output=False)
        )
    store.delete("ada", made.id)
    with database.reading() as connection:
        assert read_items(connection, "ada", [item["id"]]) == [item]
    store.delete("ada", other.id)
    assert rows(database) == {}


def test_two_turns_at_once_lose_nothing(database: Database, tmp_path: Path, migrated_url: str | None) -> None:
    """Two processes append to one conversation: two databases, each with its own lock."""
    store = ConversationStore(database)
    made = store.create("ada", key_id=KEY, now=1.0)
    failures: list[BaseException] = []

    def turns(name: str) -> None:
        second = Database(tmp_path, migrated_url)
        try:
            mine = ConversationStore(second)
            for number in range(10):
                pair = [a_message(f"{name} {number} in"), a_message(f"{name} {number} out", "assistant")]
                mine.add_items("ada", made.id, pair, key_id=KEY, now=2.0)
        except StoreError as error:
            failures.append(error)
        finally:
            second.close()

    threads = [threading.Thread(target=turns, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    texts = [item["content"][0]["text"] for item in store.items("ada", made.id, limit=100, order="asc").data]
    assert len(texts) == 40
    assert all(texts[at].replace(" in", " out") == texts[at + 1] for at in range(0, 40, 2))
    assert [text for text in texts if text[0] == "a"] == [
        f"a {n} {way}" for n in range(10) for way in ("in", "out")
    ]


def test_a_block_that_reads_sees_one_state(database: Database) -> None:
    store = ConversationStore(database)
    made = store.create("ada", key_id=KEY, now=1.0, items=[a_message("one")])
    with database.reading() as connection:
        terms = select(func.count()).select_from(CONVERSATION_TERMS)
        before = connection.scalar(terms)
        writer = threading.Thread(target=store.delete, args=("ada", made.id))
        writer.start()
        writer.join()
        assert connection.scalar(terms) == before
    assert rows(database) == {}


CALLS: tuple[Callable[[ConversationStore, str, str], object], ...] = (
    lambda store, one, item: store.get("ada", one),
    lambda store, one, item: store.update("ada", one, {}),
    lambda store, one, item: store.close("ada", one, 1.0),
    lambda store, one, item: store.delete("ada", one),
    lambda store, one, item: store.list("ada", after=one),
    lambda store, one, item: store.items("ada", one),
    lambda store, one, item: store.add_items("ada", one, [a_message("x")], key_id=KEY, now=1.0),
    lambda store, one, item: store.get_item("ada", one, item),
    lambda store, one, item: store.delete_item("ada", one, item),
    lambda store, one, item: store.export("ada", one),
)


def test_a_foreign_conversation_does_not_exist(database: Database) -> None:
    store = ConversationStore(database)
    foreign = store.create("bob", key_id=KEY, now=1.0, metadata={"title": "t"}, items=[a_message("secret")])
    item = store.items("bob", foreign.id).data[0]["id"]
    before = rows(database)
    for call in CALLS:
        for unknown in (foreign.id, "conv_" + "0" * 32):
            with pytest.raises(NotFoundError) as raised:
                call(store, unknown, item)
            assert str(raised.value) == f"No conversation found with id '{unknown}'."
    assert rows(database) == before
    assert store.get("bob", foreign.id) == foreign
