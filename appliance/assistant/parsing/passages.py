"""The passages of a document: its chunks with their sections and their terms."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from appliance.assistant.parsing.parsed_passage import ParsedPassage
from appliance.assistant.retrieval.chunking import Chunk, ChunkSettings, chunk_markdown
from appliance.assistant.retrieval.terms import term_counts
from appliance.parsing.documents import ParsedDocument


def count_tokens(text: str) -> int:
    """Return an upper estimate of the tokens of ``text``: 4 bytes of UTF-8 a token.

    That is 4 Latin or 2 Cyrillic letters; Qwen's tokenizers need about as many for English and fewer for Russian.
    """
    return (len(text.encode("utf-8", "replace")) + 3) // 4


def passages_of(document: ParsedDocument, settings: ChunkSettings) -> Iterator[ParsedPassage]:
    """Yield the passages of ``document`` in their order."""
    for chunk in chunk_markdown(document.text, settings, count_tokens):
        yield ParsedPassage(
            text=chunk.text,
            section=section_of(chunk, document),
            indexed_text=chunk.indexed_text,
            terms=term_counts(chunk.indexed_text),
        )


def section_of(chunk: Chunk, document: ParsedDocument) -> str:
    """Return the headings above ``chunk`` and its pages, such as `Manual > Setup, pages 3-4`."""
    headings = " > ".join(chunk.headings)
    if not document.pages:
        return headings
    first = bisect.bisect_right(document.pages, chunk.start)
    last = max(first, bisect.bisect_left(document.pages, chunk.end))
    pages = f"page {first}" if first == last else f"pages {first}-{last}"
    return f"{headings}, {pages}" if headings else pages
