"""Weights of every causal language model of the installed transformers, counted on torch's meta device.

Run it with the Python of the engine's environment: ``python benchmarks/planner/families.py``. It writes two files.
tests/catalog/families.json has for each family a config, its count, and each single change of the config that
changes the count. appliance/catalog/defaults.toml has the values that the class of a family assumes for missing
fields, for the families that the planner counts. ``--sample NAME ...`` prints the entries of those families as JSON
and writes no file.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto import modeling_auto

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from appliance.catalog.families import FAMILIES  # noqa: E402
from appliance.catalog.family import SAME_AS  # noqa: E402

TRUTH = ROOT / "tests" / "catalog" / "families.json"
DEFAULTS = ROOT / "appliance" / "catalog" / "defaults.toml"

LAYERS = 8
"""Layers of each counted model: enough for every pattern of layers, few enough for short lists."""

SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [3, 7]},
    "bloom": {"hidden_size": 1024, "seq_length": 2048},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "glm4_moe": {"head_dim": 128},
    "gpt_neo": {"num_layers": LAYERS, "attention_types": [[["global", "local"], LAYERS // 2]]},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 2},
    "granitemoehybrid": {
        "num_hidden_layers": LAYERS,
        "layer_types": [*["linear_attention"] * 3, "full_attention"] * 2,
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "minimax_m3_vl_text": {
        "num_hidden_layers": LAYERS,
        "layer_types": [*["full_attention"] * 3, *["minimax_m3_sparse"] * 5],
        "mlp_layer_types": [*["dense"] * 3, *["sparse"] * 5],
    },
    "step3p7": {
        "text_config": {
            "num_hidden_layers": LAYERS,
            "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 2,
            "num_sliding_attention_heads": 96,
            "sliding_window": 512,
        }
    },
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
}
"""Values that a class needs in addition to its defaults to build a model, or to have every kind of layer."""

LAYER_FIELDS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

BUFFERS = ("e_score_correction_bias", "expert_bias", "layer_scalar")
"""Buffers that a checkpoint holds and the planner counts."""

TEXT = ("language_model", "lm_head", "text_model", "model.layers.", "model.embed_tokens.", "model.norm.")
"""Parts of the names of a multimodal model's parameters that belong to its text model."""

TOWER_NAMES = ("vision_model.", "model.vision_")
"""Starts of names of a tower's parameters, whose layers may be called like those of a text model."""

CONTEXT = (
    "max_position_embeddings",
    "max_seq_len",
    "model_max_length",
    "n_positions",
    "original_max_position_embeddings",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "num_key_value_heads",
    "num_experts_per_tok",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "global_attn_every_n_layers",
    "tie_word_embeddings",
)
"""Fields that change context, cache or work, but not the count."""

SAME_EVERYWHERE = (
    "_name_or_path",
    "architectures",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "transformers_version",
)
"""Fields of every config without an effect on sizes; the table omits them to stay small."""


TOWERS = (
    "vision_config",
    "audio_config",
    "perceiver_config",
    "qformer_config",
    "vq_config",
    "high_res_vision_config",
)
"""Parts of a multimodal model that the planner does not count."""


def plain(config: Any) -> dict[str, Any]:
    """Return ``config`` as its file would have it."""

    def cut(table: dict[str, Any]) -> dict[str, Any]:
        return {
            key: ({} if key in TOWERS else cut(value)) if isinstance(value, dict) else value
            for key, value in table.items()
            if key not in SAME_EVERYWHERE
        }

    table: dict[str, Any] = json.loads(config.to_json_string(use_diff=False).replace("Infinity", "1e38"))
    return cut(table)


def count(config: Any, auto: Any, text_only: bool) -> int:
    """Return the number of weights of the model of ``config``."""
    with torch.device("meta"):
        model = auto.from_config(config)
    total = 0
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if text_only and (name.startswith(TOWER_NAMES) or not any(part in name for part in TEXT)):
            continue
        if isinstance(weight, torch.nn.Parameter) or name.endswith(BUFFERS):
            total += weight.numel()
    return total


