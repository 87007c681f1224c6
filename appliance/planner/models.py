"""The models to plan for: shape and precision of each, its share of the requests, its lengths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.catalog.models import find_model
from appliance.catalog.shape import Shape
from appliance.planner import precision
from appliance.planner.drafts import NO_DRAFTS, Drafts
from appliance.planner.precision import Precision

DEFAULT_PROMPT = 2000.0
DEFAULT_RESPONSE = 400.0
DEFAULT_CONTEXT = 16384
EMBED_PROMPT = 500.0

EMBED_SHARE = 0.1
"""Share of requests for embeddings if no share is stated: one retrieval in ten chat messages."""

SUFFIXES = {
    "fp8": "fp8",
    "awq": "awq-int4",
    "gptq": "awq-int4",
    "int4": "awq-int4",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "int8": "int8",
    "w4a16": "awq-int4",
    "gguf": "Q4_K_M",
}
"""Ends of a repository's name, and the precision of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDemand:
    """The demand on one model: its ``share`` of all requests, and the tokens of a request."""

    name: str
    """The name that clients use."""
    shape: Shape
    precision: Precision
    share: float
    prompt: float
    response: float
    context: int
    """Longest prompt plus response in tokens."""
    drafts: Drafts = NO_DRAFTS
    """Speculative decoding, whose memory an engine on cards needs; its gain in speed is not planned."""


GGUF_FILE = re.compile(r"(.+)[-.](i?q\d_[a-z0-9_]+|q\d_\d)(?:-\d{5}-of-\d{5})?\.gguf", re.IGNORECASE)
"""A GGUF file with its format in its name, whole or the first of several parts."""


def parse_model(text: str, known: dict[str, Shape] | None = None) -> tuple[Shape, Precision]:
    """Return shape and precision of ``Qwen/Qwen3-30B-A3B``, ``Qwen/Qwen3-30B-A3B:fp8`` or a folder (``…-FP8``).

    A GGUF file has its format in its name: ``…-Q4_K_M.gguf``.

    ``known`` are the models to search, the shipped ones if absent. Raises :class:`UsageError` for an unknown model
    or precision.
    """
    name, _, stated = text.partition(":")
    stated = stated.strip()
    if file := GGUF_FILE.fullmatch(name):
        return find_model(file[1], known), precision.parse(stated or file[2].upper())
    tail = name.rstrip("/").rsplit("/", 1)[-1]
    for suffix, dtype in SUFFIXES.items():
        if re.search(rf"[-_]{suffix}\b.*$", tail, re.IGNORECASE):
            base = re.sub(rf"[-_]{suffix}\b.*$", "", name, flags=re.IGNORECASE)
            shape = find_model(base, known)
            return shape, precision.parse(stated or dtype)
    shape = find_model(name, known)
    return shape, precision.parse(stated or shape.native)


def split_shares(pooling: Mapping[str, bool], stated: Mapping[str, float]) -> dict[str, float]:
    """Return the share of all requests of each model of ``pooling`` (name → whether it only embeds).

    The rest after ``stated`` is divided evenly among the models that generate. Embedding models without a stated
    share get :data:`EMBED_SHARE` of the rest together, because chats do not wait in their queue.
    """
    left = 1.0 - sum(stated.values())
    generating = [name for name, embeds in pooling.items() if name not in stated and not embeds]
    embedding = [name for name, embeds in pooling.items() if name not in stated and embeds]
    to_embed = left * (EMBED_SHARE if generating else 1.0)
    even = {name: to_embed / len(embedding) for name in embedding}
    for_chats = left - (to_embed if embedding else 0.0)
    even |= {name: for_chats / len(generating) for name in generating}
    return {name: stated.get(name, even.get(name, 0.0)) for name in pooling}
