"""Web search from the client's key to the engine: gateway, assistant, fetcher and mock engine as processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.assistant.running import AssistantUnderTest, whole_service
from tests.conftest import RunningService, usage_rows, wait_until
from tests.gateway.running.conftest import create_key
from tests.search.running import FETCHER_KEY, SmallWeb

WEB: Any = [{"type": "web_search"}]


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, web: SmallWeb
) -> Iterator[tuple[RunningService, AssistantUnderTest]]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "key").write_text(FETCHER_KEY)
    search: dict[str, Any] = {
        "url": web.search_url,
        "fetcher_url": web.fetcher_url,
        "key_file": str(folder / "key"),
    }
    search |= {"timeout_s": 60.0}
    roles = {"seeker": {"model": "fake", "search": True, "system_prompt": "Search first."}}
    with whole_service(folder, search=search, roles=roles, users={"bob": {"requests_per_minute": 3}}) as service:
        yield service


@pytest.fixture
def service(both: tuple[RunningService, AssistantUnderTest], web: SmallWeb) -> RunningService:
    web.reset()
    return both[0]


@pytest.fixture
def ada(service: RunningService) -> Iterator[OpenAI]:
    with OpenAI(base_url=service.url + "/v1", api_key=service.key, max_retries=0) as client:
        yield client


def test_each_call_of_the_engine_is_billed_once(service: RunningService, ada: OpenAI, web: SmallWeb) -> None:
    def chats() -> list[dict[str, Any]]:
        # A prompt that nearly fills the context is counted by /tokenize, which has rows without tokens.
        return [row for row in usage_rows(service.data) if row["endpoint"] == "/v1/chat/completions"]

    before = len(chats())
    made = ada.responses.create(model="fake", input="capital? fake: web=3 tokens=4", tools=WEB, store=False)
    kinds = [item.to_dict()["action"]["type"] for item in made.output[:-1]]  # type: ignore[index]
    assert kinds == ["search", "open_page", "find_in_page"]
    assert made.output_text.endswith("[1]")
    wait_until(lambda: len(chats()) == before + 4, "four usage rows")
    rows = chats()[before:]
    assert made.usage is not None
    assert made.usage.output_tokens == sum(row["completion_tokens"] for row in rows)
    assert "Rome is the capital of **Italy**" in service.last()["body"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_of_a_role_searches(service: RunningService, ada: OpenAI, web: SmallWeb, stream: bool) -> None:
    messages: Any = [{"role": "user", "content": "capital? fake: web=1 tokens=4"}]
    made: Any = ada.chat.completions.create(model="seeker", messages=messages, stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in made if chunk.choices)
    else:
        text = made.choices[0].message.content
        assert made.choices[0].message.annotations[0].url_citation.url == web.site.url("/page")
    assert text.endswith("[1]")
    assert web.queries == ["capital of Italy"]
    assert "Search first." in service.last()["body"]


def test_options_of_a_chat_reach_the_assistant_and_other_chats_do_not(
    service: RunningService, ada: OpenAI, web: SmallWeb
) -> None:
    messages: Any = [{"role": "user", "content": "capital? fake: web=1 tokens=4"}]
    ada.chat.completions.create(model="fake", messages=messages, web_search_options={})
    assert len(web.queries) == 1
    ada.chat.completions.create(model="fake", messages=messages)
    assert len(web.queries) == 1
    made = ada.responses.create(model="seeker", input="x fake: web=1 tokens=2", store=False)
    assert made.output[0].type == "web_search_call"


def test_a_quota_that_ends_in_the_loop_bills_what_ran(service: RunningService, ada: OpenAI) -> None:
    with OpenAI(base_url=service.url + "/v1", api_key=create_key(service, "bob"), max_retries=0) as bob:
        made = bob.responses.create(model="seeker", input="x fake: web=9")
        assert made.status == "failed"
        assert made.error is not None
        assert made.error.code == "rate_limit_exceeded"
        searches = [item for item in made.output if item.type == "web_search_call"]

        def billed() -> int:
            return len([row for row in usage_rows(service.data) if row["user"] == "bob" and row["status"] == 200])

        wait_until(lambda: billed() == len(searches), "one usage row a call of the engine")
