"""Normal forms and stems of single words, for Russian, English and words of other languages.

The stemmers are those of the Snowball project (Porter, "Snowball: A language for stemming algorithms", 2001). A
word in Cyrillic letters gets the Russian stemmer and a word in Latin letters the English one. Other words stay as
they are. The Python implementation is used even on machines that have the one in C, so that all machines share
one version.
"""

from __future__ import annotations

import enum
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version

from snowballstemmer.english_stemmer import EnglishStemmer
from snowballstemmer.russian_stemmer import RussianStemmer

ANALYSIS_VERSION = 1
"""The version of the rules in this module and in `terms.py`; a change requires new term indexes."""

MAX_LETTERS = 64
"""Letters of a stem that are kept: longer words are keys, digests or encoded data."""

_INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])
_HYPHENS = {0x2010: "-", 0x2011: "-", 0x2019: "'", 0x02BC: "'"}
_MARKS = re.compile("[\u0300-\u036f]")
_ACRONYMS = ("api", "cpu", "gpu", "llm", "npu", "pdf", "ssd", "tpu", "url", "vm", "vps")
_PLURALS = {f"{acronym}s": acronym for acronym in _ACRONYMS}
"""Plurals that the English stemmer keeps, because it sees no vowel before the last one."""

_LATIN = "aceopxyABCEHKMOPTX"
_CYRILLIC = "асеорхуАВСЕНКМОРТХ"
_TO_CYRILLIC = dict(zip(map(ord, _LATIN), _CYRILLIC, strict=True))
_TO_LATIN = dict(zip(map(ord, _CYRILLIC), _LATIN, strict=True))
"""Letters of the two alphabets that look the same."""


class Script(enum.Enum):
    """The alphabet of a character."""

    CYRILLIC = enum.auto()
    LATIN = enum.auto()
    DIGIT = enum.auto()
    OTHER = enum.auto()


def script_of(character: str) -> Script:
    """Return the alphabet of ``character``, a string of length 1."""
    if character.isdecimal():
        return Script.DIGIT
    code = ord(character)
    if code < 0x250 or 0x1E00 <= code < 0x1F00:
        return Script.LATIN if character.isalpha() else Script.OTHER
    return Script.CYRILLIC if 0x400 <= code < 0x530 else Script.OTHER


def main_script(counts: Mapping[str, int]) -> Script | None:
    """Return the alphabet of most of the words whose stems ``counts`` has; None without a letter."""
    sums: Counter[Script] = Counter()
    for stemmed, count in counts.items():
        if ":" not in stemmed:
            # Not the term of a date.
            sums[script_of(stemmed[0])] += count
    letters = [(sums[script], script) for script in (Script.CYRILLIC, Script.LATIN) if sums[script]]
    return max(letters, key=lambda one: one[0])[1] if letters else None


def analysis_version() -> str:
    """Return the version of the whole analysis, stemmers included.

    A store records it with its term counts. Counts of another version must be made again from the texts.
    """
    return f"{ANALYSIS_VERSION}/snowball-{version('snowballstemmer')}"


def normal_form(text: str) -> str:
    """Return ``text`` in compatibility form (NFKC), without invisible characters and stress marks.

    Case stays, because it separates the words of an identifier.
    """
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).translate(_HYPHENS)
    return _MARKS.sub("", text)


def one_script(word: str) -> str:
    """Return ``word`` with letters of the other alphabet replaced, if they are look-alikes typed by mistake.

    The word is changed if the minority has at most two letters or is scattered, and if each of its letters has a
    look-alike. `API` with a Cyrillic first letter becomes Latin. A compound such as "VPSка" stays.
    """
    if word.isascii():
        return word
    scripts = [script for script in map(script_of, word) if script in (Script.CYRILLIC, Script.LATIN)]
    latin = scripts.count(Script.LATIN)
    cyrillic = len(scripts) - latin
    if not latin or not cyrillic:
        return word
    changes = sum(one is not other for one, other in itertools.pairwise(scripts))
    if min(latin, cyrillic) > 2 and changes < 2:
        return word
    minority, table = (Script.LATIN, _TO_CYRILLIC) if latin <= cyrillic else (Script.CYRILLIC, _TO_LATIN)
    if any(script_of(letter) is minority and ord(letter) not in table for letter in word):
        return word
    return word.translate(table)


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Return the stem of ``word``, which has one script: lower case, ``ё`` as ``е``, no Latin accents.

    A number loses its leading zeros. Words of other scripts are returned in lower case.
    """
    word = word.lower()[:MAX_LETTERS]
    if not word:
        return word
    script = script_of(word[0])
    if script is Script.DIGIT:
        return word.lstrip("0") or "0"
    # A stemmer object holds the state of one word: each call makes its own, because threads share this function.
    if script is Script.CYRILLIC:
        # It reads ё as е.
        return str(RussianStemmer().stemWord(word))
    if script is Script.LATIN:
        plain = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
        return _PLURALS.get(plain) or str(EnglishStemmer().stemWord(plain))
    return word
