"""The fingerprint of an embedder: each field counts, and the refusal names the fix."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint, require_same
from appliance.errors import ConflictError

QWEN = EmbedderFingerprint(
    model="Qwen/Qwen3-Embedding-8B",
    revision="1d8ad4ca9b3dd8059ad90a75d4983776a23d44af",
    pooling="last",
    instruction="Instruct: Given a request, retrieve passages\nQuery:",
    dimensions=4096,
    dtype="bfloat16",
)


@pytest.mark.parametrize("name", [field.name for field in fields(EmbedderFingerprint)])
def test_another_value_of_any_field_is_refused(name: str) -> None:
    changed = replace(QWEN, **{name: 1024 if name == "dimensions" else "other"})  # type: ignore[arg-type]
    assert changed.digest != QWEN.digest
    with pytest.raises(ConflictError) as caught:
        require_same(QWEN, changed, store="vs_1")
    message = str(caught.value)
    assert caught.value.status == 409
    assert caught.value.code == "embedder_changed"
    assert name in message
    assert "appliance memory reindex vs_1" in message
    assert "\n" not in message, "an error is one line"


def test_the_same_embedder_is_accepted() -> None:
    require_same(QWEN, replace(QWEN), store="vs_1")
    assert QWEN.digest == replace(QWEN).digest
    assert len(QWEN.digest) == 32


def test_the_digest_is_stable_between_versions_of_the_program() -> None:
    assert QWEN.digest.hex()[:16] == "57b0dc0899f09d7f"


def test_values_of_two_fields_do_not_merge() -> None:
    assert replace(QWEN, model="a", revision="bc").digest != replace(QWEN, model="ab", revision="c").digest
