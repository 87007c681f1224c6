"""The grid of a benchmark: which loads are measured, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from appliance.errors import UsageError

MAX_BATCH = 1024
MAX_INPUT = 1_000_000
MIN_REQUESTS = 16
"""Requests of a cell: with a small batch each user sends several."""
MIN_ROUNDS = 3
"""Requests of each user of a cell, at least."""

CellKind = Literal["load", "context", "swap", "cold"]
"""``load``: a closed loop of ``batch`` users. ``context``: one user with a long prompt. ``swap``: to ``model``.
``cold``: a start of the engine of ``model``."""


class BenchCell(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measurement of a grid. ``input`` is tokens of a prompt, ``power_w`` a power limit in watts."""

    kind: CellKind
    batch: int = 1
    input: int = 0
    power_w: int | None = None
    """None for the limit that the host has."""
    model: str = ""
    """The model that a swap loads, or whose engine starts."""

    @property
    def name(self) -> str:
        """The name in messages and in the file of results."""
        if self.kind == "swap":
            return f"swap to {self.model}"
        if self.kind == "cold":
            return f"cold start of {self.model}"
        limit = "" if self.power_w is None else f", {self.power_w} W"
        return f"{self.kind}: {self.batch} x {self.input} tokens{limit}"

    @property
    def is_load(self) -> bool:
        """Whether it sends requests; the other kinds take the model away from users."""
        return self.kind in ("load", "context")

    @property
    def rounds(self) -> int:
        """Requests that each user sends."""
        return max(MIN_ROUNDS, -(-MIN_REQUESTS // self.batch))


class EngineBounds(msgspec.Struct, frozen=True):
    """The bounds of the measured engine: tokens of context, sequences over all replicas, the share to use."""

    context: int
    slots: int
    share: float = 1.0

    @property
    def largest_batch(self) -> int:
        """Sequences that the benchmark may use."""
        return max(1, int(self.slots * self.share))


class BenchGrid(msgspec.Struct, frozen=True, kw_only=True):
    """The axes of a grid. A batch of 0 is the largest one that the engine and the share allow."""

    batches: tuple[int, ...] = (1, 4, 16, 64, 0)
    inputs: tuple[int, ...] = (512, 8192, 32768)
    powers: tuple[int, ...] = ()
    contexts: tuple[int, ...] = (1024, 4096, 16384, 65536)
    output: int = 128
    """Tokens of each response."""
    swaps: tuple[str, ...] = ()
    """Models of which each is loaded in turn."""
    cold_starts: tuple[str, ...] = ()
    """Models of which each engine is started anew."""


def cells_of(grid: BenchGrid, bounds: EngineBounds) -> tuple[list[BenchCell], list[str]]:
    """Return the cells in the order of their measurement, and a line for each value that the engine excludes.

    The limit of power changes least often. Small batches precede large ones, so that a run that ends early has
    the whole range of lengths.
    """
    skipped = []
    batches = sorted({min(batch or bounds.largest_batch, MAX_BATCH) for batch in grid.batches})
    for batch in [batch for batch in batches if batch > bounds.largest_batch]:
        skipped.append(f"batch {batch}: the engine and the share allow {bounds.largest_batch}")
        batches.remove(batch)
    inputs = _within(grid.inputs, "input", grid=grid, bounds=bounds, skipped=skipped)
    contexts = _within(grid.contexts, "context", grid=grid, bounds=bounds, skipped=skipped)
    powers: Sequence[int | None] = sorted(set(grid.powers), reverse=True) or (None,)
    cells = [
        BenchCell("load", batch=batch, input=tokens, power_w=power)
        for power in powers
        for batch in batches
        for tokens in inputs
    ]
    cells += [BenchCell("context", input=tokens) for tokens in contexts]
    cells += [BenchCell("swap", model=model) for model in grid.swaps]
    cells += [BenchCell("cold", model=model) for model in grid.cold_starts]
    return cells, skipped


def _within(
    values: Sequence[int], name: str, *, grid: BenchGrid, bounds: EngineBounds, skipped: list[str]
) -> list[int]:
    most = bounds.context - grid.output
    ordered = sorted(set(values))
    skipped += [
        f"{name} {value}: with {grid.output} tokens of output it exceeds {bounds.context}"
        for value in ordered
        if value > most
    ]
    return [value for value in ordered if value <= most]


def numbers(text: str, option: str, *, most: int, words: Sequence[str] = ()) -> tuple[int, ...]:
    """Return the whole numbers of a list such as ``1,4,max``; a word of ``words`` is 0.

    Raises :class:`UsageError` that begins with ``option``.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part in words:
            found.append(0)
            continue
        if not part.isdecimal() or not 1 <= int(part) <= most:
            also = f", or {' '.join(words)}" if words else ""
            raise UsageError(f"{option}: {part[:20]!r} is not a whole number from 1 to {most}{also}")
        found.append(int(part))
    return tuple(found)
