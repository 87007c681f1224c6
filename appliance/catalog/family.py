"""How a family of models builds its layers, as far as its config.json leaves it unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """How a family describes its experts. Tuples of names are spellings of one field."""

    count: tuple[str, ...] = ("num_experts",)
    per_token: tuple[str, ...] = ("num_experts_per_tok",)
    width: str = "moe_intermediate_size"
    shared: str = ""
    """Field with the shared expert's width, or with the number of shared experts."""
    shared_is: Literal["width", "count"] = "count"
    shared_usual: int = 0
    """Its value if the file leaves the field out."""
    shared_gate: bool = False
    router_bias: str = "none"
    """``none``, ``all``, or the flag that switches it on."""
    expert_bias: bool = False
    dense: tuple[str, ...] = ()
    """Fields that say which layers have a dense MLP instead; see ``hfconfig._dense_layers``."""
    dense_width: str = "intermediate_size"
    beside_dense: str = ""
    """Flag that puts the experts beside a dense MLP in every layer; without it there are no experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One ``model_type``. Options in the form ``flag:what`` hold if the file sets ``flag``."""

    names: Names = field(default_factory=dict)
    """The file's spellings of an ordinary field."""
    latent: bool = False
    """Multi-head latent attention."""
    indexer: bool = False
    """A lightning indexer in every layer."""
    linear: bool = False
    """Gated DeltaNet in some layers."""
    bias: str = "none"
    """Biases of attention: ``none``, ``qkv``, ``out``, ``all``."""
    qk_norm: str = "none"
    """Norms of queries and keys, as in :class:`~appliance.catalog.shape.Attention`."""
    output_gate: str = "none"
    """A gate on attention's output: ``none``, ``full`` (as wide as the queries), ``head`` (one per head)."""
    sinks: bool = False
    gated: bool = True
    """Whether the MLP has a gate beside its up projection."""
    mlp_bias: str = "none"
    norms: int = 2
    """Norms of a layer, those of queries and keys left out."""
    norm_bias: str = "none"
    final_norm: bool = True
    positions: int | None = None
    """Rows that the learned position embedding has beyond the longest context; None without one."""
    head_bias: str = "none"
    embedding_norm: bool = False
    tied: bool = False
    window: str = "whole"
    """Layers that slide when ``layer_types`` is absent: ``whole`` (all, if there is a window), ``late`` (from
    ``max_window_layers`` on), ``every fourth`` (all but every fourth, from the first on), or ``FIELD=N``: every Nth
    layer is full, unless FIELD gives another N."""
    experts: Experts | None = None
    extra: str = ""
    """Further weights of a layer, by name; see ``hfconfig._extra``."""
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Fields that this planner understands in these values alone."""
    everywhere: Mapping[str, object] = field(default_factory=dict)
    """Lists with one entry per layer, understood if every entry is this one."""
    harmless: tuple[str, ...] = ()
    """Fields that change neither size nor context in this family."""
    gemma3_context: bool = False
    """The longest context includes the rope scaling already."""
