"""The terms of a text: what the BM25 index stores and what a query looks up, by the same function.

A compound is a run of words joined by punctuation or by case: `max_model_len`, `--max-model-len`, `maxModelLen`,
`etc/appliance`, "бизнес-план", `qwen3`. It gives the stem of each of its words and one term for the whole. The
three spellings of the flag give the same whole term. A number gives its digits whether or not thousands are
grouped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import resources

from appliance.assistant.retrieval.date_terms import date_terms
from appliance.assistant.retrieval.language import Script, normal_form, one_script, script_of, stem

MAX_PARTS = 4
"""Parts by case and digits that a word may have; a word with more is a digest and stays whole."""
MAX_COMPOUND = 200
"""Letters of a compound that gets a whole term."""

_COMPOUND = re.compile(r"[^\W_]+(?:[._/\\:@+\-'&]+[^\W_]+)*(?:\+\+|#)?")
_JOINTS = re.compile(r"[\W_]+")
_CLITIC = re.compile(r"(?<=[A-Za-z])'(?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE)
_GROUPED = re.compile(r"(?<![\w.,])[1-9][0-9]{0,2}([ ,.'])[0-9]{3}(?:\1[0-9]{3})*(?!\w|[,.][0-9])")
_DECIMAL = re.compile(r"(?<![\w.,])([0-9]{1,9}),([0-9]{1,9})(?!\w|[,.][0-9])")


def terms(text: str) -> list[str]:
    """Return the terms of ``text`` in their order; whole compounds, numbers and dates included."""
    text = without_clitics(text)
    found = [term for match in _COMPOUND.finditer(text) for term in compound_terms(match[0])]
    if any(map(str.isdecimal, text)):
        found += _number_terms(text)
        found += date_terms(text)
    return found


def without_clitics(text: str) -> str:
    """Return ``text`` in its normal form, without English endings such as `'s`: the text that has the terms."""
    return _CLITIC.sub("", normal_form(text))


def term_counts(text: str) -> Counter[str]:
    """Return how often each term occurs in ``text``."""
    return Counter(terms(text))


def query_terms(text: str) -> list[str]:
    """Return the distinct terms of a query, sorted, without function words unless it has nothing else."""
    found = set(terms(text))
    return sorted(found - FUNCTION_TERMS or found)


@lru_cache(maxsize=65_536)
def compound_terms(compound: str) -> tuple[str, ...]:
    """Return the stems of the words of ``compound``; then one term for the whole if it has several."""
    sign = next((sign for sign in ("++", "#") if compound.endswith(sign)), "")
    words = [one_script(word) for word in _JOINTS.split(compound) if word]
    stems = [stem(part) for word in words for part in _parts(word)]
    if sign:
        stems[-1] += sign
    if len(stems) == 1 or len(compound) > MAX_COMPOUND:
        return tuple(stems)
    return (*stems, "_".join(stems))


def _parts(word: str) -> list[str]:
    """Return the parts of ``word``, split at changes of case, of script and between letters and digits."""
    if word in ("1C", "1c", "1С", "1с"):
        return ["1с"]
    if word.isalpha() and (word.islower() or word.istitle() or word.isupper()) and len(set(_scripts(word))) == 1:
        return [word]
    if len(word) > 2 and word[-1] == "s" and word[:-1].isupper() and word[:-1].isalpha():
        return [word[:-1]]
    starts = [0]
    for at in range(1, len(word)):
        one, two, three = word[at - 1], word[at], word[at + 1 : at + 2]
        if (
            script_of(one) is not script_of(two)
            or (one.islower() and two.isupper())
            or (one.isupper() and two.isupper() and three.islower() and script_of(two) is script_of(three))
        ):
            starts.append(at)
    if len(starts) > MAX_PARTS and any(map(str.isdecimal, word)):
        return [word]
    return [word[start:end] for start, end in zip(starts, [*starts[1:], len(word)], strict=True)]


def _scripts(word: str) -> Iterable[Script]:
    return (Script.LATIN,) if word.isascii() else map(script_of, word)


def _number_terms(text: str) -> Iterator[str]:
    """Yield `12500` for numbers with grouped thousands, and `16_4` for one with a decimal comma."""
    for match in _GROUPED.finditer(text):
        yield re.sub(r"[^0-9]", "", match[0])
    for match in _DECIMAL.finditer(text):
        yield f"{stem(match[1])}_{stem(match[2])}"


def _function_terms() -> frozenset[str]:
    text = (resources.files(__package__) / "function_words.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return frozenset(term for line in lines for term in terms(line))


FUNCTION_TERMS = _function_terms()
"""The stems of words that carry no content; the index has them, a query omits them."""
