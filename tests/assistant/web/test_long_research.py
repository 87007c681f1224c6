"""A research whose results exceed the context of a small engine, which rejects a prompt that is too long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.assistant.turns.results_fit import REMOVED
from appliance.errors import InvalidRequestError
from tests.assistant.gateway_stand_in import ActingRequest
from tests.assistant.web.conftest import CHAT, SearchingAssistant, searching_assistant
from tests.search.running import SmallWeb

CONTEXT = 4096
WEB: Any = [{"type": "web_search"}]
ASK: Any = [{"role": "user", "content": "capital?"}]
FILLER = "The river is long and the bridge is old. " * 60


def tokens(body: dict[str, Any]) -> int:
    """Return the tokens of a prompt by a tokenizer with four bytes a token."""
    return len(json.dumps([body["messages"], body.get("tools", [])]).encode()) // 4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, web: SmallWeb) -> Iterator[SearchingAssistant]:
    with searching_assistant(tmp_path_factory.mktemp("small"), web, context=CONTEXT) as running:
        respond = running.model.respond

        def limited(request: ActingRequest) -> Any:
            body = request.body
            if tokens(body) + (body.get("max_tokens") or 1) > CONTEXT:
                raise InvalidRequestError("the prompt is too long", code="context_length_exceeded")
            return respond(request)

        running.gateway.responses[CHAT] = limited
        running.gateway.responses["/tokenize"] = lambda request: {"count": tokens(request.body)}
        yield running


@pytest.fixture
def research(small: SearchingAssistant) -> SearchingAssistant:
    """A model that searches seven times, and a web with long results."""
    small.web.reset()
    small.web.results = [small.web.result(f"/{n}", f"Page {n}", FILLER) for n in range(8)]
    small.model.requests.clear()
    small.model.replies = [*([("web_search", {"query": f"rivers {n}"})] for n in range(7)), "Rome [1]."]
    return small


def check(research: SearchingAssistant) -> None:
    """Check that the last call has the newest results, and no text of the oldest ones."""
    assert len(research.web.queries) == 7
    texts = research.model.tool_texts()
    assert len(texts) == 7, "each call has a result"
    assert texts[0] == REMOVED
    assert "bridge" in texts[-1]


def test_a_response_keeps_the_newest_results(research: SearchingAssistant) -> None:
    with research.client() as client:
        made = client.responses.create(model="fake", input="capital?", tools=WEB)
    assert made.status == "completed"
    assert made.output_text == "Rome [1]."
    check(research)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_keeps_the_newest_results(research: SearchingAssistant, stream: bool) -> None:
    with research.client() as client:
        made: Any = client.chat.completions.create(
            model="fake", messages=ASK, web_search_options={}, stream=stream, max_tokens=600
        )
        text = (
            "".join(chunk.choices[0].delta.content or "" for chunk in made if chunk.choices)
            if stream
            else made.choices[0].message.content
        )
    assert text == "Rome [1]."
    check(research)


@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_that_fills_the_context_gets_its_response_without_results(
    research: SearchingAssistant, chat: bool
) -> None:
    """The first call fits. With one more call and the note in place of its result, the prompt does not."""
    research.model.replies = [[("web_search", {"query": "rivers"})], "I do not know."]
    room = CONTEXT - 100
    ask: Any = [{"role": "user", "content": "y"}]
    with research.client() as client:

        def create() -> str:
            if chat:
                made = client.chat.completions.create(
                    model="fake", messages=ask, web_search_options={}, max_tokens=100
                )
                return made.choices[0].message.content or ""
            return client.responses.create(model="fake", input=ask, tools=WEB, max_output_tokens=100).output_text

        create()
        ask[0]["content"] = "y" * (4 * (room - tokens(research.model.requests[0])) - 8)
        research.model.requests.clear()
        research.model.replies = [[("web_search", {"query": "rivers"})], "I do not know."]
        assert create() == "I do not know."
    assert research.model.tool_texts() == []
    assert "tools" not in research.model.requests[-1]
