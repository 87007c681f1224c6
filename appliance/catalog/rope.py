"""The longest context of a model, as vLLM derives it from a config.json.

Pure. YaRN, Llama 3 and LongRoPE do not change ``max_position_embeddings`` (LongRoPE starts at the original one);
every other factor multiplies it. ``tests/catalog/contexts.json`` has the contexts of vLLM 0.32's own ModelConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.errors import ConfigError

LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Fields of a length: the smallest is the context before scaling, unless ``model_max_length`` overrides it."""

LAYER_KINDS = frozenset(
    {"attention", "chunked_attention", "full_attention", "linear_attention", "local", "sliding_attention"}
)
"""Keys of rope parameters that are given per kind of layer."""

KEEP = frozenset({"deepseek_llama_scaling", "deepseek_yarn", "llama3", "longrope", "su", "yarn", "telechat3-yarn"})
"""Types whose factor does not change the context."""

MULTIPLY = frozenset({"default", "dynamic", "linear", "mrope", "ntk", "proportional", "xdrope"})
"""Types whose factor, if any, multiplies the context."""

PARAMETERS = frozenset(
    {
        "alpha",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "factor",
        "finetuned",
        "high_freq_factor",
        "llama_4_scaling_beta",
        "long_factor",
        "long_mscale",
        "low_freq_factor",
        "max_position_embeddings",
        "mrope_interleaved",
        "mrope_section",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rope_theta",
        "rope_type",
        "short_factor",
        "short_mscale",
        "truncate",
        "type",
        "xdrope_section",
    }
)
"""Keys of rope parameters that are understood."""


def scaled(name: str, context: int, table: Mapping[str, Any], *, original: int | None) -> int:
    """Return ``context`` in tokens after the rope scaling in ``table``.

    ``original`` is ``original_max_position_embeddings``, the context with which a model starts under LongRoPE.
    Raises :class:`ConfigError` for a type or a parameter that is unknown.
    """
    field = "rope_scaling" if table.get("rope_scaling") else "rope_parameters"
    parameters = table.get(field)
    if not parameters:
        return context
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"{name}: {field} = {parameters!r:.40} is not a table; take the model's own config.json")
    per_kind = parameters.keys() <= LAYER_KINDS
    found = [part for part in parameters.values() if part] if per_kind else [parameters]
    factor: float = 1.0
    long = False
    for part in found:
        if not isinstance(part, Mapping):
            raise ConfigError(f"{name}: {field} = {part!r:.40} is not a table; take the model's own config.json")
        kind = _kind(name, field, part)
        long = long or kind in {"longrope", "su"}
        if kind not in KEEP and "factor" in part:
            factor = _factor(name, field, part["factor"])
    return original if long and original is not None else int(context * factor)


def _kind(name: str, field: str, part: Mapping[str, Any]) -> str:
    """Return the type of one set of parameters; :class:`ConfigError` if one of them is unknown."""
    unknown = next((key for key in part if key not in PARAMETERS), None)
    if unknown is not None:
        raise ConfigError(
            f"{name}: {field}.{unknown} is not a rope parameter that the planner understands; "
            "describe the model by hand in models.toml"
        )
    kinds = {str(part[key]) for key in ("rope_type", "type") if part.get(key) is not None} or {"default"}
    if len(kinds) > 1 and kinds not in ({"su", "longrope"}, {"mrope", "default"}):
        raise ConfigError(f"{name}: {field} has two types ({', '.join(sorted(kinds))}); remove one of them")
    kind = max(kinds)
    if kind not in KEEP | MULTIPLY:
        raise ConfigError(
            f"{name}: {field} has the type {kind!r}, which the planner does not understand; "
            "describe the model by hand in models.toml"
        )
    return kind


def _factor(name: str, field: str, value: object) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-3 <= value <= 1e6:
        raise ConfigError(f"{name}: {field}.factor = {value!r:.40} is not possible; nearest: 1.0")
    return float(value)
