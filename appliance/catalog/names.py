"""Names of cards, processors and models, compared regardless of case, punctuation and the vendor's words."""

from __future__ import annotations

VENDOR_WORDS = ("nvidia", "geforce", "edition", "generation")
"""Words of a card's name that do not distinguish it from another card."""


def normalise(name: str) -> str:
    """Return the letters and digits of ``name`` in lower case, without :data:`VENDOR_WORDS`."""
    name = name.lower()
    for word in VENDOR_WORDS:
        name = name.replace(word, " ")
    return "".join(letter for letter in name if letter.isalnum())
