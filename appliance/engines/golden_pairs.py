"""The self-test of embedders and rerankers at their start: pairs of texts that belong together.

An engine with another pooling, without the prompt of its model or with random weights responds with status 200 and
with numbers that mean nothing. The test embeds eight queries and their texts in two languages; each query must be
most similar to its own text. It runs once after a start, never with a canary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.catalog.models import find_model
from appliance.contract.model import Engine, Model, Site
from appliance.engines import embedder_command
from appliance.engines.recipe import query_prefix
from appliance.errors import UsageError
from appliance.system.http_request import NO_RESPONSE, send_request

Matrix = npt.NDArray[np.float64]

TIMEOUT_S = 120.0
"""Seconds for one request of the test: an 8B model on a processor computes for a while."""
MISSES = 1
"""Pairs that may fail: one of eight. By chance, random vectors pass with a probability of 0.000003."""
MARGIN = 0.05
"""Smallest difference of the mean similarities, or scores, of related and unrelated texts."""
LENGTH_ERROR = 0.02
"""Largest difference of a vector's length from 1; bfloat16 has about three digits."""
OTHERS = (1, 3, 6)
"""Distances to the unrelated texts that a reranker scores in addition to the related one."""
SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class GoldenPair:
    """A query and the text that responds to it."""

    query: str
    text: str


@cache
def golden_pairs() -> tuple[GoldenPair, ...]:
    """Return the shipped pairs."""
    lines = files("appliance.engines").joinpath("golden_pairs.txt").read_text(encoding="utf-8").splitlines()
    return tuple(GoldenPair(*line.split("\t")) for line in lines if line and not line.startswith("#"))


def check(url: str, engine: Engine, site: Site, timeout_s: float = TIMEOUT_S) -> str:
    """Test the replica of ``engine`` at ``url``; return the reason of a failure, or an empty string.

    Blocks for two requests, or for one a pair if it is a reranker. Only embedders and rerankers have the test.
    Engines of kind mock or http, and models with ``golden_pairs_skipped``, pass without a request.

    Example::

        reason = check(replica.url, replica.engine, site)
    """
    model = site.models[engine.model]
    if engine.kind in ("mock", "http") or model.task not in _CAUSES or model.golden_pairs_skipped is not None:
        return ""
    try:
        if model.task == "embed":
            found = _check_vectors(url, engine, model, timeout_s)
        else:
            found = _check_scores(url, engine.model, timeout_s)
    except NO_RESPONSE as error:
        found = f"no response ({type(error).__name__})"
    except _UnusableResponseError as error:
        found = str(error)
    if not found:
        return ""
    return (
        f"fails the self-test of golden pairs: {found}. Likely causes: {_CAUSES[model.task]}. "
        f'models."{engine.model}".golden_pairs_skipped = "REASON" skips the test'
    )


_CAUSES = {
    "embed": "not the pooling or the end token of the model (its `recipe`, pooler-config), or other weights",
    "rerank": "no prompt template or no overrides for the model (its `recipe`), or other weights",
}


def expected_dimensions(engine: Engine, model: Model) -> int | None:
    """Return the length of the vectors of ``model``, unless the catalog does not have it."""
    if engine.kind == "embedder":
        return embedder_command.DIMENSIONS
    try:
        return find_model(model.source).hidden
    except UsageError:
        return None


def judge_vectors(queries: Matrix, texts: Matrix, dimensions: int | None) -> str:
    """Return why these vectors cannot be those of the golden pairs, or an empty string.

    Args:
        queries: One row for each query.
        texts: One row for each text, in the same order.
        dimensions: The length of a row, if it is known.
    """
    if dimensions is not None and queries.shape[1] != dimensions:
        return f"the vectors have {queries.shape[1]} dimensions instead of {dimensions}"
    both = np.concatenate([queries, texts])
    if not np.isfinite(both).all():
        return "a vector contains NaN or infinity"
    lengths = np.linalg.norm(both, axis=1)
    if np.abs(lengths - 1).max() > LENGTH_ERROR:
        return f"a vector has length {lengths[np.abs(lengths - 1).argmax()]:.3g} instead of 1"
    return judge_scores(queries @ texts.T, ~np.eye(len(queries), dtype=bool))


