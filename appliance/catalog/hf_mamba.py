"""Reads the Mamba-2 layers of a config.json: which layers they are, and their sizes.

The families differ in the spelling and in the pattern. Granite and Bamba have an MLP in every layer. Falcon-H1 has
attention and Mamba-2 in parallel in every layer. A layer of Nemotron-H is either attention, Mamba-2 or an MLP.
"""

from __future__ import annotations

from typing import Any

from appliance.catalog.config_fields import ConfigFields
from appliance.catalog.family import MambaFields
from appliance.catalog.shape import CONV_STATE_BYTES, SSM_STATE_BYTES, Mamba2
from appliance.errors import ConfigError

PATTERN = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
"""Nemotron-H's letters."""

NAMES = {"mamba": "linear_attention", "attention": "full_attention"}
"""Older names of kinds of layers."""

BLOCKS = ("layers_block_type", "layer_types")

STATE_TYPES = {"float32": SSM_STATE_BYTES, "float16": CONV_STATE_BYTES, "bfloat16": CONV_STATE_BYTES}
"""Types of the recurrent state, and their bytes."""


def blocks(fields: ConfigFields) -> list[str] | None:
    """Return the kind of each layer of Nemotron-H, None for a family with an MLP in every layer.

    Raises :class:`ConfigError` for a letter or a name that is unknown, and for lists that contradict each other.
    """
    if fields.family.mamba is None or fields.family.mamba.layers != "blocks":
        return None
    text = fields.raw("hybrid_override_pattern", own=True)[1]
    kinds = _listed(fields)
    if isinstance(text, str) and text:
        unknown = next((letter for letter in text if letter not in PATTERN), None)
        spelled = [PATTERN.get(letter, "") for letter in text]
        if unknown is not None or (kinds is not None and kinds != spelled):
            raise fields.refused("hybrid_override_pattern", text)
        kinds = spelled
    elif text:
        raise fields.refused("hybrid_override_pattern", text)
    if not kinds:
        raise fields.missing("hybrid_override_pattern")
    stated = fields.integer("num_hidden_layers", default=len(kinds), own=True)
    if stated != len(kinds):
        raise ConfigError(
            f"{fields.name}: the pattern of layers names {len(kinds)} layers, num_hidden_layers is {stated}; "
            "make them agree"
        )
    return kinds


def kinds(fields: ConfigFields, layers: int, found: MambaFields) -> list[str]:
    """Return the kind of each of ``layers`` layers of a family with an MLP in every layer."""
    if found.layers == "parallel":
        if fields.raw("attn_layer_indices")[1] is not None:
            raise fields.refused("attn_layer_indices", fields.table["attn_layer_indices"])
        listed = fields.table.get("layers_block_type", ["hybrid"] * layers)
        fields.seen.add("layers_block_type")
        if listed != ["hybrid"] * layers:
            raise fields.refused("layers_block_type", listed)
        return ["linear_attention"] * layers
    listed = _listed(fields)
    if found.layers == "indices":
        numbers = fields.raw("attn_layer_indices")[1] or []
        if not isinstance(numbers, list) or not all(number in range(layers) for number in numbers):
            raise fields.refused("attn_layer_indices", numbers)
        spelled = ["full_attention" if layer in numbers else "linear_attention" for layer in range(layers)]
        if listed is not None and listed != spelled:
            raise fields.refused("layers_block_type", listed)
        return spelled
    if listed is None:
        return ["linear_attention"] * layers
    unknown = next((kind for kind in listed if kind not in NAMES.values()), None)
    if unknown is not None:
        raise fields.refused("layer_types", unknown)
    if len(listed) != layers:
        raise ConfigError(
            f"{fields.name}: layer_types names {len(listed)} layers, num_hidden_layers is {layers}; make them agree"
        )
    return listed


def _listed(fields: ConfigFields) -> list[str] | None:
    """Return the list of kinds of layers, in the newer names; the file may have it under two names."""
    found: list[list[str]] = []
    for key in BLOCKS:
        value: Any = fields.table.get(key)
        fields.seen.add(key)
        if value is None:
            continue
        allowed = {*NAMES.values(), *NAMES, "mlp", "moe"}
        if not isinstance(value, list) or not all(isinstance(kind, str) and kind in allowed for kind in value):
            raise fields.refused(key, value)
        found.append([NAMES.get(str(kind), str(kind)) for kind in value])
    if len(found) == 2 and found[0] != found[1]:
        raise fields.refused(BLOCKS[1], fields.table[BLOCKS[1]])
    return found[0] if found else None


def mixer(fields: ConfigFields, found: MambaFields, hidden: int) -> Mamba2:
    """Return the sizes of a Mamba-2 layer of a model with ``hidden`` dimensions."""
    fields.seen.add(found.expand)
    heads = fields.positive(found.heads)
    width = fields.integer(found.width, default=0) if found.width else 0
    if found.expand:
        width = width or fields.positive(found.expand) * hidden
    key, value = fields.raw(found.head_dim)
    head_dim = width // heads if width and value in (None, "auto") else fields.positive(found.head_dim)
    if width and heads * head_dim != width:
        raise ConfigError(
            f"{fields.name}: {fields.path_of(found.heads)} = {heads} and {key} = {head_dim} do not give the "
            f"{width} channels of a Mamba layer; make them agree"
        )
    groups = fields.positive(found.groups)
    if heads % groups:
        raise ConfigError(
            f"{fields.name}: {fields.path_of(found.groups)} = {groups} does not divide {heads} Mamba heads; "
            "make them agree"
        )
    return Mamba2(
        heads=heads,
        head_dim=head_dim,
        state=fields.positive(found.state),
        groups=groups,
        conv=fields.positive(found.conv),
        conv_bias=fields.flag(found.conv_bias, default=True),
        in_bias=fields.flag(found.in_bias),
        out_bias=fields.flag(found.out_bias),
        norm=fields.option(found.norm) == "all",
        state_bytes_each=_state_bytes(fields, found),
    )


def _state_bytes(fields: ConfigFields, found: MambaFields) -> int:
    """Return the bytes per number of the state that vLLM keeps.

    vLLM 0.32 reads the type of Nemotron-H from its config.json, else fp32 (``NemotronHForCausalLMConfig``). Other
    families have the model's 16-bit type (``MambaStateDtypeCalculator``).
    """
    if not found.state_type:
        return CONV_STATE_BYTES
    name, value = fields.raw(found.state_type)
    if value is None:
        return SSM_STATE_BYTES
    if not isinstance(value, str) or value not in STATE_TYPES:
        raise fields.refused(name, value)
    return STATE_TYPES[value]
