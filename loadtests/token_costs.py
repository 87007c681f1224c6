"""Words and their token costs, for prompts of a given size; :mod:`loadtests.tokenizer_probe` measures the costs.

Tokenizers of current models split at spaces first, so a word with its space costs the same at any place.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())
"""Common English words: most are one token in most vocabularies. The costs are measured in any case."""


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """Costs of words in tokens; ``source`` describes the origin of the figures."""

    costs: dict[str, float] = field(default_factory=dict)
    default_cost: float = 1.3
    overhead: float = 8.0
    """Tokens that the chat template adds to a message with generation prompt."""
    code_signs: float = 12.0
    """Tokens of a function in :meth:`code` without its seven words."""
    source: str = "estimated at 1.3 tokens a word: not measured"

    def cost(self, word: str) -> float:
        """Return the tokens of ``word`` and the space before it."""
        return self.costs.get(word, self.default_cost)

    def text(self, rng: random.Random, tokens: int) -> str:
        """Return words of about ``tokens`` tokens in total, at least one word."""
        words: list[str] = []
        left = float(tokens)
        while left >= 0.5 or not words:
            word = rng.choice(WORDS)
            cost = self.cost(word)
            if cost > left + 0.5 and words:
                # The word is too long for the rest: use the cheapest word, a few times at most.
                word, cost = self.cheapest, self.cost(self.cheapest)
                if cost > left + 0.5:
                    break
            words.append(word)
            left -= cost
        return " ".join(words)

    def code(self, rng: random.Random, tokens: int) -> str:
        """Return the beginning of a Python file of about ``tokens`` tokens, to be completed."""
        lines = []
        left = float(tokens)
        while left > 0:
            one, two, three = (rng.choice(WORDS) for _ in range(3))
            lines.append(f"def {one}_{two}({three}):\n    return {two} + {three} * {rng.randrange(100)}\n")
            left -= (
                sum(self.cost(word) for word in (one, two, three, two, three, "def", "return")) + self.code_signs
            )
        return "\n".join(lines) + f"\ndef {rng.choice(WORDS)}_"

    @property
    def cheapest(self) -> str:
        """The word with the lowest cost."""
        return min(WORDS, key=self.cost)
