"""Reciprocal rank fusion of several rankings, with weights.

A key has the score ``sum of weight / (k + rank)`` over the rankings that contain it, with ranks from 1: Cormack,
Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR
2009.
The score is divided by its largest possible value: a key that is first in every ranking has 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.errors import InvalidRequestError

RANK_CONSTANT = 60
"""The paper's k: the larger, the less the first ranks dominate."""
_PARAM = "ranking_options.hybrid_search"


@dataclass(frozen=True, slots=True)
class HybridWeights:
    """Weights of the two kinds of ranking, as in OpenAI's `hybrid_search`; only their ratio matters."""

    embedding_weight: float = 1.0
    text_weight: float = 1.0

    def __post_init__(self) -> None:
        """Reject weights that are negative, not finite, or both zero.

        Raises:
            InvalidRequestError: With `param`, the field of the request.
        """
        for name in ("embedding_weight", "text_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidRequestError(
                    f"{name} is {value}; use a number of at least 0", param=f"{_PARAM}.{name}"
                )
        if self.embedding_weight == self.text_weight == 0:
            raise InvalidRequestError("both weights are 0; one must be greater than 0", param=_PARAM)


@dataclass(frozen=True, slots=True)
class FusedKey:
    """A key and its score, above 0 and at most 1."""

    key: str
    score: float


def fuse(rankings: Sequence[tuple[float, Sequence[str]]], *, rank_constant: int = RANK_CONSTANT) -> list[FusedKey]:
    """Return the keys of all rankings, best first; equal scores are ordered by key.

    Args:
        rankings: Weights, each at least 0, and distinct keys, best first. Their order has no effect.
        rank_constant: The k of the formula, at least 0.
    """
    # fsum rounds once, so that the order of the rankings does not change the last bit of a score.
    total = math.fsum(weight for weight, _ in rankings)
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for weight, keys in rankings:
        if weight > 0:
            for rank, key in enumerate(keys, 1):
                # The weight's share first: a tiny weight, divided by a rank, would be 0.
                shares[key].append(weight / total * (rank_constant + 1) / (rank_constant + rank))
    # A weight that has no share next to another one still ranks its keys, as the last ones.
    fused = [FusedKey(key, min(1.0, max(math.ulp(0.0), math.fsum(parts)))) for key, parts in shares.items()]
    return sorted(fused, key=lambda one: (-one.score, one.key))
