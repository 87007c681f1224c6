"""Reads the experts of a config.json: their number, their width and their layers."""

from __future__ import annotations

from typing import Any

from appliance.catalog.config_fields import ConfigFields
from appliance.catalog.family import Experts
from appliance.catalog.shape import Moe
from appliance.errors import ConfigError


def beside(fields: ConfigFields) -> bool:
    """Return whether every layer has experts in addition to a dense MLP."""
    found = fields.family.experts
    return found is not None and bool(found.beside_dense) and fields.flag(found.beside_dense)


def moe(fields: ConfigFields, layers: int, sparse: list[bool] | None = None) -> tuple[Moe | None, list[bool]]:
    """Return the experts of a layer, and for each layer with an MLP whether it has experts.

    ``layers`` are those with an MLP. ``sparse`` states for each of them whether it has experts, if the pattern of
    the layers does.
    """
    found = fields.family.experts
    if found is None:
        if fields.table.get("num_experts"):
            # The family has no experts: the file contradicts itself.
            _per_token(fields, Experts(), fields.integer("num_experts"))
            fields.seen.discard("num_experts")
        return None, [False] * layers
    present = fields.flag(found.beside_dense) if found.beside_dense else sparse is None or any(sparse)
    experts = fields.integer(*found.count, default=0 if not present else None)
    if not present or not experts:
        names = (found.width, found.shared, found.latent, *found.dense)
        fields.seen.update((*found.count, *found.per_token, *names))
        return None, [False] * layers
    per_token = _per_token(fields, found, experts)
    width = fields.positive(found.width)
    shared = _shared(fields, found)
    sparse = _sparse(fields, found, layers) if sparse is None else sparse
    one = Moe(
        experts=experts,
        per_token=per_token,
        width=width,
        shared=shared * width if found.shared_is == "count" else shared,
        shared_gate=found.shared_gate and shared > 0,
        router_bias=fields.option(found.router_bias) == "all",
        expert_bias=found.expert_bias,
        gated=fields.family.gated,
        latent=fields.integer(found.latent, default=0) if found.latent else 0,
    )
    return (one if any(sparse) else None), sparse


def _per_token(fields: ConfigFields, found: Experts, experts: int) -> int:
    """Return the number of experts that one token passes; some files list it layer by layer."""
    name, value = fields.raw(*found.per_token)
    value = _same(value) if isinstance(value, list) else fields.integer(*found.per_token)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= experts:
        raise ConfigError(
            f"{fields.name}: {fields.path_of(name)} = {value!r:.40} of {experts} experts is not possible; "
            f"nearest: {experts}"
        )
    return value


def _shared(fields: ConfigFields, found: Experts) -> int:
    """Return the width or number of the shared experts; some files list it layer by layer."""
    if not found.shared:
        return found.shared_usual
    name, value = fields.raw(found.shared)
    if not isinstance(value, list):
        return fields.integer(found.shared, default=found.shared_usual)
    value = _same(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1 << 16:
        raise fields.refused(name, fields.table[name])
    return value


def _same(values: list[Any]) -> object:
    """Return the common value of all layers, None if they differ."""
    return values[0] if values and all(value == values[0] for value in values) else None


def _sparse(fields: ConfigFields, found: Experts, layers: int) -> list[bool]:
    """Return for each layer whether it has experts, by the fields of ``found.dense``."""
    if "mlp_layer_types" in found.dense:
        listed = fields.listed("mlp_layer_types", layers)
        fields.seen.update(found.dense)
        if listed is not None:
            unknown = next((kind for kind in listed if kind not in {"dense", "sparse"}), None)
            if unknown is not None:
                raise fields.refused("mlp_layer_types", unknown)
            return [kind == "sparse" for kind in listed]
    sparse = [True] * layers
    for key in found.dense:
        if key == "mlp_layer_types":
            continue
        value = fields.raw(key)[1]
        if value is None:
            continue
        if key == "moe_layers" or (key in {"mlp_only_layers", "moe_layer_freq"} and isinstance(value, list)):
            rule = _by_list(fields, key, value, layers=layers)
        else:
            rule = _by_number(key, fields.integer(key) if key != "moe_layer_end_index" else value, layers)
        sparse = [before and now for before, now in zip(sparse, rule, strict=True)]
    return sparse


def _by_list(fields: ConfigFields, key: str, value: object, *, layers: int) -> list[bool]:
    """Return for each layer whether it has experts, by a list of dense or sparse layers or of a flag per layer."""
    if not isinstance(value, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        raise fields.refused(key, value)
    if key == "moe_layers":
        return [layer in value for layer in range(layers)]
    if key == "mlp_only_layers":
        return [layer not in value for layer in range(layers)]
    return [one > 0 for one in fields.listed(key, layers) or []]


def _by_number(key: str, value: object, layers: int) -> list[bool]:
    """Return for each layer whether it has experts, by a single number."""
    number = value if isinstance(value, int) else -1
    every = range(layers)
    if key in {"first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"}:
        return [layer >= number for layer in every]
    if key == "moe_layer_end_index":
        return [number < 0 or layer <= number for layer in every]
    if key == "moe_layer_freq":
        return [layer % max(number, 1) == 0 for layer in every]
    # decoder_sparse_step, interleave_moe_layer_step, moe_layer_interval
    return [number > 0 and (layer + 1) % number == 0 for layer in every]