def judge_scores(scores: Matrix, others: npt.NDArray[np.bool_]) -> str:
    """Return why these scores are not those of the golden pairs, or an empty string.

    Args:
        scores: A row for each query and a column for each text; related ones are on the diagonal.
        others: True for each scored pair of unrelated texts.
    """
    related = np.diag(scores)
    if not np.isfinite(related).all() or not np.isfinite(scores[others]).all():
        return "a score is NaN, infinity or absent"
    best = np.where(others, scores, -np.inf).max(axis=1)
    hits = int((related > best).sum())
    near, far = float(related.mean()), float(scores[others].mean())
    if hits >= len(scores) - MISSES and near - far >= MARGIN:
        return ""
    return (
        f"{hits} of {len(scores)} queries prefer their own text; the mean is {near:.3f} for related texts and "
        f"{far:.3f} for unrelated ones"
    )


class _UnusableResponseError(Exception):
    """A response without the vectors or scores that were requested."""


def _check_vectors(url: str, engine: Engine, model: Model, timeout_s: float) -> str:
    prefix = query_prefix(model)
    pairs = golden_pairs()
    queries = _vectors(url, engine.model, [prefix + pair.query for pair in pairs], timeout_s)
    texts = _vectors(url, engine.model, [pair.text for pair in pairs], timeout_s)
    if queries.shape != texts.shape:
        return "queries and texts have vectors of different length"
    return judge_vectors(queries, texts, expected_dimensions(engine, model))


def _vectors(url: str, model: str, texts: Sequence[str], timeout_s: float) -> Matrix:
    body = {"model": model, "input": list(texts), "encoding_format": "float"}
    rows = _post(url, "/v1/embeddings", body, timeout_s).get("data")
    try:
        found = np.array([row["embedding"] for row in rows], dtype=np.float64)  # type: ignore[union-attr]
    except (TypeError, KeyError, ValueError):
        raise _UnusableResponseError("the response to /v1/embeddings has no vectors") from None
    if found.ndim != 2 or len(found) != len(texts):
        raise _UnusableResponseError(f"{len(texts)} texts have {len(found)} vectors")
    return found


def _check_scores(url: str, model: str, timeout_s: float) -> str:
    pairs = golden_pairs()
    scores = np.full((len(pairs), len(pairs)), np.nan)
    others = np.zeros(scores.shape, dtype=bool)
    for row, pair in enumerate(pairs):
        columns = [row, *((row + step) % len(pairs) for step in OTHERS)]
        others[row, columns[1:]] = True
        body = {"model": model, "query": pair.query, "documents": [pairs[column].text for column in columns]}
        results = _post(url, "/v1/rerank", body, timeout_s).get("results")
        try:
            for result in results:  # type: ignore[union-attr]
                scores[row, columns[result["index"]]] = result["relevance_score"]
        except (TypeError, KeyError, ValueError, IndexError):
            raise _UnusableResponseError("the response to /v1/rerank has no scores") from None
    return judge_scores(scores, others)


def _post(url: str, path: str, body: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
    response = send_request(url, path, method="POST", body=json.dumps(body).encode(), timeout_s=timeout_s)
    shown = " ".join(response.body[:SHOWN_CHARACTERS].decode("utf-8", "replace").split())
    if response.status != 200:
        raise _UnusableResponseError(f"{path} returned status {response.status}: {shown}")
    try:
        found = response.json()
    except ValueError:
        raise _UnusableResponseError(f"{path} returned no JSON: {shown}") from None
    if not isinstance(found, dict):
        raise _UnusableResponseError(f"{path} returned no JSON object: {shown}")
    return found
