"""Web search in chat completions: `web_search_options`, the role, streams, and the client's own functions."""

from __future__ import annotations

from typing import Any

import pytest
from openai import APIError, APIStatusError, BadRequestError, OpenAI

from tests.assistant.web.conftest import SearchingAssistant

QUERY = [("web_search", {"query": "capital of Italy"})]
ASK: Any = [{"role": "user", "content": "capital?"}]
OWN: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def test_a_chat_searches_and_has_citations(assistant: SearchingAssistant, ada: OpenAI) -> None:
    assistant.model.replies = [QUERY, [("open_page", {"page": "1"})], "Rome [1]."]
    made = ada.chat.completions.create(
        model="fake", messages=ASK, web_search_options={"search_context_size": "high"}
    )
    [choice] = made.choices
    assert choice.finish_reason == "stop"
    assert choice.message.content == "Rome [1]."
    assert choice.message.tool_calls is None
    [annotation] = choice.message.annotations or []
    assert annotation.type == "url_citation"
    cited = annotation.url_citation
    assert (cited.start_index, cited.end_index, cited.title) == (5, 8, "Capitals & rivers")
    assert cited.url == assistant.web.site.url("/page")
    assert made.usage is not None
    assert made.usage.total_tokens == 45, "the tokens of three calls of the engine"
    assert "web_search_options" not in assistant.model.requests[0]


def test_a_stream_is_one_completion(assistant: SearchingAssistant, ada: OpenAI) -> None:
    assistant.model.replies = [QUERY, "Rome [1]."]
    chunks = list(
        ada.chat.completions.create(
            model="seeker", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    assert {chunk.id for chunk in chunks} == {"chatcmpl-1"}
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "Rome [1]."
    assert not any(delta.tool_calls for delta in deltas)
    assert [delta.role for delta in deltas if delta.role] == ["assistant"]
    [annotations] = [found for delta in deltas if (found := (delta.model_extra or {}).get("annotations"))]
    assert annotations[0]["url_citation"]["start_index"] == 5
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [finish for finish in finishes if finish] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 30


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_the_client_are_returned(assistant: SearchingAssistant, ada: OpenAI, stream: bool) -> None:
    both = [("weather", {"place": "Rome"}), *QUERY]
    assistant.model.replies = [QUERY, both]
    made: Any = ada.chat.completions.create(model="seeker", messages=ASK, tools=OWN, stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in made]
        calls = [call for choice in choices for call in choice.delta.tool_calls or []]
        finish = choices[-1].finish_reason
    else:
        calls, finish = made.choices[0].message.tool_calls, made.choices[0].finish_reason
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", '{"place": "Rome"}')]
    assert finish == "tool_calls"
    assert assistant.web.queries == ["capital of Italy"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_that_is_cut_ends_the_completion(
    assistant: SearchingAssistant, ada: OpenAI, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(assistant.model, "finish", "length")
    assistant.model.replies = [QUERY]
    made: Any = ada.chat.completions.create(model="seeker", messages=ASK, max_tokens=5, stream=stream)
    last = [chunk.choices[0] for chunk in made][-1] if stream else made.choices[0]
    assert last.finish_reason == "length"
    assert (len(assistant.model.requests), assistant.web.queries) == (1, [])


def test_the_limit_of_tokens_is_that_of_the_completion(assistant: SearchingAssistant, ada: OpenAI) -> None:
    assistant.model.replies = [QUERY, "Rome [1]."]
    ada.chat.completions.create(model="seeker", messages=ASK, max_tokens=50)
    assert [one["max_tokens"] for one in assistant.model.requests] == [50, 45]


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_without_usage_each_byte_counts_as_a_token(
    assistant: SearchingAssistant, ada: OpenAI, monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    """The call has 39 bytes: its name and its arguments."""
    monkeypatch.setattr(assistant.model, "counts", False)
    assistant.model.replies = [QUERY, "Rome [1]."]
    if api == "chat":
        list(ada.chat.completions.create(model="seeker", messages=ASK, max_tokens=50, stream=True))
    else:
        ada.responses.create(model="seeker", input="capital?", max_output_tokens=50)
    assert [one["max_tokens"] for one in assistant.model.requests] == [50, 11]
    assert assistant.model.requests[0]["stream_options"] == {"include_usage": True}


def test_searches_are_limited(assistant: SearchingAssistant, ada: OpenAI) -> None:
    assistant.model.replies = [QUERY] * 20
    made = ada.chat.completions.create(model="seeker", messages=ASK)
    assert made.choices[0].finish_reason == "stop"
    assert len(assistant.web.queries) == 8
    assert "tools" not in assistant.model.requests[-1]


def test_a_failed_search_is_a_result(assistant: SearchingAssistant, ada: OpenAI) -> None:
    assistant.web.status = 403
    assistant.model.replies = [QUERY, "It cannot be searched."]
    made = ada.chat.completions.create(model="seeker", messages=ASK)
    assert made.choices[0].message.content == "It cannot be searched."
    assert "add json to search.formats" in assistant.model.tool_texts()[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"n": 2}, "remove n"),
        ({"tool_choice": "none", "tools": OWN}, "tool_choice none"),
        ({"tools": [{"type": "function", "function": {"name": "open_page"}}]}, "open_page"),
    ],
)
def test_a_request_that_cannot_search_is_refused(
    assistant: SearchingAssistant, ada: OpenAI, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadRequestError, match=words):
        ada.chat.completions.create(model="fake", messages=ASK, web_search_options={}, **more)
    # The search of a role is off for the same request.
    ada.chat.completions.create(model="seeker", messages=ASK, **more)
    names = [tool["function"]["name"] for tool in assistant.model.requests[-1].get("tools", [])]
    assert "web_search" not in names


@pytest.mark.parametrize("options", [3, {"size": "low"}, {"search_context_size": "huge"}])
def test_options_that_are_not_valid_are_refused(ada: OpenAI, options: Any) -> None:
    with pytest.raises(BadRequestError, match="web_search_options"):
        ada.chat.completions.create(model="fake", messages=ASK, web_search_options=options)


@pytest.mark.parametrize("stream", [False, True])
def test_a_quota_that_ends_in_the_loop_is_an_error(
    assistant: SearchingAssistant, ada: OpenAI, stream: bool
) -> None:
    def ended(_body: Any) -> Any:
        assistant.gateway.errors["/v1/chat/completions"] = (429, "rate_limit_exceeded")
        return QUERY

    assistant.model.replies = [ended]

    def ask() -> None:
        list(ada.chat.completions.create(model="seeker", messages=ASK, stream=stream))

    with pytest.raises(APIError) as raised:
        ask()
    assert raised.value.code == "rate_limit_exceeded"
    assert isinstance(raised.value, APIStatusError) is not stream
