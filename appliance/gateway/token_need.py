"""Estimates the tokens that a request may take. A budget reserves them. Pure.

An engine counts the tokens of a prompt only when it has read it. The estimate is above the count for ordinary text
of any language, code and numbers. It can be below for random characters, which have more tokens than their bytes
suggest. One sequence never exceeds the context, prompt included.
"""

from __future__ import annotations

import re

from msgspec import Raw

from appliance.errors import InvalidRequestError
from appliance.gateway import json_text
from appliance.gateway.body import TOKEN_LIMITS, BodyFields, with_cap
from appliance.gateway.budgets import TokenNeed

BYTES_OF_TOKEN = 3
"""Fewest bytes per token of ordinary text: program code has 3, English 4, Russian and Chinese in UTF-8 4 to 7."""

TEMPLATE_TOKENS = 64
"""Tokens that a chat template adds by itself."""

TOOLS_TOKENS = 256
"""Tokens that the template adds to a request with tools."""

PAIR_TOKENS = 128
"""Tokens that the template of a reranker adds to each pair."""

MEDIA_TOKENS = 16_384
"""The most tokens of one image in Qwen's default processor; audio and video are estimated alike."""

COMPLETIONS = "/v1/completions"
DEFAULT_COMPLETION = 16
"""Tokens of a completion without a limit, by OpenAI's API."""

MEDIA = re.compile(rb'"type"\s*:\s*"(?:input_)?(?:image|audio|video)')
"""The beginning of a part of a message with media."""

DATA = re.compile(rb'"data:[^"]*"|"data"\s*:\s*"[^"]*"')
"""Media in the body: their bytes are not text."""

ESCAPE = re.compile(rb"\\u[0-9a-fA-F]{4}")
"""A character as an escape of JSON, as Python's default encoder writes it."""

DIGITS = b"0123456789"
"""Qwen's tokenizers make a token of each digit."""

TOOLS = b'"tools"'

LIMIT_FIELDS = {"/v1/responses": "max_output_tokens"}
"""The field that limits a response, by endpoint; ``max_tokens`` on all others."""


def token_need(fields: BodyFields, body: bytes, *, path: str, task: str, context: int, sequences: int) -> TokenNeed:
    """Return the tokens that a request may take.

    Args:
        fields: The fields of ``body``.
        body: The body that the engine will receive.
        path: Path of the endpoint.
        task: Task of the model.
        context: Longest prompt plus response of the model, in tokens.
        sequences: Sequences that an engine decodes for the request.
    """
    if task == "rerank":
        return TokenNeed(_pairs(body))
    prompt = text_tokens(body) + TEMPLATE_TOKENS
    if task != "generate":
        return TokenNeed(prompt)
    if TOOLS in body:
        prompt += TOOLS_TOKENS
    if path != COMPLETIONS:
        # Only a completion may have several prompts.
        prompt = min(prompt, context)
    limits = [limit for name in TOKEN_LIMITS if (limit := getattr(fields, name)) is not None]
    if not limits and path == COMPLETIONS:
        limits = [DEFAULT_COMPLETION]
    return TokenNeed(
        prompt,
        min(max(limits), context) if limits else context,
        sequences,
        limited=bool(limits),
        ceiling=context * sequences,
    )


def text_tokens(body: bytes) -> int:
    """Estimate the tokens of the text and of the media in ``body``."""
    media = len(MEDIA.findall(body)) if b'"type"' in body else 0
    if media:
        body = DATA.sub(b'""', body)
    if b"\\u" in body:
        body = ESCAPE.sub(b"__", body)
    digits = len(body) - len(body.translate(None, DIGITS))
    return -(-(len(body) - digits) // BYTES_OF_TOKEN) + digits + media * MEDIA_TOKENS


def with_budget(body: bytes, fields: BodyFields, path: str, cap: int) -> bytes:
    """Limit every response in ``body`` to ``cap`` tokens; ``fields`` are those of the body."""
    if any(getattr(fields, name) is not None for name in TOKEN_LIMITS):
        return with_cap(body, fields, cap)
    table = json_text.members(body)
    own = DEFAULT_COMPLETION if path == COMPLETIONS else cap
    table[LIMIT_FIELDS.get(path, "max_tokens")] = Raw(b"%d" % min(own, cap))
    return json_text.join(table)


def _pairs(body: bytes) -> int:
    """Estimate the tokens of all pairs of a reranker's request: each has the query and one document."""
    total = text_tokens(body) + TEMPLATE_TOKENS
    try:
        table = json_text.members(body)
        lists = [
            json_text.items(value) for name, value in table.items() if name != "model" and bytes(value)[:1] == b"["
        ]
        texts = [value for name, value in table.items() if name != "model" and bytes(value)[:1] == b'"']
    except InvalidRequestError:
        # The engine rejects it.
        return total
    pairs = max(map(len, lists), default=1)
    return total + pairs * (PAIR_TOKENS + sum(map(text_tokens, map(bytes, texts))))
