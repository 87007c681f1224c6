"""Asks the engine what words cost in tokens: its own tokenizer, or else what it counts in a request's usage."""

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
"""Words of the longer probe; the shorter one has a tenth."""


class TokenizerUnavailableError(Exception):
    """The endpoint is not there or does not answer as vLLM's does; the text says what it did."""


def by_tokenizer(engine_url: str, model: str) -> TokenCosts:
    """The token_costs by the engine's ``/tokenize`` (vLLM, llama.cpp); the gateway rightly hides that path.

    Each word is asked alone with its space before it, over one connection, about 400 short requests. Raises
    :class:`TokenizerUnavailableError`.
    """
    way = route(engine_url)
    connection = way.connection(10)

    def count(body: dict[str, Any]) -> int:
        headers = {"Content-Type": "application/json", **way.headers}
        connection.request("POST", way.target("/tokenize"), json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise TokenizerUnavailableError(f"{engine_url}/tokenize answers {answer.status}")
        table = json.loads(data)
        if not isinstance(table, dict):
            raise TokenizerUnavailableError(f"{engine_url}/tokenize answers no object")
        # vLLM says count; llama.cpp only lists the tokens.
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
    """The token_costs by two requests of one token each, from the ``prompt_tokens`` that the engine counts in them.

    What words cost on average, not each; used where only the gateway can be reached. Without usable answers the
    token_costs says that its sizes are estimates.
    """
    client = LoadClient(target)
    counts = []
    try:
        for words in (PROBE // 10, PROBE):
            text = " ".join(WORDS[i % len(WORDS)] for i in range(words))
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
            sample = client.ask(RequestSpec(model, body, max_tokens=1))
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
