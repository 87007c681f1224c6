"""The longest context that vLLM's own ModelConfig derives, for every kind of rope scaling and of length field.

Run it with the Python of the engine's environment: ``python benchmarks/planner/contexts.py``. It writes
tests/catalog/contexts.json. ``--sample PREFIX`` prints the entries whose names begin with PREFIX and writes no
file.

For a nested text model the script calls the functions of ModelConfig. ModelConfig itself would load an image
processor, which needs a package that the CPU engine does not have.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"

import vllm
from vllm.config import ModelConfig
from vllm.config.model import _get_and_verify_max_len
from vllm.transformers_utils.config import get_config, get_hf_text_config
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

TRUTH = Path(__file__).resolve().parents[2] / "tests" / "catalog" / "contexts.json"

QWEN: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "vocab_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
FEW = {key: value for key, value in QWEN.items() if key != "head_dim"}
PHI = {**FEW, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
OLMO = {**FEW, "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "sliding_window": 4096}
MISTRAL = {**QWEN, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
GEMMA = {**QWEN, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "sliding_window": 512}
DEEPSEEK = {
    **FEW,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "max_position_embeddings": 163840,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 512,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
TEXT = {key: value for key, value in QWEN.items() if key != "architectures"} | {"model_type": "qwen3_vl_text"}

LONG = {"short_factor": [1.0] * 64, "long_factor": [1.0] * 64}
KINDS: dict[str, dict[str, Any]] = {
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn from far": {"factor": 4.0, "original_max_position_embeddings": 10240},
    "linear": {"factor": 4.0},
    "linear half": {"factor": 2.5},
    "linear null": {"factor": None},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "default": {},
    "default with a factor": {"factor": 4.0},
    "mrope": {"mrope_section": [16, 24, 24]},
    "ntk": {"factor": 2.0},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 8192, **LONG},
    "su": LONG,
    "deepseek_yarn": {"factor": 4.0, "original_max_position_embeddings": 10240},
    "telechat3-yarn": {"factor": 4.0, "original_max_position_embeddings": 10240},
    "deepseek_llama_scaling": {"factor": 4.0},
    "proportional": {"factor": 2.0},
    "xdrope": {"alpha": 1000.0, "factor": 1.0},
}
LENGTHS = (
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)


def cases() -> dict[str, dict[str, Any]]:
    """Return every config by its name."""
    found: dict[str, dict[str, Any]] = {"plain": QWEN}
    for name, more in KINDS.items():
        kind = name if name in {"deepseek_yarn", "telechat3-yarn"} else name.split(" ")[0]
        found[f"qwen rope_scaling {name}"] = {**QWEN, "rope_scaling": {"rope_type": kind, **more}}
        found[f"qwen type {name}"] = {**QWEN, "rope_scaling": {"type": kind, **more}}
        new = {"rope_type": kind, "rope_theta": 1e6, **more}
        found[f"qwen rope_parameters {name}"] = {**QWEN, "rope_parameters": new}
    linear, yarn = {"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", **KINDS["yarn"]}
    default = {"rope_type": "default", "rope_theta": 1e4}
    found["qwen factor alone"] = {**QWEN, "rope_scaling": {"factor": 4.0}}
    found["qwen two types that agree"] = {**QWEN, "rope_scaling": {**linear, "type": "linear"}}
    found["qwen two types that differ"] = {**QWEN, "rope_scaling": {**linear, "type": "dynamic"}}
    found["qwen both fields"] = {**QWEN, "rope_scaling": yarn, "rope_parameters": {**linear, "rope_theta": 1e4}}
    found["qwen both fields, linear first"] = {**QWEN, "rope_scaling": linear, "rope_parameters": default}
    for key in LENGTHS:
        found[f"qwen shorter {key}"] = {**QWEN, key: 1000}
        found[f"qwen longer {key}"] = {**QWEN, key: 100000}
    found["qwen model_max_length and linear"] = {**QWEN, "model_max_length": 1000, "rope_scaling": linear}
    for name, full in {
        "linear": {**linear, "rope_theta": 1e6},
        "yarn": {**yarn, "rope_theta": 1e6},
    }.items():
        nested = {"full_attention": full, "sliding_attention": default}
        found[f"olmo3 per layer {name}"] = {**OLMO, "rope_parameters": nested}
        found[f"gemma3 per layer {name}"] = {**GEMMA, "rope_parameters": nested}
    both = {"sliding_attention": {**linear, "rope_theta": 1e4}, "full_attention": {**linear, "factor": 4.0}}
    found["olmo3 two factors"] = {**OLMO, "rope_parameters": both}
    found["gemma3 linear"] = {**GEMMA, "rope_scaling": {**linear, "factor": 8.0}}
    found["phi3 longrope"] = {
        **PHI,
        "original_max_position_embeddings": 8192,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.0] * 32},
    }
    found["phi3 longrope by its class"] = {
        **PHI,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [1.0] * 32},
    }
    found["mistral window"] = {**MISTRAL, "sliding_window": 1024}
    found["deepseek yarn"] = {
        **DEEPSEEK,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0},
    }
    for name, more in {
        "plain": {},
        "linear": {"rope_scaling": linear},
        "yarn": {"rope_scaling": yarn},
        "mrope": {"rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]}},
        "shorter": {"seq_length": 1000},
    }.items():
        vision = {"model_type": "qwen3_vl", "vision_config": {}}
        found[f"nested {name}"] = {**vision, "text_config": {**TEXT, **more}}
    return found


def context(config: dict[str, Any]) -> int | None:
    """Return vLLM's longest context in tokens, None if vLLM rejects the config."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        try:
            if "text_config" not in config:
                return ModelConfig(model=folder, tokenizer=folder, skip_tokenizer_init=True).max_model_len
            whole = get_config(folder, trust_remote_code=False)
            text = get_hf_text_config(whole)
            arch = ModelArchConfigConvertorBase(whole, text).convert()
            return _get_and_verify_max_len(text, arch, None, None, False, None)
        except (ValueError, KeyError):
            return None


def main() -> None:
    """Derive the contexts of all cases, or of a sample."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", metavar="PREFIX")
    args = parser.parse_args()
    found = {
        name: {"config": config, "context": context(config)}
        for name, config in cases().items()
        if args.sample is None or name.startswith(args.sample)
    }
    if args.sample is not None:
        sys.stdout.write(json.dumps(found))
        return
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in found.items())
    TRUTH.write_text(f'{{"vllm": "{vllm.__version__}", "cases": {{\n{lines}\n}}}}\n', "utf-8")


if __name__ == "__main__":
    main()
