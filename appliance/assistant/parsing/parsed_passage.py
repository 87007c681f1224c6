"""A passage of a document, as the confined process sends it to the assistant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ParsedPassage:
    """A chunk of a document, ready for the index."""

    text: str
    section: str
    """Titles of the headings above it, and its pages."""
    indexed_text: str
    """The text for the embedder and the index: context and text."""
    terms: Mapping[str, int]
    """Terms of ``indexed_text`` with their number."""

    def as_json(self) -> dict[str, Any]:
        """Return the passage as the confined process sends it."""
        return {"text": self.text, "section": self.section, "indexed": self.indexed_text, "terms": dict(self.terms)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ParsedPassage:
        """Return the passage that the confined process sent."""
        return cls(str(found["text"]), str(found["section"]), str(found["indexed"]), dict(found["terms"]))
