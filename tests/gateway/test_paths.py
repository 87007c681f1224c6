"""Spellings of a path: each is the path, or a 404 that suggests the right one; none reaches another path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.gateway import paths
from appliance.http1.types import path_of

OFFERED = sorted(paths.INFERENCE | paths.OPERATIONS | {paths.MODELS, "/v1/models/Qwen/Qwen3-30B-A3B"})


@given(st.sampled_from(OFFERED), st.data())
def test_every_encoding_of_a_path_is_that_path(path: str, data: st.DataObject) -> None:
    encoded = "".join(
        f"%{ord(c):02{data.draw(st.sampled_from('xX'))}}" if data.draw(st.booleans()) else c for c in path
    )
    before = data.draw(st.sampled_from(["", "http://host", "HTTPS://10.0.0.1:8000", "http://[::1]:80"]))
    query = data.draw(st.sampled_from(["", "?beta=true", "?a=%2F"]))
    target = before + ("/" + encoded.removeprefix("%2f").removeprefix("%2F").removeprefix("/")) + query
    assert path_of(target.encode()) == path
    assert paths.methods(path)


@given(st.binary(max_size=60))
def test_any_target_has_a_path_and_reaches_only_known_engine_paths(target: bytes) -> None:
    path = path_of(target)
    allowed = paths.methods(path)
    assert ("POST" in allowed) == (path in paths.INFERENCE)
    assert isinstance(paths.suggestion(path), str)
    assert paths.label(path) in {*paths.OTHER_APIS, "other"}


@pytest.mark.parametrize(
    "path", ["/sleep", "/wake_up", "/v1", "/", "*", "", "/v1/models/", "/v1/load_lora_adapter", "/metrics/x"]
)
def test_other_paths_have_no_method(path: str) -> None:
    assert paths.methods(path) == ()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/chat/completions/", "write /v1/chat/completions"),
        ("/v1//models", "write /v1/models"),
        ("//v1/models/", "write /v1/models"),
        ("/v1/models/", "write /v1/models"),
        ("/V1/Chat/Completions", "write /v1/chat/completions"),
        ("/chat/completions", "the base URL ends in /v1: write /v1/chat/completions"),
        ("/models/", "the base URL ends in /v1: write /v1/models"),
        ("/v1/v1/messages", "the base URL ends in /v1: write /v1/messages"),
        ("/api/v1/chat/completions", "the base URL ends in /v1: write /v1/chat/completions"),
        ("/messages", "the base URL ends in /v1: write /v1/messages"),
        ("/v1/health", "write /health"),
        ("/v1/tokenize/", "write /tokenize"),
        ("/v1/audio/speech", ""),
        ("/", ""),
    ],
)
def test_a_near_miss_suggests_the_right_path(path: str, words: str) -> None:
    assert words in paths.suggestion(path)
    assert bool(paths.suggestion(path)) == bool(words)


@pytest.mark.parametrize(
    ("path", "label", "logged"),
    [
        ("/v1/audio/transcriptions", "/v1/audio", "/v1/audio/transcriptions"),
        ("/v1/files/file-7f3a", "/v1/files", "/v1/files/*"),
        ("/v1/responses/resp_0123", "/v1/responses", "/v1/responses/*"),
        ("/v1/sk-0123-secret", "other", "/v1/*"),
        ("/api/tags", "/api", "/api/tags"),
        ("/wp-login.php", "other", "/*"),
        ("/" + "a/" * 500, "other", "/a/a/a/a/a/a/a"),
    ],
)
def test_an_unknown_path_is_counted_by_a_fixed_label_and_logged_without_ids(
    path: str, label: str, logged: str
) -> None:
    assert (paths.label(path), paths.redacted(path)) == (label, logged)


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("/v1/conversations", "/v1/conversations"),
        ("/v1/conversations/conv_1/items/msg_1", "/v1/conversations"),
        ("/v1/files/f/content", "/v1/files"),
        ("/v1/vector_stores/vs_1/file_batches/b/cancel", "/v1/vector_stores"),
        ("/v1/responses/resp_1", "/v1/responses"),
        ("/v1/responses/input_tokens", "/v1/responses"),
        ("/v1/responses", ""),
        ("/v1/responses/", ""),
        ("/v1/files/", ""),
        ("/v1/filesystem", ""),
        ("/v1/files/../keys", ""),
        ("/v1/files/a/./b", ""),
        ("/v1/files//b", ""),
        ("/v1/chat/completions", ""),
        ("/v1", ""),
    ],
)
def test_a_path_with_state_belongs_to_a_group(path: str, group: str) -> None:
    assert paths.stateful_group(path) == group
    assert ("DELETE" in paths.methods(path, stateful=True)) is bool(group)
    assert "DELETE" not in paths.methods(path)


@given(st.binary(max_size=60))
def test_a_passed_target_has_one_reading(target: bytes) -> None:
    """The assistant decodes it to the path that the gateway checked, and no byte ends the request line."""
    path = path_of(target)
    passed = paths.passed_target(path, b"/x?" + target.partition(b"?")[2].replace(b" ", b"").replace(b"\n", b""))
    own = passed.partition(b"?")[0]
    assert path_of(own) == path or not path.startswith("/")
    assert not {*own} & {*b" \r\n\t?#"}
    assert own.isascii()


def test_another_spelling_is_corrected_only_for_a_site_with_state() -> None:
    assert paths.suggestion("/v1/files/", stateful=True) == "write /v1/files"
    assert paths.suggestion("/files", stateful=True) == "the base URL ends in /v1: write /v1/files"
    assert paths.suggestion("/v1/files/") == ""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/conversations/conv_1/items/msg_1", True),
        ("/v1/conversations/conv_1/items", False),
        ("/v1/conversations/conv_1", False),
        ("/v1/files/items/x", False),
    ],
)
def test_an_item_is_a_part_of_a_conversation(path: str, expected: bool) -> None:
    assert paths.is_item(path) == expected
