"""Words and their token costs, for prompts of a given size; :mod:`loadtests.tokenizer_probe` measures the costs.

Tokenizers of today's models split at spaces first, so a word with its space costs the same wherever it stands.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

_TEXT = """
about above across after again air almost along also always animal answer around ask away back base because
become been before began begin being below better between big bird black boat body book both box bring
building call came car care carry change children city class clear close cold color come common complete could
country course cover cross cut dark day deep differ direct distance does dog done door down draw dry during
each early earth ease east eat end enough even ever every example eye face fact family far farm fast father
feel feet few field figure fill final find fire first fish five fly follow food foot force form found four
free friend from front full game gave girl give gold good got govern great green ground group grow half hand
happen hard have head hear heat help here high hold home horse hot hour house hundred idea inch interest
island just keep kind king knew know land language large last late laugh lay lead learn leave left less letter
life light like line list listen little live long look love low machine made main make man many map mark mean
measure men might mile mind minute miss money moon more morning most mother mountain move much music must name
near need never new next night north note nothing notice noun number object often old once one only open order
other over own page paper part pass pattern people perhaps person picture piece place plain plan plane plant
play point port pose power press problem produce product pull put question quick rain ran reach read ready
real record red remember rest right river road rock room round rule run said same saw school science sea
second see seem self sentence serve set several shape she ship short should show side simple since sing size
sleep slow small snow some song soon sound south special spell stand star start state stay step still stood
stop story street strong study such sun sure surface table tail take talk teach tell ten test their them then
there these they thing think those though thought thousand through time together told took top toward town
travel tree true try turn two under unit until upon use usual very voice vowel wait walk want war warm watch
water way week weight well went were west what wheel when where which while white who whole why wind with
wonder wood word work world would write year young
"""

WORDS = tuple(_TEXT.split())
"""Common English words: most are one token in most vocabularies, and what they cost is asked for anyway."""


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """What words cost in tokens, and how the figure came about (``source``, for people)."""

    costs: dict[str, float] = field(default_factory=dict)
    default_cost: float = 1.3
    overhead: float = 8.0
    """Tokens that the chat template adds to a message with generation prompt."""
    code_signs: float = 12.0
    """Tokens of a function of :meth:`code` beside its seven words."""
    source: str = "estimated at 1.3 tokens a word: nothing was asked"

    def cost(self, word: str) -> float:
        """Tokens of ``word`` and the space before it."""
        return self.costs.get(word, self.default_cost)

    def text(self, rng: random.Random, tokens: int) -> str:
        """Words of about ``tokens`` tokens in all, at least one word."""
        words: list[str] = []
        left = float(tokens)
        while left >= 0.5 or not words:
            word = rng.choice(WORDS)
            cost = self.cost(word)
            if cost > left + 0.5 and words:
                # Too long for what is left: the cheapest word there is, a few times at most.
                word, cost = self.cheapest, self.cost(self.cheapest)
                if cost > left + 0.5:
                    break
            words.append(word)
            left -= cost
        return " ".join(words)

    def code(self, rng: random.Random, tokens: int) -> str:
        """The beginning of a Python file of about ``tokens`` tokens, which a completion shall go on with."""
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
        """A word that costs least."""
        return min(WORDS, key=self.cost)
