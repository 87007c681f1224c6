"""The anchors of the site's headings: those that GitHub makes, so that one link works in both places."""

from __future__ import annotations

from tools.manual import pages


def slug(heading: str, separator: str) -> str:
    """Return the anchor of ``heading``; the builder calls it, and ``separator`` is always a dash."""
    return pages.anchor(heading).replace(" ", separator)
