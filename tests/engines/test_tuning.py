"""Default options by model and card: which rule fits, what replaces it, and flags that vLLM lacks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from appliance.contract.engine_options import known_flags
from appliance.contract.load import load
from appliance.contract.model import Engine, Model
from appliance.engines import argv
from appliance.engines.tuning import EngineTuning, computes_of, parse_rules, shipped_rules, tune
from appliance.errors import ConfigError, UsageError

ROOT = Path(__file__).resolve().parents[2]
SITE = load(ROOT / "examples" / "one-card.toml")
WORKSTATION = 12.0
HOPPER = 9.0


def tuned(source: str, computes: set[float], **changes: Any) -> EngineTuning:
    engine = SITE.engines["chat"].model_copy(update={"options": {}, **changes})
    return tune(engine, Model(source=source, revision="a" * 40), computes, shipped_rules())


def names(tuning: EngineTuning) -> list[str]:
    return [line.partition(":")[0] for line in tuning.reasons]


@pytest.mark.parametrize(
    ("source", "computes", "changes", "expected"),
    [
        ("Qwen/Qwen3-30B-A3B", {WORKSTATION}, {}, ["no-speculation-30b"]),
        ("Qwen/Qwen3-30B-A3B-FP8", {WORKSTATION}, {}, ["no-speculation-30b", "fp8-moe-sm120"]),
        ("Qwen/Qwen3-30B-A3B-FP8", {HOPPER}, {}, ["no-speculation-30b"]),
        ("/srv/Qwen3.6-35B-A3B-FP8", {WORKSTATION}, {}, ["mtp", "fp8-moe-sm120", "kv-offload-hybrid"]),
        ("Qwen/Qwen3.8-27B", {WORKSTATION}, {"options": {"kv-offloading-size": 64}}, ["kv-offload-hybrid"]),
        ("Qwen/Qwen3-32B", {WORKSTATION}, {"tensor_parallel": 2}, ["all-reduce-sm120"]),
        ("Qwen/Qwen3-32B", {WORKSTATION, HOPPER}, {"tensor_parallel": 2}, []),
        ("Qwen/Qwen3-32B", set(), {}, []),
        ("Qwen/Qwen3.6-35B-A3B", {WORKSTATION}, {"device": "cpu"}, []),
        ("Qwen/Qwen3.6-35B-A3B", {WORKSTATION}, {"kind": "llamacpp"}, []),
    ],
)
def test_the_rules_of_a_model(
    source: str, computes: set[float], changes: dict[str, Any], expected: list[str]
) -> None:
    assert names(tuned(source, computes, **changes)) == expected


def test_the_engine_replaces_and_skips_rules() -> None:
    mine = {"speculative-config": {"method": "ngram", "num_speculative_tokens": 2}}
    environment = {"VLLM_USE_DEEP_GEMM": "1"}
    one = tuned("Qwen/Qwen3.6-35B-A3B-FP8", {WORKSTATION}, options=mine, environment=environment)
    assert one.options == {}
    assert one.environment == {"VLLM_MOE_USE_DEEP_GEMM": "0"}
    assert one.reasons[0].endswith("; replaced by the engine's speculative-config")
    skipped = tuned("Qwen/Qwen3.6-35B-A3B", {WORKSTATION}, skip_recipes=("mtp",))
    assert skipped.options == {}
    assert skipped.reasons[0] == "mtp: skipped by skip_recipes of the engine"


def test_an_unknown_recipe_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"no recipe is called 'mpt'; .*mtp"):
        tuned("Qwen/Qwen3-32B", set(), skip_recipes=("mpt",))


def test_a_flag_that_the_pinned_vllm_lacks_is_one_line() -> None:
    tables = {"draft": {"options": {"speculative-confg": 1}, "reason": "r", "source": "s"}}
    message = "recipes.toml: draft: the pinned vLLM has no flag speculative-confg; "
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        parse_rules(tables, known_flags())
    assert "speculative-config" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_rule_has_a_source_and_a_valid_pattern() -> None:
    for rule in shipped_rules():
        assert rule.source
        re.compile(rule.models)
    assert len({rule.name for rule in shipped_rules()}) == len(shipped_rules())


def test_the_command_has_the_options_of_its_rules() -> None:
    engine: Engine = SITE.engines["chat"]
    assert computes_of(SITE, engine) == {WORKSTATION}
    model = Model(source="Qwen/Qwen3.6-35B-A3B", revision="a" * 40)
    site = SITE.model_copy(update={"models": {**SITE.models, engine.model: model}})
    command = argv.command(site, argv.find(site, "chat"), ROOT)
    config = command.argv[command.argv.index("--speculative-config") + 1]
    assert config.startswith('{"method":"mtp","num_speculative_tokens":3,')
    assert any(reason.startswith("mtp: ") for reason in command.reasons)
