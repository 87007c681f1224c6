"""The memory of drafting heads against published sizes, and its effect on an engine's fit."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from appliance.catalog.cards import find_card
from appliance.catalog.models import shipped_models
from appliance.contract.model import Site
from appliance.planner.candidates import find_candidates
from appliance.planner.drafts import NO_DRAFTS, Drafts, drafts_of, eagle3_bytes, mtp_bytes
from appliance.planner.fit import fit
from appliance.planner.from_site import drafts_on, model_demands_of
from appliance.planner.layout import SINGLE
from appliance.planner.memory import card_memory, weight_bytes
from appliance.planner.precision import parse, weights
from tests.planner.conftest import PRO, MakeMachine, MakeModel, demand_for

MODELS = shipped_models()
BF16 = parse("bf16")
MTP = Drafts("mtp", 3)


def test_the_mtp_module_of_deepseek_v3_has_its_published_11_5b_weights() -> None:
    # README_WEIGHTS.md of DeepSeek-V3: 11.5B, without the shared embedding and head.
    assert mtp_bytes(MODELS["deepseek-ai/DeepSeek-V3"], BF16) / 2 == pytest.approx(11.5e9, rel=0.011)


def test_text_vision_tower_and_mtp_head_are_the_whole_checkpoint_of_qwen38_27b() -> None:
    shape = MODELS["Qwen/Qwen3.8-27B"]
    assert shape.checkpoint_bytes is not None
    tower = shape.checkpoint_bytes - weights(shape, BF16).total - mtp_bytes(shape, BF16)
    # 27 layers: attention of width 1152, an MLP of width 4304, biases and norms.
    layer = 4 * 1152**2 + 2 * 1152 * 4304 + 4 * 1152 + 4304 + 1152 + 4 * 1152
    # Patches of 2 x 16 x 16 pixels of 3 colours, 2304 positions, a merger from 4 x 1152 to the model's 5120.
    ends = 3 * 2 * 16 * 16 * 1152 + 1152 + 2304 * 1152 + 4608**2 + 4608 + 4608 * 5120 + 5120 + 2 * 1152
    assert tower / 2 == pytest.approx(27 * layer + ends, rel=2e-3)


def test_the_eagle3_head_of_llama_8b_has_its_published_size() -> None:
    # A head trained with SpecForge's llama3-8B-eagle3.json is reported as 811 MB, in units of 2^20 bytes.
    assert eagle3_bytes(MODELS["meta-llama/Llama-3.1-8B"], BF16) / 2**20 == pytest.approx(811, rel=0.005)


def test_mtp_adds_its_weights_and_a_layer_of_kv_cache() -> None:
    shape = dataclasses.replace(MODELS["Qwen/Qwen3-8B"], checkpoint_bytes=None)
    card = find_card(PRO)
    without, drafted = card_memory(card, shape, BF16), card_memory(card, shape, BF16, drafts=MTP)
    assert drafted.weights - without.weights == mtp_bytes(shape, BF16)
    per_token = without.layout.page_bytes, drafted.layout.page_bytes
    assert per_token[1] * shape.layers == per_token[0] * (shape.layers + 1)


def test_a_checkpoint_with_the_head_is_counted_once() -> None:
    shape = MODELS["Qwen/Qwen3.8-27B"]
    assert weight_bytes(shape, BF16, SINGLE, MTP) == weight_bytes(shape, BF16, SINGLE) == shape.checkpoint_bytes
    eagle = weight_bytes(shape, BF16, SINGLE, Drafts("eagle", 3))
    assert eagle == shape.checkpoint_bytes + eagle3_bytes(shape, BF16)


def test_each_draft_of_a_hybrid_model_needs_a_further_state() -> None:
    shape = MODELS["Qwen/Qwen3.8-27B"]
    card = find_card(PRO)
    found = [card_memory(card, shape, BF16, drafts=Drafts("ngram", tokens)) for tokens in (0, 1, 3)]
    states = [sum(group.state_pages for group in memory.layout.groups) for memory in found]
    # Three groups of linear layers, each with two states and one for each draft.
    assert states == [6, 9, 15]
    # The window of the convolution holds the drafts too, so a page that holds a state has 16 tokens more.
    assert [memory.layout.groups[-1].block_tokens for memory in found] == [784, 800, 800]


@pytest.mark.parametrize(
    ("stated", "drafts"),
    [
        ({"method": "mtp", "num_speculative_tokens": 2}, Drafts("mtp", 2)),
        ('{"method": "eagle3", "model": "x", "num_speculative_tokens": 4}', Drafts("eagle", 4)),
        ({"method": "suffix", "num_speculative_tokens": 8}, Drafts("ngram", 8)),
        ({"method": "mtp"}, NO_DRAFTS),
        ({"method": "medusa", "num_speculative_tokens": 8}, NO_DRAFTS),
        ("{", NO_DRAFTS),
        (None, NO_DRAFTS),
    ],
)
def test_the_drafts_of_an_engine_are_those_of_its_option(stated: object, drafts: Drafts) -> None:
    assert drafts_of({"speculative-config": stated}) == drafts


def site(**changes: Any) -> Site:
    """Build a site with a Qwen3.6-27B in bf16, which gets MTP by a recipe; ``changes`` are for its engine."""
    engine = {"host": "gpu", "model": "chat", "gpus": [0], "context": 32768, "concurrency": 8, "port": 8101}
    table = {
        "version": 1,
        "hosts": {"gpu": {"memory_gib": 128, "gpus": [{"index": 0, "model": PRO, "memory_mib": 97887}]}},
        "models": {"chat": {"source": "./models/Qwen3.6-27B"}},
        "engines": {"chat": engine | changes},
    }
    return Site.model_validate_json(json.dumps(table))


def test_an_engine_gets_the_drafts_of_its_recipe_unless_it_skips_it() -> None:
    one = site()
    assert drafts_on(one, one.engines["chat"]) == MTP
    assert model_demands_of(one, {})[0].drafts == MTP
    skipped = site(skip_recipes=["mtp"])
    assert drafts_on(skipped, skipped.engines["chat"]) == NO_DRAFTS
    piped = site(pipeline_parallel=2, gpus=[0, 1])
    assert drafts_on(piped, piped.engines["chat"]) == NO_DRAFTS


def test_drafts_can_be_all_that_does_not_fit() -> None:
    """Find a share of the card with which the engine fits without drafts, and does not fit with them."""
    tight = {"gpu_memory_utilization": 0.585}
    assert fit(site(**tight, skip_recipes=["mtp"])) == []
    (found,) = fit(site(**tight))
    assert found.where == "engines.chat"


def test_an_unknown_recipe_is_named() -> None:
    (found,) = fit(site(skip_recipes=["mpt"]))
    assert (found.where, found.fix) == ("engines.chat.skip_recipes", "did you mean 'mtp'?")


def test_a_plan_leaves_room_for_the_drafts_of_a_model(model_demand: MakeModel, machine: MakeMachine) -> None:
    model = model_demand("Qwen/Qwen3.5-27B")
    drafted = dataclasses.replace(model, drafts=MTP)

    def tokens(one: Any) -> int:
        found = find_candidates(one, machine(), demand_for(one))[0]
        assert found.memory is not None
        return found.memory.kv_tokens

    assert tokens(drafted) < 0.97 * tokens(model)
