"""Clients that have chat completions only, as n8n and editors: memory by a role, citations, and browsers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.assistant_clients.site import ORIGIN, ROLE, ServiceWithState

FAST = "fake: tokens=3 itl_ms=0 ttft_ms=0"


@pytest.fixture(scope="module")
def client(stateful: ServiceWithState) -> Iterator[OpenAI]:
    """A user with a handbook, which is the memory of the role."""
    with stateful.client(stateful.new_user("plain")) as client:
        store = client.vector_stores.create(name="handbook")
        file = ("heat.md", b"The heat pump is serviced every October by Nordwind.")
        done = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=file)
        assert done.status == "completed"
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_has_citations_that_the_sdk_reads(client: OpenAI, stream: bool) -> None:
    messages: Any = [{"role": "user", "content": f"Which company services the heat pump? {FAST}"}]
    found: Any = []
    if stream:
        for chunk in client.chat.completions.create(model=ROLE, messages=messages, stream=True):
            for choice in chunk.choices:
                found += choice.delta.to_dict().get("annotations") or []
    else:
        made = client.chat.completions.create(model=ROLE, messages=messages)
        found = made.choices[0].message.to_dict()["annotations"]
    assert [one["type"] for one in found] == ["file_citation"]
    assert "heat.md" in json.dumps(found)


def test_an_editor_keeps_its_own_system_messages(stateful: ServiceWithState, client: OpenAI) -> None:
    system = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Use metres."}]
    messages: Any = [*system, {"role": "user", "content": f"Which company services the heat pump? {FAST}"}]
    client.chat.completions.create(model=ROLE, messages=messages, max_tokens=32_000)
    sent = json.loads(stateful.last()["body"])
    assert [one["role"] for one in sent["messages"]] == ["system", "user"], "one system message, the first"
    assert all(text in sent["messages"][0]["content"] for text in ("Be brief.", "Use metres.", "Nordwind"))
    assert sent["max_tokens"] <= 4096, "reduced to the context"


def test_a_chat_without_a_relevant_passage_is_unchanged(stateful: ServiceWithState, client: OpenAI) -> None:
    text = f"how do I bake sourdough bread {FAST}"
    made = client.chat.completions.create(model=ROLE, messages=[{"role": "user", "content": text}])
    assert made.choices[0].message.annotations is None
    assert "Nordwind" not in stateful.last()["body"]


@pytest.mark.parametrize(("origin", "allowed"), [(ORIGIN, True), ("https://elsewhere.example", False)])
def test_only_a_page_of_an_allowed_origin_reaches_the_assistant(
    stateful: ServiceWithState, origin: str, allowed: bool
) -> None:
    request = urllib.request.Request(f"{stateful.url}/v1/conversations", method="OPTIONS")
    request.add_header("Origin", origin)
    request.add_header("Access-Control-Request-Method", "POST")
    request.add_header("Access-Control-Request-Headers", "authorization,content-type")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            headers = response.headers
    except urllib.error.HTTPError as error:
        with error:
            headers = error.headers
    assert headers.get("access-control-allow-origin") == (origin if allowed else None)
