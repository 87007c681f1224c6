"""The layout of vLLM's KV cache: groups of layers that share one pool of equal pages.

Pure. vLLM reports "KV cache size: N tokens" at its start. N is the longest context, times the pool's pages, over
the pages of one request of that context. Sliding layers need only their window, chunked layers their chunk, linear
attention layers one state each; their pages are padded to one size. The rules are those of vLLM 0.32's
v1/core/kv_cache_utils.py and v1/kv_cache_interface.py, and the results equal its reports
(``tests/planner/test_kv_cache.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from appliance.catalog.shape import Attention, Mamba2, Mla, Shape
from appliance.planner.drafts import NO_DRAFTS, Drafts

GPU_BLOCK = 16
CPU_BLOCK = 128
"""Tokens per page without --block-size."""

LATENT_BLOCK = 128
"""Least tokens per page of latent attention next to recurrent layers.

Source: ``Platform.update_block_size_for_backend`` of vLLM 0.32.
"""

STATE_PAGES = 2
"""Recurrent states of a sequence: two while prefix caching keeps them aligned with blocks."""

MAMBA2_STATE_PAGES = STATE_PAGES + 1
"""Mamba-2 also exports the state at the last block boundary of a prefill (``MambaMixer2.get_kv_cache_spec``)."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share a block table: tokens per page, and the most pages that one request may hold."""

    block_tokens: int
    window: int | None
    state_pages: int = 0
    """Pages of a recurrent state; 0 in a group of attention layers."""
    chunked: bool = False
    """Whether ``window`` is a chunk: a fixed part of the context instead of the last tokens."""

    def pages(self, context: int, batched_tokens: int) -> int:
        """Return the pages that one request of ``context`` tokens holds in this group."""
        if self.state_pages:
            return self.state_pages
        if self.window is None:
            return ceil(context / self.block_tokens)
        if self.chunked:
            # A chunk begins at a block, so that it needs no block more than it fills.
            return ceil(min(self.window + batched_tokens, context) / self.block_tokens)
        return ceil(min(self.window - 1 + batched_tokens, context) / self.block_tokens) + 1


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The pages of a KV cache. ``page_bytes`` covers one page of every layer of a group."""

    page_bytes: int
    groups: tuple[Group, ...]
    batched_tokens: int

    def pages_per_request(self, context: int) -> int:
        """Return the pages of a request of ``context`` tokens over all groups."""
        return sum(group.pages(context, self.batched_tokens) for group in self.groups)

    def tokens(self, available: float, context: int) -> int:
        """Return the tokens that vLLM reports for ``available`` bytes and the longest context ``context``."""
        pages = int(available // self.page_bytes)
        return max(0, int(pages / self.pages_per_request(context) * context))

    def sequences(self, available: float, context: int) -> float:
        """Return the number of requests of ``context`` tokens that fit at once, none of them in a prefill."""
        pages = sum(group.pages(context, 1) for group in self.groups)
        return max(0.0, available // self.page_bytes / pages)


def layout(
    shape: Shape,
    *,
    tp: int = 1,
    pp: int = 1,
    kv_bytes: float = 2.0,
    block: int = GPU_BLOCK,
    batched_tokens: int = 8192,
    drafts: Drafts = NO_DRAFTS,
) -> KvLayout:
    """Return the groups of ``shape`` on one of ``tp`` x ``pp`` cards; a KV head is never cut, only repeated.

    ``kv_bytes`` are the bytes per number, ``block`` the tokens per page, ``batched_tokens`` the tokens of one step.
    Each draft token of a step needs a further recurrent state. The layers of ``drafts`` count as the model's own,
    on the last stage of a pipeline.
    """

    def token_bytes(attention: object) -> int:
        if isinstance(attention, Attention):
            return int(max(1, attention.kv_heads // tp) * attention.kv_values() // attention.kv_heads * kv_bytes)
        return int(shape.full.kv_values() * kv_bytes)

    if shape.linear_layers and isinstance(shape.full, Mla):
        block = max(block, LATENT_BLOCK)
    full_page = block * token_bytes(shape.full)
    counts: list[tuple[int, Group]] = []

    def stage(layers: int) -> int:
        return ceil(layers / pp)

    if shape.linear is not None and shape.linear_layers:
        # Attention pages grow until one holds a layer's whole state; states are padded to it.
        state = shape.linear.state_bytes(tp, drafts.tokens)
        block *= ceil(state / full_page)
        full_page = block * token_bytes(shape.full) if shape.full_layers or shape.sliding_layers else int(state)
        pages = MAMBA2_STATE_PAGES if isinstance(shape.linear, Mamba2) else STATE_PAGES
        counts.append((stage(shape.linear_layers), Group(block, None, state_pages=pages + drafts.tokens)))
    sliding = shape.sliding
    slide_block = block
    full_layers = shape.full_layers
    if sliding is not None and sliding.window is None:
        full_layers += shape.sliding_layers
    elif sliding is not None and shape.sliding_layers:
        slide = token_bytes(sliding)
        page = max(block * slide, full_page)
        slide_block, block = page // slide, page // token_bytes(shape.full)
        full_page = page
        counts.append((stage(shape.sliding_layers), Group(slide_block, sliding.window, chunked=sliding.chunked)))
    if full_layers:
        counts.append((stage(full_layers) + drafts.layers, Group(block, None)))
    fewest, most = min(count for count, _ in counts), max(count for count, _ in counts)
    size = most if most < fewest * 1.5 else fewest
    groups = tuple(group for count, group in counts for _ in range(ceil(count / size)))
    # The index of sparse attention is in the same group as the attention that reads it.
    index = ceil(block * shape.index_bytes_per_token / pp)
    return KvLayout(size * full_page + index, groups, batched_tokens)
