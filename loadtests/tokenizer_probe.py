"""Measures the token costs of words: with the engine's tokenizer, or else by the usage of two requests."""

from __future__ import annotations

import http.client
import json
import random
import re
from dataclasses import replace
from typing import Any

from appliance.system.proxy import route
from loadtests.client import LoadClient, RequestSpec, Target
from loadtests.token_costs import WORDS, TokenCosts

PROBE = 200
"""Words of the longer probe; the shorter one has a tenth of them."""


class TokenizerUnavailableError(Exception):
    """The endpoint is missing or does not respond as vLLM's; the message describes the response."""


def by_tokenizer(engine_url: str, model: str) -> TokenCosts:
    """Return the costs by the engine's ``/tokenize`` (vLLM, llama.cpp), which the gateway does not expose.

    Each word is sent alone, after a space, over one connection: about 400 short requests. Raises
    :class:`TokenizerUnavailableError`.
    """
    server = route(engine_url)
    # One connection for all requests: 400 new ones would take longer than the probe.
    connection = server.connection(10)

    def count(body: dict[str, Any]) -> int:
        headers = {"Content-Type": "application/json", **server.headers}
        connection.request("POST", server.target("/tokenize"), json.dumps(body), headers)
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise TokenizerUnavailableError(f"{engine_url}/tokenize returns status {response.status}")
        table = json.loads(data)
        if not isinstance(table, dict):
            raise TokenizerUnavailableError(f"{engine_url}/tokenize does not return a JSON object")
        # vLLM returns the count; llama.cpp only lists the tokens.
        return int(table["count"] if "count" in table else len(table["tokens"]))

    def words(text: str) -> int:
        return count({"model": model, "prompt": text, "content": text, "add_special_tokens": False})

    try:
        costs = {word: float(words(f" {word}")) for word in WORDS}
        empty = [{"role": "user", "content": ""}]
        overhead = float(count({"model": model, "messages": empty}))
        token_costs = TokenCosts(costs, sum(costs.values()) / len(costs), overhead)
        code = token_costs.code(random.Random(0), PROBE * 5)  # noqa: S311 - any code does
        signs = words(code) - sum(token_costs.cost(word) for word in re.findall("[a-z]+", code))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise TokenizerUnavailableError(f"{engine_url}/tokenize: {type(error).__name__}: {error}") from None
    finally:
        connection.close()
    each = max(1.0, signs / code.count("return"))
    return replace(token_costs, code_signs=each, source=f"the engine's own tokenizer, {engine_url}/tokenize")


def by_usage(target: Target, model: str) -> TokenCosts:
    """Return the costs by two requests of one token each, from the ``prompt_tokens`` in their usage.

    These are average costs, for runs that reach only the gateway. Without usable responses the ``source`` of the
    costs states that sizes are estimates.
    """
    client = LoadClient(target)
    counts = []
    try:
        for words in (PROBE // 10, PROBE):
            text = " ".join(WORDS[i % len(WORDS)] for i in range(words))
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
            sample = client.send(RequestSpec(model, body, max_tokens=1))
            if not sample.prompt_tokens:
                reason = sample.cause or "usage without prompt_tokens"
                return TokenCosts(source=f"estimated at 1.3 tokens a word: a probe failed ({reason})")
            counts.append(sample.prompt_tokens)
    finally:
        client.close()
    per_word = (counts[1] - counts[0]) / (PROBE - PROBE // 10)
    if per_word <= 0:
        return TokenCosts(source="estimated at 1.3 tokens a word: the engine counts no more tokens for more words")
    overhead = max(0.0, counts[0] - per_word * (PROBE // 10))
    return TokenCosts(
        {}, per_word, overhead, source=f"the engine's usage of two probes: {per_word:.2f} tokens a word"
    )
