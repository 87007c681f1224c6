"""The Python code of docs/, run as written against the service with state."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI

from tests.assistant_clients.site import MODEL, ServiceWithState
from tests.conftest import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    (path.name, number, code)
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, code in enumerate(BLOCK.findall(path.read_text()))
    if "client." in code
]


def _the_chat_is_found(_client: OpenAI, names: dict[str, Any]) -> None:
    assert [one["id"] for one in names["found"]["data"]] == [names["chat"].id]


def _the_retriever_finds(client: OpenAI, names: dict[str, Any]) -> None:
    store = client.vector_stores.create(name="capitals")
    text = b"Oslo is the capital of Norway."
    client.vector_stores.files.upload_and_poll(file=("oslo.md", text), vector_store_id=store.id)
    (found,) = names["VectorStoreRetriever"](client=client, store=store.id).invoke("capital of Norway")
    assert (found.page_content, found.metadata) == (text.decode(), {"source": "oslo.md"})


CHECKS: dict[str, Callable[[OpenAI, dict[str, Any]], None]] = {
    "chats.md": _the_chat_is_found,
    "clients.md": _the_retriever_finds,
}
"""By page, what its code leads to; a page with Python for the SDK and without an entry fails."""


@pytest.mark.parametrize(("page", "number", "code"), PAGES, ids=[f"{page}-{number}" for page, number, _ in PAGES])
def test_the_code_of_a_page_runs(stateful: ServiceWithState, page: str, number: int, code: str) -> None:
    with stateful.client(stateful.new_user(f"docs-{page.removesuffix('.md')}-{number}")) as client:
        names: dict[str, Any] = {"client": client, "__name__": "docs"}
        exec(compile(code.replace('"qwen"', repr(MODEL)), page, "exec", dont_inherit=True), names)
        CHECKS[page](client, names)


def test_the_pages_have_code() -> None:
    assert {page for page, _, _ in PAGES} == CHECKS.keys()
