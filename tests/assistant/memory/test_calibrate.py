"""The rule of evidence of an embedder: shipped, fitted on the site, or words with a notice."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from appliance.assistant.calibration.site_rules import FILE, SiteRules
from appliance.assistant.context import AssistantContext
from appliance.assistant.memory.calibrate import calibrate
from appliance.assistant.memory.embedding_client import EmbeddingClient
from appliance.assistant.memory.search import StoreSearch
from appliance.assistant.retrieval.evidence import RULES, WORDS, EvidenceRule
from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.errors import ConfigError, StoreError
from tests.assistant.gateway_stand_in import ActingRequest, GatewayStandIn
from tests.assistant.memory.conftest import ADA, OpenContexts
from tests.assistant.memory.test_search_api import TEXTS, fill, groups

QWEN = EmbedderFingerprint("Qwen/Qwen3-Embedding-8B", "r1", "last", "Instruct: x", 4096, "bfloat16")


async def test_another_embedder_never_gets_the_shipped_threshold(context: AssistantContext) -> None:
    rules = context.shared(SiteRules)
    await context.shared(EmbeddingClient).documents(ADA, ["text"])
    packaged = context.shared(EmbeddingClient).fingerprint()
    assert packaged is not None
    assert (rules.choose(packaged).source, rules.choose(packaged).rule) == ("shipped", RULES[packaged.model])
    assert (rules.choose(QWEN).source, rules.choose(QWEN).rule) == ("words", WORDS)
    assert rules.choose(None).rule == WORDS


async def test_a_fitted_rule_holds_for_its_fingerprint_alone_and_in_a_running_assistant(
    context: AssistantContext, contexts: OpenContexts
) -> None:
    rule = EvidenceRule(0.3, 0.2, 0.25)
    running = contexts().shared(SiteRules)
    assert running.choose(QWEN).source == "words"
    context.shared(SiteRules).put(QWEN, rule)
    context.shared(SiteRules).put(replace(QWEN, dimensions=1024), EvidenceRule(0.4, 0.2, 0.2))
    assert (running.choose(QWEN).source, running.choose(QWEN).rule) == ("site", rule)
    assert running.choose(replace(QWEN, revision="r2")).source == "words"


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"unrelated": 7}}', '{"a": {"other": 1}}'])
def test_a_damaged_file_is_an_error_that_names_the_fix(context: AssistantContext, text: str) -> None:
    (context.folder / FILE).write_text(text)
    with pytest.raises(StoreError, match="appliance memory calibrate"):
        context.shared(SiteRules).choose(QWEN)


async def test_a_search_uses_the_rule_of_the_site(context: AssistantContext) -> None:
    await fill(context, "vs_1", TEXTS)
    search = context.shared(StoreSearch)
    query = "how hot is the water for tea?"
    assert groups(await search.search(ADA, ["vs_1"], [query]))
    packaged = context.shared(EmbeddingClient).fingerprint()
    assert packaged is not None
    context.shared(SiteRules).put(packaged, EvidenceRule(0.0, 0.2, 0.99))
    outcome = await search.search(ADA, ["vs_1"], [query])
    assert outcome.abstention is not None
    assert outcome.abstention.threshold == 0.99


async def test_a_calibration_returns_the_shipped_rule_and_bills_in_the_background(
    context: AssistantContext, gateway: GatewayStandIn
) -> None:
    found = await calibrate(context, ADA)
    assert found.rule == RULES[found.fingerprint.model]
    assert found.held_out is not None
    assert found.held_out.abstain_precision >= 0.95
    assert found.held_out.recall_at_5 >= 0.95
    assert all(one.headers["x-appliance-background"] == "1" for one in gateway.requests)
    assert not (context.folder / FILE).exists(), "only the command stores the rule"


async def test_an_embedder_that_separates_nothing_gets_no_rule(
    context: AssistantContext, gateway: GatewayStandIn
) -> None:
    random = np.random.default_rng(5)

    def noise(request: ActingRequest) -> object:
        count = len(request.body["input"])
        rows = random.standard_normal((count, 32)).tolist()
        return {"data": [{"index": at, "embedding": row} for at, row in enumerate(rows)]}

    gateway.responses["/v1/embeddings"] = noise
    found = await calibrate(context, ADA)
    assert (found.rule, found.held_out) == (None, None)


async def test_a_site_without_an_embedder_needs_none(contexts: OpenContexts) -> None:
    context = await asyncio.to_thread(contexts, embedder=False)
    with pytest.raises(ConfigError, match="no calibration"):
        await calibrate(context, ADA)
