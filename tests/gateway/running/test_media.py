"""Addresses in requests: an engine fetches from allowed hosts only, and addresses in text are forwarded."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import InvalidRequestError
from appliance.gateway import media
from tests.conftest import RunningService, chat, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A gateway with one allowed host."""
    with serving(tmp_path_factory.mktemp("media"), gateway={"media_domains": ["images.example.org"]}) as running:
        yield running


def image(url: object, **more: object) -> dict[str, object]:
    return chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}, **more}]}])


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data", "http://127.0.0.1:8101/pause", "http://[::1]/", "http://10.77.0.2/",
        "file:///etc/passwd", "http://images.example.org@127.0.0.1/", "http://images.example.org\\@127.0.0.1/",
        "http://images.example.org.evil.net/", "http://2130706433/", "//127.0.0.1/x", "HTTP://LOCALHOST/", "gopher://x/",
        "http://images.example.org:80@10.0.0.1/", " http://127.0.0.1/", "http://127.0.0.1\\@images.example.org/",
        "http://user@images.example.org/", "ftp://images.example.org/x", "http://images.example.org/\r\nx",
        "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://[::ffff:169.254.169.254]/", "http://0/",
        "http://images.example.org./", "http://images.example.org%2eevil.net/", "http://xn--images.example.org/",
        "http://\u0131mages.example.org/", "http:images.example.org", "http:///x", "/etc/passwd", "", "blob:x",
        "d\u0430ta:,x",
    ],
)  # fmt: skip
def test_addresses_outside_the_allowed_hosts_are_rejected(service: RunningService, url: str) -> None:
    before = service.stats()["requests"]
    hidden = json.dumps(image(url)).replace("image_url", "image\\u005furl").replace('"url"', '"\\u0075rl"').encode()
    for path, body in (
        ("/v1/chat/completions", image(url)),
        ("/v1/chat/completions", hidden),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
    ):
        response = service.post(path, body if isinstance(body, bytes) else {"model": "fake", **body})
        assert (response.status, response.json["error"]["code"]) == (400, "media_not_allowed"), body
    assert service.stats()["requests"] == before


EVIL = "http://169.254.169.254/latest/meta-data"
SAID = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": kind, kind: {"url": EVIL}}]}]})
        for kind in ("image_url", "video_url", "audio_url")
    ]
    + [
        # The short form without a type, which vLLM accepts, too.
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"image_url": EVIL}]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": [{"image_url": {"url": EVIL}}]}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": EVIL}}]}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t",
            "content": [{"type": "image", "source": {"type": "url", "url": EVIL}}]}]}]}),
        ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "c",
            "output": [{"type": "input_image", "image_url": EVIL}]}]}),
        ("/v1/responses", {"input": [{"type": "computer_call_output", "call_id": "c",
            "output": {"type": "computer_screenshot", "image_url": EVIL}}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": EVIL}]}]}),
        ("/v1/responses", {"input": [{"type": "input_image", "image_url": EVIL}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [
            *[{"type": "text", "text": "x"}] * 50, {"type": "image_url", "image_url": {"url": EVIL}}]}]}),
    ],
)  # fmt: skip
def test_every_form_of_an_address_is_checked(service: RunningService, path: str, body: dict[str, object]) -> None:
    before = service.stats()["requests"]
    response = service.post(path, {"model": "fake", "max_tokens": 4, **body})
    assert response.status == 400, response.body
    assert EVIL in response.json["error"]["message"]
    assert service.stats()["requests"] == before


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/score"])
@pytest.mark.parametrize(
    "field", ["query", "queries", "documents", "items", "data_1", "data_2", "text_1", "text_2"]
)
def test_addresses_in_ranked_content_are_rejected(path: str, field: str) -> None:
    """vLLM accepts content parts there as well, alone or in a list; the mock engine ranks no images."""
    part = {"content": [{"type": "image_url", "image_url": {"url": EVIL}}]}
    for value in (part, ["x", part]):
        with pytest.raises(InvalidRequestError, match="may not fetch"):
            media.check(json.dumps({"model": "m", field: value}).encode(), ("images.example.org",))


@given(st.integers(1, 900), st.sampled_from(["list", "dict"]))
@settings(max_examples=20, deadline=None)
def test_an_address_is_found_at_any_depth(depth: int, kind: str) -> None:
    before, after = ("[" * depth, "]" * depth) if kind == "list" else ('{"x":' * depth, "}" * depth)
    deep = f'{{"messages":[{{"content":[{before}{{"image_url":["{EVIL}"]}}{after}]}}]}}'
    with pytest.raises(InvalidRequestError, match="may not fetch"):
        media.check(deep.encode(), ())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        # A call of a tool with an address: for the engine it is text.
        ("/v1/messages", {"messages": [SAID, {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": "fetch", "input": {"url": "http://10.0.0.1/", "x": 1}}]}]}),
        ("/v1/chat/completions", {"messages": [SAID, {"role": "assistant", "tool_calls": [{"id": "t",
            "type": "function", "function": {"name": "fetch", "arguments": '{"url": "http://10.0.0.1/"}'}}]}]}),
        ("/v1/responses", {"input": [{"role": "assistant", "content": [{"type": "output_text", "text": "x",
            "annotations": [{"type": "url_citation", "url": "https://example.net/", "title": "x"}]}]}]}),
        ("/v1/chat/completions", {"messages": [SAID], "documents": [{"title": "x", "url": "https://example.net/"}]}),
    ],
)  # fmt: skip
def test_an_address_in_text_is_forwarded(service: RunningService, path: str, body: dict[str, object]) -> None:
    sent = {"model": "fake", "max_tokens": 4, **body}
    before = service.stats()["requests"]
    service.post(path, sent)
    assert service.stats()["requests"] == before + 1
    assert json.loads(service.last()["body"]) == sent


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,AAAA", "https://images.example.org/a.png?b=c#d", "DATA:image/png,x"]
)
def test_allowed_media_are_forwarded(service: RunningService, url: str) -> None:
    assert service.post("/v1/chat/completions", image(url)).status == 200


def test_a_url_in_text_or_in_a_tool_is_not_media(service: RunningService) -> None:
    tool = {
        "type": "function",
        "function": {"name": "get", "parameters": {"properties": {"url": {"type": "string"}}}},
    }
    body = chat('look at "url": http://127.0.0.1/', tools=[tool])
    assert service.post("/v1/chat/completions", body).status == 200
