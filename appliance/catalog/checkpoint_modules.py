"""The modules of a quantised checkpoint, layer by layer: those of a list, and the bytes per weight of each part.

Pure. A checkpoint names the modules that stay at 16 bits, or the precision of each module. The names are matched as
vLLM 0.32 matches them (``ModelOptQuantConfigBase.is_layer_excluded``, ``is_layer_skipped``): a name covers its
submodules, ``*`` is a wildcard, and ``re:`` begins a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from typing import Literal

from appliance.catalog.shape import Attention, DeltaAttention, Mamba2, Mla, PartBytes, Shape

Part = Literal["attention", "linear", "dense", "shared", "experts"]

PREFIX = re.compile(r"^(?:language_model\.)?(?:(?:model|backbone)\.)?(?:language_model\.)?")
"""Names of the modules around the layers of a text model."""

EXPERT = re.compile(r"\bexperts\.\d+")

ATTENTION_NAMES = ("self_attn", "attn", "attention", "mixer")
LINEAR_NAMES = ("linear_attn", "mamba", "mixer", "self_attn")
MLP_NAMES = ("mlp", "ffn", "feed_forward", "block_sparse_moe", "moe", "mixer")
SHARED_NAMES = ("shared_expert", "shared_experts", "shared_mlp")
EXPERT_NAMES = ("experts.0", "experts")
"""Names of the same module in different families."""


@dataclass(frozen=True, slots=True)
class LayerMatrix:
    """A matrix of a layer: its names in different families, its part of the model, its weights."""

    names: tuple[str, ...]
    part: Part
    weights: int


@dataclass(frozen=True)
class Pattern:
    """An entry of a list."""

    text: str

    @cached_property
    def _plain(self) -> str:
        return PREFIX.sub("", self.text)

    @cached_property
    def _compiled(self) -> re.Pattern[str] | None:
        """A regular expression, None for a plain name.

        Raises ``re.error`` for an expression that is not valid.
        """
        if self.text.startswith("re:"):
            return re.compile(self.text.removeprefix("re:"))
        if "*" not in self.text:
            return None
        return re.compile(f"{translate(self._plain)}|{translate(self._plain + '.*')}")

    def matches(self, name: str) -> bool:
        """Return whether the entry covers the module ``name``, which begins with its layer."""
        if self._compiled is None:
            return f".{self._plain}." in f".{name}."
        if self.text.startswith("re:"):
            prefixes = ("", "model.", "language_model.model.", "model.language_model.", "backbone.")
            return any(self._compiled.match(prefix + name) for prefix in prefixes)
        return self._compiled.match(name) is not None

    def first_expert(self) -> str:
        """Return the entry with the number of any expert replaced by 0."""
        return EXPERT.sub("experts.0", self.text)


def modules(shape: Shape, kinds: Sequence[str], sparse: Sequence[bool]) -> list[LayerMatrix]:
    """Return the matrices of all layers of ``shape``.

    ``kinds`` has the kind of each layer, ``sparse`` for each layer with an MLP whether it has experts.
    """
    found: list[LayerMatrix] = []
    mlps = iter(sparse)
    for layer, kind in enumerate(kinds):
        if kind not in {"mlp", "moe"}:
            found += _attention(shape, layer, kind)
        if kind in {"mlp", "moe"} or not shape.attention_only_layers:
            found += _mlp(shape, layer, sparse=next(mlps))
    return found


def _attention(shape: Shape, layer: int, kind: str) -> list[LayerMatrix]:
    hidden = shape.hidden
    found: list[LayerMatrix] = []
    if shape.linear is not None and (kind == "linear_attention" or shape.linear_beside_full):
        found += [
            LayerMatrix(_names(layer, LINEAR_NAMES, name), "linear", weights)
            for name, weights in _linear_matrices(shape).items()
        ]
    if kind == "linear_attention" and not shape.linear_beside_full:
        return found
    one = shape.sliding if kind == "sliding_attention" and shape.sliding is not None else shape.full
    matrices = _latent_matrices(one, hidden) if isinstance(one, Mla) else _softmax_matrices(one, hidden)
    return found + [
        LayerMatrix(_names(layer, ATTENTION_NAMES, name), "attention", weights)
        for name, weights in matrices.items()
    ]


def _softmax_matrices(one: Attention, hidden: int) -> dict[str, int]:
    query, key = one.heads * one.head_dim, one.kv_heads * one.head_dim
    wide = one.value_dim or one.head_dim
    index = one.index_dim if one.index_heads else 0
    return {
        "q_proj": hidden * query * (2 if one.output_gate else 1),
        "k_proj": hidden * key,
        "v_proj": 0 if one.value_is_key else hidden * one.kv_heads * wide,
        "o_proj": one.heads * wide * hidden,
        "index_q_proj": hidden * one.index_heads * index,
        "index_k_proj": hidden * index,
    }


def _latent_matrices(one: Mla, hidden: int) -> dict[str, int]:
    width = one.heads * (one.nope_dim + one.rope_dim)
    query = {"q_a_proj": hidden * one.q_rank, "q_b_proj": one.q_rank * width} if one.q_rank else {}
    return {
        **(query or {"q_proj": hidden * width}),
        "kv_a_proj_with_mqa": hidden * (one.kv_rank + one.rope_dim),
        "kv_b_proj": one.kv_rank * one.heads * (one.nope_dim + one.v_dim),
        "o_proj": one.heads * one.v_dim * hidden,
    }


def _linear_matrices(shape: Shape) -> dict[str, int]:
    hidden, linear = shape.hidden, shape.linear
    if isinstance(linear, Mamba2):
        inner = linear.heads * linear.head_dim
        inputs = 2 * inner + 2 * linear.groups * linear.state + linear.heads
        return {"in_proj": hidden * inputs, "out_proj": inner * hidden}
    if linear is None:
        return {}
    if isinstance(linear, DeltaAttention):
        width = linear.heads * linear.head_dim
        return dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), hidden * width)
    key, value = linear.key_heads * linear.key_dim, linear.value_heads * linear.value_dim
    return {
        "in_proj_qkv": hidden * (2 * key + value),
        "in_proj_z": hidden * value,
        "out_proj": value * hidden,
    }


def _mlp(shape: Shape, layer: int, *, sparse: bool) -> list[LayerMatrix]:
    hidden, found = shape.hidden, list[LayerMatrix]()
    if not sparse or shape.dense_beside_moe:
        found += [
            LayerMatrix(_names(layer, (*MLP_NAMES, "shared_mlp"), name), "dense", hidden * shape.dense_width)
            for name in _matrices(shape.gated)
        ]
    moe = shape.moe
    if not sparse or moe is None:
        return found
    around = tuple(f"{name}." for name in MLP_NAMES)
    if shape.dense_beside_moe:
        # Gemma 4 has its experts next to its dense MLP.
        around = ("", "moe.")
    width = moe.latent or hidden
    if moe.latent:
        found += [
            LayerMatrix(_names(layer, MLP_NAMES, name), "shared", hidden * moe.latent)
            for name in ("fc1_latent_proj", "fc2_latent_proj")
        ]
    for name in _matrices(moe.gated):
        experts = [f"layers.{layer}.{outer}{inner}.{name}" for outer in around for inner in EXPERT_NAMES]
        found.append(LayerMatrix(tuple(experts), "experts", moe.experts * width * moe.width))
        if moe.shared:
            shared = [f"layers.{layer}.{outer}{inner}.{name}" for outer in (*around, "") for inner in SHARED_NAMES]
            found.append(LayerMatrix(tuple(shared), "shared", hidden * moe.shared))
    return found


def _matrices(gated: bool) -> tuple[str, ...]:
    return ("gate_proj", "up_proj", "down_proj") if gated else ("up_proj", "down_proj")


def _names(layer: int, blocks: Iterable[str], name: str) -> tuple[str, ...]:
    return tuple(f"layers.{layer}.{block}.{name}" for block in blocks)


SAME_NAMES: Mapping[str, str] = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""Names of the matrices of an expert in some families."""


