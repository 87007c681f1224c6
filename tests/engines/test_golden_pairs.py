"""The self-test of golden pairs: what passes, and each kind of noise that does not."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.contract.load import validate
from appliance.contract.model import Site
from appliance.engines import golden_pairs
from appliance.engines.golden_pairs import OTHERS, check, judge_scores, judge_vectors
from appliance.engines.recipe import QUERY_PREFIX
from tests.conftest import a_site
from tests.ports import free_port

PAIRS = golden_pairs.golden_pairs()
TOPICS = {text: row for row, pair in enumerate(PAIRS) for text in (pair.query, pair.text)}
DIMENSIONS = 16

Reply = Callable[[str, dict[str, Any]], object]


def a_model(task: str, **model: Any) -> Site:
    table = a_site(8000, 8101, Path("var"))
    table["models"]["m"] = {"source": "./m", "task": task, **model}
    table["engines"]["m"] = table["engines"]["chat"] | {"kind": "vllm", "model": "m", "port": 8102}
    return validate("site", table)


@contextmanager
def engine(reply: Reply) -> Iterator[str]:
    """Serve ``reply`` on a port of its own: it gets the path and the request; bytes are sent as they are."""

    class VectorHandler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            value = reply(self.path, body)
            status, value = value if isinstance(value, tuple) else (200, value)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", free_port()), VectorHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def noise(text: str) -> list[float]:
    """Return a unit vector that depends on nothing but the bytes of ``text``."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS)
    return [float(x) for x in vector / np.linalg.norm(vector)]


def meaning(text: str) -> list[float]:
    """Return a unit vector in the direction of the text's topic."""
    vector = np.array(noise(text)) * 0.5 + np.eye(DIMENSIONS)[TOPICS[text.removeprefix(QUERY_PREFIX)]]
    return [float(x) for x in vector / np.linalg.norm(vector)]


def embedding(vector: Callable[[str], list[float]]) -> Reply:
    return lambda _, body: {"data": [{"embedding": vector(text)} for text in body["input"]]}


def ranking(score: Callable[[str, str], float]) -> Reply:
    def reply(_: str, body: dict[str, Any]) -> object:
        scores = [score(body["query"], document) for document in body["documents"]]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return {"results": [{"index": index, "relevance_score": scores[index]} for index in order]}

    return reply


def verdict(site: Site, reply: Reply) -> str:
    with engine(reply) as url:
        return check(url, site.engines["m"], site, timeout_s=60)


def test_the_pairs_are_in_both_languages_and_their_texts_are_distinct() -> None:
    assert len(PAIRS) == 8
    assert len(TOPICS) == 16
    russian = [any("\u0430" <= letter <= "\u044f" for letter in text.lower()) for text in TOPICS]
    assert sum(russian) == 8
    assert max(OTHERS) < len(PAIRS)


def test_vectors_and_scores_with_a_meaning_pass() -> None:
    assert verdict(a_model("embed"), embedding(meaning)) == ""
    assert verdict(a_model("rerank"), ranking(lambda query, text: float(TOPICS[query] == TOPICS[text]))) == ""


def test_a_query_has_the_instruction_of_its_recipe() -> None:
    seen: list[str] = []

    def reply(path: str, body: dict[str, Any]) -> object:
        seen.extend(body["input"])
        return embedding(meaning)(path, body)

    assert verdict(a_model("embed", recipe="qwen3-embedding"), reply) == ""
    assert seen == [QUERY_PREFIX + pair.query for pair in PAIRS] + [pair.text for pair in PAIRS]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (embedding(noise), "of 8 queries prefer their own text"),
        (embedding(lambda _: [1.0, *[0.0] * 15]), "0 of 8 queries prefer their own text"),
        (embedding(lambda text: [2 * x for x in meaning(text)]), "a vector has length 2 instead of 1"),
        (embedding(lambda text: [float("nan"), *meaning(text)[1:]]), "a vector contains NaN or infinity"),
        (embedding(lambda _: [0.0] * 16), "a vector has length 0 instead of 1"),
        (lambda *_: {"data": [{"embedding": [1.0]}]}, "8 texts have 1 vectors"),
        (lambda *_: {"data": [{"embedding": "AAAA"}] * 8}, "has no vectors"),
        (lambda *_: {}, "the response to /v1/embeddings has no vectors"),
        (lambda *_: b"oops", "/v1/embeddings returned no JSON: oops"),
        (lambda *_: b"[]", "/v1/embeddings returned no JSON object: []"),
        (lambda *_: (400, {"error": "no pooling"}), "/v1/embeddings returned status 400: {"),
    ],
)
def test_an_embedder_that_returns_noise_fails_with_cause_and_exception(reply: Reply, words: str) -> None:
    reason = verdict(a_model("embed"), reply)
    assert words in reason
    assert "Likely causes: not the pooling or the end token of the model" in reason
    assert 'models."m".golden_pairs_skipped = "REASON" skips the test' in reason


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (ranking(lambda query, text: noise(query + text)[0]), "queries prefer their own text"),
        (ranking(lambda *_: 0.5), "0 of 8 queries prefer their own text"),
        (
            ranking(lambda query, text: 0.5 + 0.01 * (TOPICS[query] == TOPICS[text])),
            "the mean is 0.510",
        ),
        (ranking(lambda query, text: -float(TOPICS[query] == TOPICS[text])), "0 of 8 queries"),
        (ranking(lambda *_: float("nan")), "a score is NaN, infinity or absent"),
        (lambda *_: {"results": [{"index": 0, "relevance_score": 1.0}]}, "a score is NaN, infinity or absent"),
        (
            lambda *_: {"results": [{"index": 9, "relevance_score": 1.0}]},
            "the response to /v1/rerank has no scores",
        ),
        (lambda *_: {"results": None}, "the response to /v1/rerank has no scores"),
    ],
)
def test_a_reranker_that_returns_noise_fails_and_names_the_template(reply: Reply, words: str) -> None:
    reason = verdict(a_model("rerank"), reply)
    assert words in reason
    assert "Likely causes: no prompt template or no overrides" in reason


def test_one_miss_is_accepted_and_two_are_not() -> None:
    others = ~np.eye(8, dtype=bool)
    scores = np.eye(8)
    scores[0] = scores[0][::-1]
    assert judge_scores(scores, others) == ""
    scores[1] = scores[1][::-1]
    assert judge_scores(scores, others).startswith("6 of 8 queries")


def test_another_number_of_dimensions_is_a_failure() -> None:
    rows = np.eye(8)
    assert judge_vectors(rows, rows, 8) == ""
    assert judge_vectors(rows, rows, 512) == "the vectors have 8 dimensions instead of 512"


def test_a_closed_port_is_a_reason() -> None:
    site = a_model("embed")
    reason = check(f"http://127.0.0.1:{free_port()}", site.engines["m"], site)
    assert "no response (ConnectionRefusedError)" in reason


@pytest.mark.parametrize("case", ["a mock", "generates", "skipped"])
def test_engines_without_a_meaning_are_not_tested(case: str) -> None:
    site = a_model(
        "generate" if case == "generates" else "embed",
        **({"golden_pairs_skipped": "random weights"} if case == "skipped" else {}),
    )
    tested = site.engines["m"]
    if case == "a mock":
        tested = tested.model_copy(update={"kind": "mock"})
    assert check(f"http://127.0.0.1:{free_port()}", tested, site) == ""
