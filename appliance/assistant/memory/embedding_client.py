"""Embeddings of the site's embedder, in bounded batches through the gateway, on behalf of a caller.

A response is checked before it is used: one vector for each text, all of the same dimensions, finite, not zero. An
embedder that a test or a repair replaced by another one must not fill an index with rows that match nothing.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.embedding import embedder_fingerprint, query_text
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.errors import EngineFailedError, EngineUnavailableError, RequestError

PATH = "/v1/embeddings"
TEXTS_AT_ONCE = 32
"""Texts of one request."""
LETTERS_AT_ONCE = 64_000
"""Letters of one request, unless one text alone has more."""
REQUESTS_AT_ONCE = 2
"""Requests of documents in flight; those of queries have no limit here."""
RETRY_S = 30.0

Embedding = NDArray[np.float32]
"""A vector, shape (dimensions,)."""


class EmbeddingClient:
    """The embedder of the site; without one, every vector is empty and the memory searches by words."""

    def __init__(self, context: AssistantContext) -> None:
        self._inference = context.inference
        self._site = context.site
        self.model = context.settings.embedder
        """The name of the embedder; None if the site has none."""
        self._slots = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._dimensions: int | None = None
        self._fingerprint: EmbedderFingerprint | None = None

    async def documents(self, caller: Caller, texts: Sequence[str], *, background: bool = True) -> list[Embedding]:
        """Return the vector of each text, in their order; empty vectors without an embedder.

        Args:
            caller: The user that is billed.
            texts: Any number; several requests carry them.
            background: Whether foreground requests have priority.

        Raises:
            EngineUnavailableError: The embedder or the gateway cannot respond now.
            RequestError: The gateway rejects the caller: its key, its limits.
        """
        if self.model is None:
            return [np.zeros(0, np.float32) for _ in texts]
        parts = [*_batches(texts)]
        tasks = [asyncio.create_task(self._bounded(caller, part, background=background)) for part in parts]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [vector for part in found for vector in part]

    async def queries(self, caller: Caller, texts: Sequence[str], *, background: bool = False) -> list[Embedding]:
        """Return the vector of each query; raises as :meth:`documents`."""
        if self.model is None:
            return [np.zeros(0, np.float32) for _ in texts]
        written = [query_text(self._site, self.model, text) for text in texts]
        return await self._embed(caller, written, background=background)

    async def query(self, caller: Caller, text: str, *, background: bool = False) -> Embedding:
        """Return the vector of one query; raises as :meth:`documents`."""
        return (await self.queries(caller, [text], background=background))[0]

    def fingerprint(self) -> EmbedderFingerprint | None:
        """Return the fingerprint of the vectors that the embedder returned last; None without an embedder.

        Raises :class:`EngineUnavailableError` if the embedder has returned no vector since the start, and
        :class:`ConfigError` if its weights are absent.
        """
        if self.model is None:
            return None
        if self._dimensions is None:
            raise EngineUnavailableError(
                "the embedder has returned no vector yet", code="embedder_unavailable", retry_after=RETRY_S
            )
        if self._fingerprint is None or self._fingerprint.dimensions != self._dimensions:
            # The digest of a folder of weights is computed once.
            self._fingerprint = embedder_fingerprint(
                self._site, self.model, Path.cwd(), dimensions=self._dimensions
            )
        return self._fingerprint

    async def _bounded(self, caller: Caller, texts: Sequence[str], *, background: bool) -> list[Embedding]:
        async with self._slots:
            return await self._embed(caller, texts, background=background)

    async def _embed(self, caller: Caller, texts: Sequence[str], *, background: bool) -> list[Embedding]:
        # Base64 has a quarter of the bytes of decimal numbers; a server without it returns those.
        body = {"model": self.model, "input": [*texts], "encoding_format": "base64"}
        try:
            found = await self._inference.post(PATH, body, caller, background=background)
            vectors = read_vectors(found, len(texts))
        except RequestError as error:
            if error.status < 500:
                raise
            raise EngineUnavailableError(
                f"the embedder {self.model} cannot respond: {error}",
                code="embedder_unavailable",
                retry_after=error.retry_after or RETRY_S,
            ) from error
        if vectors:
            self._dimensions = len(vectors[0])
        return vectors


def read_vectors(response: dict[str, Any], count: int) -> list[Embedding]:
    """Return the ``count`` vectors of an embeddings response, in the order of its texts, each of length 1.

    Raises :class:`EngineFailedError` if one is absent or not usable.
    """
    data = response.get("data")
    if not isinstance(data, list) or len(data) != count:
        raise EngineFailedError(f"the embedder returned no list of {count} vectors")
    found: list[Embedding | None] = [None] * count
    for at, row in enumerate(data):
        index = row.get("index", at) if isinstance(row, dict) else None
        if not isinstance(index, int) or not 0 <= index < count or found[index] is not None:
            raise EngineFailedError("the embedder returned vectors without their places")
        found[index] = _unit(_numbers(row.get("embedding")))
    vectors = [vector for vector in found if vector is not None]
    if len({len(vector) for vector in vectors}) > 1:
        raise EngineFailedError("the embedder returned vectors of different dimensions")
    return vectors


def _numbers(value: object) -> NDArray[np.float64]:
    """Return the numbers of one vector, from a list or from base64 of little-endian float32."""
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float64)
        numbers = np.asarray(value, np.float64)
    except (binascii.Error, TypeError, ValueError) as error:
        raise EngineFailedError("the embedder returned a vector that is not a list of numbers") from error
    if numbers.ndim != 1:
        raise EngineFailedError("the embedder returned a vector that is not a list of numbers")
    return numbers


def _unit(numbers: NDArray[np.float64]) -> Embedding:
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.linalg.norm(numbers))
    if not math.isfinite(length) or length == 0:
        raise EngineFailedError("the embedder returned a vector that is empty, zero or not finite")
    return np.asarray(numbers / length, np.float32)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield consecutive parts of ``texts`` within the limits of one request."""
    start, letters = 0, 0
    for at, text in enumerate(texts):
        if at > start and (at - start == TEXTS_AT_ONCE or letters + len(text) > LETTERS_AT_ONCE):
            yield texts[start:at]
            start, letters = at, 0
        letters += len(text)
    if start < len(texts):
        yield texts[start:]