def renamed(text: str) -> str:
    """Return ``text`` with the usual name of an expert's matrix at its end."""
    head, dot, last = text.rpartition(".")
    return f"{head}{dot}{SAME_NAMES.get(last, last)}"


def listed(entries: Sequence[str], found: Sequence[LayerMatrix]) -> tuple[set[int], list[str]]:
    """Return the indexes of the modules that ``entries`` cover, and the entries that cover none of them.

    Raises ``re.error`` for an entry with an expression that is not valid.
    """
    covered: set[int] = set()
    unknown: list[str] = []
    known = set(entries)
    by_layer: dict[str, list[int]] = {}
    for index, module in enumerate(found):
        by_layer.setdefault(module.names[0].split(".")[1], []).append(index)
    for text in entries:
        pattern = Pattern(renamed(text))
        first = pattern.first_expert()
        if first not in {pattern.text, text}:
            # All experts of a layer count as one module; each of them has to be in the list.
            if not {text, first} <= known | {renamed(one) for one in known}:
                unknown.append(text)
            continue
        layer = re.search(r"(?:^|\.)layers\.(\d+)\.", pattern.text)
        candidates = by_layer.get(layer.group(1), []) if layer else range(len(found))
        matched = {index for index in candidates if any(pattern.matches(name) for name in found[index].names)}
        if not matched:
            unknown.append(text)
        covered |= matched
    return covered, unknown


def part_bytes(shape: Shape, found: Sequence[LayerMatrix], each: Sequence[float], head: float) -> PartBytes:
    """Return the bytes per weight of each part of ``shape``, with ``each`` bytes per weight of ``found``.

    Weights outside the matrices (norms, biases, convolutions) have 16 bits. ``head`` are those of the output head.
    """
    sums: dict[Part, float] = {}
    counts: dict[Part, int] = {}
    for module, size in zip(found, each, strict=True):
        sums[module.part] = sums.get(module.part, 0.0) + module.weights * size
        counts[module.part] = counts.get(module.part, 0) + module.weights
    moe = shape.moe
    router = shape.moe_layers * shape.hidden * moe.experts if moe else 0
    totals: dict[Part, int] = {
        "attention": shape.attention_params,
        "linear": shape.linear_params,
        "dense": shape.dense_mlp_params,
        "shared": shape.moe_common_params - router,
        "experts": shape.expert_params,
    }

    def mean(part: Part) -> float:
        total = totals[part]
        if not total:
            return 2.0
        return round((sums.get(part, 0.0) + 2.0 * (total - counts.get(part, 0))) / total, 6)

    return PartBytes(
        attention=mean("attention"),
        linear=mean("linear"),
        dense=mean("dense"),
        shared=mean("shared"),
        experts=mean("experts"),
        head=head,
    )
