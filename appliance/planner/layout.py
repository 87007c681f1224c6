"""The layout of a model over cards: copies, shards, stages, experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.catalog.shape import Shape
from appliance.errors import UsageError
from appliance.planner.precision import Precision

MAX_DEGREE = 4096
"""Largest degree of parallelism, and most replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The use of cards: ``replicas`` copies of a model, each over ``tp`` x ``pp`` cards.

    ``attention_dp`` replicates attention inside a copy and distributes only the experts (TensorRT-LLM's DEP).
    ``ep`` keeps whole experts on a card instead of a slice of each.
    """

    tp: int = 1
    pp: int = 1
    replicas: int = 1
    ep: bool = False
    attention_dp: bool = False
    hosts: int = 1
    """Machines that one copy spans."""

    @property
    def cards_per_replica(self) -> int:
        """Cards of one copy."""
        return self.tp * self.pp

    @property
    def cards(self) -> int:
        """Cards of all copies."""
        return self.tp * self.pp * self.replicas


SINGLE = Layout()
"""One card."""


def check_shards(shape: Shape, layout: Layout, precision: Precision) -> None:
    """Raise :class:`UsageError` if ``layout`` cannot cut ``shape``: heads, experts, quantisation blocks, layers."""
    tp = layout.tp
    heads = [shape.full.heads]
    if shape.sliding is not None:
        heads.append(shape.sliding.heads)
    if shape.linear is not None:
        heads.extend(shape.linear.sharded())
    if not layout.attention_dp and any(count % tp for count in heads):
        nearest = min(_sizes(heads), key=lambda size: abs(size - tp))
        raise UsageError(
            f"tensor parallel {tp} does not divide the {min(heads)} heads of {shape.name}; nearest: {nearest}"
        )
    if layout.ep and shape.moe is None:
        raise UsageError(f"{shape.name} has no experts; leave expert parallelism off")
    if layout.ep and shape.moe and shape.moe.experts % tp:
        nearest = min((n for n in _sizes(heads) if shape.moe.experts % n == 0), key=lambda size: abs(size - tp))
        raise UsageError(
            f"{tp} cards do not divide the {shape.moe.experts} experts of {shape.name}; nearest: {nearest}"
        )
    if shape.moe and not layout.ep and not layout.attention_dp:
        # vLLM's block-quantised FP8 experts come in blocks of 128 that a shard must not cut.
        block = max(1, shape.fp8_block) if precision.name == "fp8" else 1
        if shape.moe.width % (tp * block):
            fits = [n for n in _sizes(heads) if shape.moe.width % (n * block) == 0]
            nearest = max((n for n in fits if n <= tp), default=1)
            raise UsageError(
                f"tensor parallel {tp} does not divide the experts of {shape.name} ({shape.moe.width} wide, "
                f"blocks of {block}); nearest: {nearest}, or {tp} with expert parallelism"
            )
    if layout.pp > shape.layers:
        raise UsageError(
            f"pipeline parallel {layout.pp} is more than the {shape.layers} layers; nearest: {shape.layers}"
        )


def _sizes(heads: Sequence[int]) -> list[int]:
    """Return the numbers of cards that divide all ``heads``."""
    return [size for size in range(1, max(heads) + 1) if all(count % size == 0 for count in heads)]