def altered(key: str, value: object) -> list[object]:
    """Return other possible values of ``key``."""
    if key.endswith(("_token_id", "_token_index")) or key in {"dtype", "vocab_size_or_config_json_file"}:
        return []
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, value // 2, value + 1] if value > 1 else [value + 1, 0 if value else 2]
    if value is None:
        return [64, True]
    return []


def entry(family: str, auto: Any, text_only: bool) -> dict[str, Any]:
    """Return the family's config, its count, and every single change of the config that changes the count."""
    settings = dict(SETTINGS.get(family, {}))
    try:
        if not text_only:
            usual = AutoConfig.for_model(family, **settings)
            settings |= {key: LAYERS for key in LAYER_FIELDS if isinstance(vars(usual).get(key), int)}
        config = AutoConfig.for_model(family, **settings)
        base, total = plain(config), count(config, auto, text_only)
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}"[:160]}
    changes: list[dict[str, Any]] = []
    for key, value in {} if text_only else base.items():
        for other in altered(key, value):
            try:
                changed = AutoConfig.for_model(family, **settings | {key: other})
                new = count(changed, auto, text_only)
            except Exception:  # noqa: BLE001
                continue
            if new != total:
                table = plain(changed)
                different = {name: table[name] for name in table if table[name] != base.get(name)}
                changes.append({"field": key, "config": different, "params": new})
                break
        if not text_only and isinstance(value, int) and not isinstance(value, bool):
            try:
                nothing = count(AutoConfig.for_model(family, **settings | {key: None}), auto, text_only)
            except Exception:  # noqa: BLE001
                continue
            if any(change["field"] == key for change in changes):
                changes.append({"field": key, "config": {key: None}, "params": nothing})
    result: dict[str, Any] = {"config": base, "params": total}
    return result | ({"changes": changes} if changes else {})


def defaults_of(families: dict[str, dict[str, Any]]) -> str:
    """Return the defaults of the class of each known family, for the fields that change its count or context."""
    lines = [
        "# The values that a family's configuration class assumes for fields missing from a config.json.",
        f"# Source: the classes of transformers {transformers.__version__}, by benchmarks/planner/families.py.",
        "# A field that is not here has no such value; it follows from another field or a formula.",
    ]
    classes: dict[str, type] = {}
    outside: dict[str, bool] = {}
    names = set(CONTEXT)
    for family, found in families.items():
        try:
            whole = AutoConfig.for_model(family)
            text = whole.get_text_config(decoder=True)
        except Exception:  # noqa: BLE001
            continue
        classes.setdefault(family if text is whole else text.model_type, type(text))
        names |= {change["field"] for change in found.get("changes", [])}
        tied = getattr(type(whole), "tie_word_embeddings", None)
        if text is not whole and isinstance(tied, bool):
            outside[family] = tied
    for kind in sorted(classes.keys() & (FAMILIES.keys() | SAME_AS.keys())):
        values = {name: getattr(classes[kind], name, None) for name in sorted(names)}
        table = [f"{key} = {str(value).lower()}" for key, value in values.items() if isinstance(value, (bool, int))]
        lines += ["", f"[{json.dumps(kind)}]", *table]
    lines += [
        "",
        "# Whether the class around a nested text model shares its embedding with its head.",
        "[tied_outside]",
    ]
    lines += [f"{json.dumps(family)} = {str(tied).lower()}" for family, tied in sorted(outside.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Count the weights of all families, or of a sample."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", nargs="*", metavar="NAME")
    args = parser.parse_args()
    causal = dict.fromkeys(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM)
    nested = dict.fromkeys(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, AutoModelForImageTextToText)
    wanted = set(args.sample) if args.sample else {*causal, *nested}
    families = {
        family: entry(family, auto, text_only=family in nested)
        for family, auto in (causal | nested).items()
        if family in wanted
    }
    families = {family: families[family] for family in sorted(families)}
    if args.sample:
        sys.stdout.write(json.dumps(families))
        return
    lines = ",\n".join(f"{json.dumps(family)}: {json.dumps(found)}" for family, found in families.items())
    TRUTH.write_text(f'{{"transformers": "{transformers.__version__}", "families": {{\n{lines}\n}}}}\n', "utf-8")
    DEFAULTS.write_text(defaults_of(families), "utf-8")


if __name__ == "__main__":
    main()
