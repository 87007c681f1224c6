"""Estimates of a request's tokens, and the limit that a budget writes into its body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.gateway.body import decode
from appliance.gateway.budgets import TokenNeed
from appliance.gateway.token_need import DEFAULT_COMPLETION, MEDIA_TOKENS, text_tokens, token_need, with_budget

CHAT = "/v1/chat/completions"


def need_of(body: dict[str, Any], path: str = CHAT, task: str = "generate", sequences: int = 1) -> TokenNeed:
    """Return the need of ``body`` for a model with a context of 4096."""
    data = json.dumps({"model": "m"} | body).encode()
    return token_need(decode(data), data, path=path, task=task, context=4096, sequences=sequences)


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize(
    ("text", "bytes_of_token"),
    [
        ("The gateway reserves the tokens of a request before an engine counts them. " * 4, 4),
        ("Шлюз резервирует токены запроса до того, как их посчитает модель. " * 4, 5),
        ("def total(self) -> int:\n    return self.prompt + self.response\n" * 4, 3),
        ("3.14159265358979323846 27182818284590452353", 1),
    ],
    ids=["English", "Russian", "code", "digits"],
)
def test_the_estimate_is_above_the_usual_tokens_of_a_text(text: str, bytes_of_token: int) -> None:
    tokens = len(text.encode()) // bytes_of_token
    assert text_tokens(json.dumps(text, ensure_ascii=False).encode()) >= tokens
    assert tokens <= text_tokens(json.dumps(text).encode()) < 3 * tokens, "the same text with escapes"


def test_a_limit_bounds_the_response_and_the_context_bounds_both() -> None:
    limited = need_of(said("hi", max_tokens=100))
    assert (limited.response, limited.limited, limited.ceiling) == (100, True, 4096)
    assert need_of(said("hi", max_tokens=10, max_completion_tokens=50)).response == 50
    assert need_of(said("hi", max_tokens=10**6)).response == 4096
    free = need_of(said("hi"))
    assert (free.response, free.limited, free.total(free.response)) == (4096, False, 4096)
    assert need_of(said("hi", max_tokens=None)).limited is False
    long = need_of(said("word " * 10_000))
    assert (long.prompt, long.total(long.response)) == (4096, 4096)


def test_several_choices_have_a_context_each() -> None:
    need = need_of(said("hi", n=3), sequences=3)
    assert (need.responses, need.total(need.response)) == (3, 3 * 4096)


def test_a_completion_without_a_limit_has_the_default_of_the_api() -> None:
    need = need_of({"prompt": "hi"}, "/v1/completions")
    assert (need.response, need.limited) == (DEFAULT_COMPLETION, True)


def test_an_image_counts_by_itself_and_not_by_its_bytes() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    body = json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()
    assert MEDIA_TOKENS < text_tokens(body) < MEDIA_TOKENS + 100
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}
    anthropic = json.dumps({"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]})
    assert MEDIA_TOKENS < text_tokens(anthropic.encode()) < MEDIA_TOKENS + 100
    text = json.dumps(said("data: " + "A" * 3000)).encode()
    assert text_tokens(text) > 1000, "a text that looks like data is text"


def test_embeddings_and_pairs_have_no_response() -> None:
    many = need_of({"input": ["word " * 100] * 50}, "/v1/embeddings", "embed")
    assert (many.response, many.ceiling) == (0, None)
    assert many.prompt > 8000, "the inputs together exceed the context of each"
    query = "word " * 100
    ranked = need_of({"query": query, "documents": ["a", "b", "c"]}, "/v1/rerank", "rerank")
    assert ranked.prompt > 3 * text_tokens(query.encode()), "each pair repeats the query"
    assert need_of({"text_1": query, "text_2": ["a"] * 9}, "/v1/score", "rerank").prompt > 9 * 166


@pytest.mark.parametrize(
    ("path", "field"),
    [(CHAT, "max_tokens"), ("/v1/responses", "max_output_tokens"), ("/v1/messages", "max_tokens")],
)
def test_a_cap_is_the_limit_of_a_body_without_one(path: str, field: str) -> None:
    body = json.dumps({"model": "m", "x": 1.0}).encode()
    edited = json.loads(with_budget(body, decode(body), path, 300))
    assert edited == {"model": "m", "x": 1.0, field: 300}


def test_a_cap_reduces_larger_limits_only() -> None:
    body = json.dumps({"model": "m", "max_tokens": 50, "max_completion_tokens": 5000}).encode()
    edited = json.loads(with_budget(body, decode(body), CHAT, 300))
    assert (edited["max_tokens"], edited["max_completion_tokens"]) == (50, 300)


def test_a_cap_does_not_lengthen_a_completion() -> None:
    body = b'{"model":"m","prompt":"hi"}'
    assert json.loads(with_budget(body, decode(body), "/v1/completions", 300))["max_tokens"] == 16


@pytest.mark.parametrize("documents", ["x", None, 7, {"a": 1}, [[1], {"b": 2}]])
def test_a_body_that_an_engine_rejects_has_an_estimate(documents: Any) -> None:
    assert need_of({"query": 5, "documents": documents}, "/v1/rerank", "rerank").prompt > 0
