"""Default options by model and card: which rule fits, what replaces it, and flags that vLLM lacks."""

from __future__ import annotations

import re
import subprocess
import sys
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
    adapters = changes.pop("adapters", {})
    engine = SITE.engines["chat"].model_copy(update={"options": {}, **changes})
    model = Model.model_validate({"source": source, "revision": "a" * 40, "adapters": adapters})
    return tune(engine, model, computes, shipped_rules())


LORA = {"sql": {"source": "/models/sql-lora"}}


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
        ("Qwen/Qwen3-32B", {WORKSTATION}, {"options": {"kv-cache-dtype": "fp8"}}, ["fp8-kv-sm120"]),
        ("Qwen/Qwen3-32B", {WORKSTATION}, {"options": {"kv-cache-dtype": "fp8_e4m3"}}, ["fp8-kv-sm120"]),
        ("Qwen/Qwen3-32B", {WORKSTATION}, {"options": {"kv-cache-dtype": "bfloat16"}}, []),
        ("Qwen/Qwen3-32B", {WORKSTATION}, {"options": {"kv-cache-dtype": "int8_per_token_head"}}, []),
        ("Qwen/Qwen3-32B", {HOPPER}, {"options": {"kv-cache-dtype": "fp8"}}, []),
        (
            "Qwen/Qwen3-235B-A22B",
            {WORKSTATION},
            {"tensor_parallel": 8},
            ["all-reduce-sm120", "nccl-channels-sm120"],
        ),
        ("Qwen/Qwen3-235B-A22B", {WORKSTATION}, {"tensor_parallel": 4}, ["all-reduce-sm120"]),
        ("Qwen/Qwen3-235B-A22B", {HOPPER}, {"tensor_parallel": 8}, []),
        ("Qwen/Qwen3-30B-A3B", {WORKSTATION}, {"adapters": LORA}, ["no-speculation-30b", "lora-moe-sm120"]),
        (
            "Qwen/Qwen3-30B-A3B-FP8",
            {WORKSTATION},
            {"adapters": LORA},
            ["no-speculation-30b", "fp8-moe-sm120"],
        ),
        ("nvidia/Qwen3-235B-A22B-NVFP4", {WORKSTATION}, {"adapters": LORA}, []),
        ("Qwen/Qwen3-32B", {WORKSTATION}, {"adapters": LORA}, []),
        ("Qwen/Qwen3-30B-A3B", {HOPPER}, {"adapters": LORA}, ["no-speculation-30b"]),
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


def test_the_rules_of_sm120_give_their_option_and_the_engine_replaces_it() -> None:
    fp8 = {"kv-cache-dtype": "fp8"}
    kv = tuned("Qwen/Qwen3-32B", {WORKSTATION}, options=fp8)
    assert kv.options == {"attention-backend": "FLASHINFER"}
    own = tuned("Qwen/Qwen3-32B", {WORKSTATION}, options=fp8 | {"attention-backend": "TRITON_ATTN"})
    assert own.options == {}
    assert own.reasons[0].endswith("; replaced by the engine's attention-backend")
    lora = tuned("Qwen/Qwen3-235B-A22B", {WORKSTATION}, adapters=LORA)
    assert lora.options == {"moe-backend": "triton"}
    assert (
        tuned("Qwen/Qwen3-235B-A22B", {WORKSTATION}, adapters=LORA, skip_recipes=("lora-moe-sm120",)).options == {}
    )
    nccl = tuned("Qwen/Qwen3-32B", {WORKSTATION}, tensor_parallel=8)
    assert nccl.environment == {"NCCL_MIN_NCHANNELS": "8"}
    mine = tuned("Qwen/Qwen3-32B", {WORKSTATION}, tensor_parallel=8, environment={"NCCL_MIN_NCHANNELS": "16"})
    assert mine.environment == {}
    assert mine.reasons[-1].endswith("; replaced by the engine's NCCL_MIN_NCHANNELS")


def test_why_prints_the_rule_with_its_source(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "one-card.toml").read_text()
    engine = "[engines.chat.options]\n"
    assert engine in text
    path = tmp_path / "site.toml"
    path.write_text(text.replace(engine, f'{engine}kv-cache-dtype = "fp8"\n'))
    command = [sys.executable, "-m", "appliance", "engine", "argv", "chat", "--why", "--config", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    lines = done.stdout.splitlines()
    why = next(line for line in lines if line.startswith("# fp8-kv-sm120: "))
    assert "hikarioyama" in why
    assert lines[lines.index("--attention-backend") + 1] == "FLASHINFER"


def test_a_condition_with_a_flag_that_vllm_lacks_is_one_line() -> None:
    tables = {"kv": {"given": {"kv-cache-typ": "fp8"}, "reason": "r", "source": "s"}}
    with pytest.raises(ConfigError, match=r"the pinned vLLM has no flag kv-cache-typ; .*kv-cache-dtype"):
        parse_rules(tables, known_flags())


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
