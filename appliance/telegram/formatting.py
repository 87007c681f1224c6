"""Text with Telegram's entities, from Markdown. Pure.

Offsets and lengths count UTF-16 code units, as the Bot API does. Entities need no escaping, so markup in a text
that is not Markdown, such as a name, has no effect. Tables become preformatted text, headings become bold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

from markdown_it import MarkdownIt
from markdown_it.token import Token

INLINE = {"strong": "bold", "em": "italic", "s": "strikethrough"}
"""Kinds of entities by the names of Markdown's inline tokens."""

LINKS = ("http://", "https://", "mailto:", "tg://")
"""Beginnings of addresses that become links; the text of any other link stays plain."""

LANGUAGE_LENGTH = 40
BULLET = "• "
RULE = "———"

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


@dataclass(frozen=True, slots=True)
class TextEntity:
    """A formatted range; ``offset`` and ``length`` in UTF-16 units, ``kind`` as the Bot API names it."""

    kind: str
    offset: int
    length: int
    url: str | None = None
    language: str | None = None

    @property
    def end(self) -> int:
        """The offset after its last unit."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class FormattedText:
    """A text and its entities, in the order of their offsets."""

    text: str
    entities: tuple[TextEntity, ...] = ()

    @property
    def units(self) -> int:
        """Its length in UTF-16 units."""
        return utf16_units(self.text)


def utf16_units(text: str) -> int:
    """Return the length of ``text`` in UTF-16 units."""
    return len(text) + sum(character > "\uffff" for character in text)


def plain(text: str) -> FormattedText:
    """Return ``text`` without entities."""
    return FormattedText(text)


def from_markdown(source: str) -> FormattedText:
    """Return the Markdown ``source`` as text with entities. Raw HTML stays as text."""
    writer = _Writer()
    writer.blocks(_PARSER.parse(source))
    return writer.finish()


class _Writer:
    """Builds a text from the tokens of a parser."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._units = 0
        self._entities: list[TextEntity] = []
        self._open: list[tuple[str, int, str | None]] = []
        self._lists: list[int | None] = []
        """Number of the next item of each open list; ``None`` for one with bullets."""
        self._marker = ""
        """Marker of a list item whose text has not begun."""
        self._gap = ""
        self._rows: list[list[str]] | None = None

    def finish(self) -> FormattedText:
        text = "".join(self._parts)
        entities = (one for one in self._entities if one.length > 0)
        return FormattedText(text, tuple(sorted(entities, key=lambda one: (one.offset, -one.length))))

    def blocks(self, tokens: Sequence[Token]) -> None:
        for token in tokens:
            self._block(token)

    def _block(self, token: Token) -> None:
        kind = token.type
        if kind == "inline":
            if self._rows is not None:
                self._rows[-1].append(_cell(token))
            else:
                self._begin_block()
                self._inline(token.children or ())
        elif kind in ("fence", "code_block"):
            self._begin_block()
            language = token.info.split(maxsplit=1)[0][:LANGUAGE_LENGTH] if token.info.strip() else None
            self._preformatted(token.content.removesuffix("\n"), language)
            self._gap = "\n\n"
        elif kind == "hr":
            self._begin_block()
            self._write(RULE)
            self._gap = "\n\n"
        elif kind == "html_block":
            self._begin_block()
            self._write(token.content.rstrip("\n"))
            self._gap = "\n\n"
        elif kind in ("table_open", "tr_open", "table_close"):
            self._table(kind)
        else:
            self._structure(kind, token)

    def _structure(self, kind: str, token: Token) -> None:
        """Begin or end a paragraph, a heading, a list or a quotation."""
        if kind == "heading_open":
            self._begin_block()
            self._begin("bold")
        elif kind == "heading_close":
            self._end()
            self._gap = "\n\n"
        elif kind == "paragraph_close":
            self._gap = "\n" if token.hidden else "\n\n"
        elif kind == "bullet_list_open":
            self._lists.append(None)
        elif kind == "ordered_list_open":
            self._lists.append(int(token.attrGet("start") or 1))
        elif kind in ("bullet_list_close", "ordered_list_close"):
            self._lists.pop()
            self._gap = "\n" if self._lists else "\n\n"
        elif kind == "list_item_open":
            self._marker = self._next_marker()
            self._gap = "\n" if self._gap and self._parts else self._gap
        elif kind == "list_item_close" and self._marker:
            self._begin_block()
            self._gap = "\n"
        elif kind == "blockquote_open":
            self._begin_block()
            self._begin("blockquote")
        elif kind == "blockquote_close":
            self._end()
            self._gap = "\n\n"

    def _table(self, kind: str) -> None:
        if kind == "table_open":
            self._rows = []
        elif kind == "tr_open" and self._rows is not None:
            self._rows.append([])
        elif kind == "table_close" and self._rows is not None:
            rows, self._rows = self._rows, None
            self._begin_block()
            self._preformatted(aligned(rows), None)
            self._gap = "\n\n"

    def _next_marker(self) -> str:
        number = self._lists[-1]
        indent = "  " * (len(self._lists) - 1)
        if number is None:
            return indent + BULLET
        self._lists[-1] = number + 1
        return f"{indent}{number}. "

    def _begin_block(self) -> None:
        """Write the gap to the block before, and the marker of a list item that begins."""
        gap, self._gap = self._gap, ""
        if self._parts:
            self._write(gap)
        marker, self._marker = self._marker, ""
        if marker:
            self._write(marker)

    def _inline(self, tokens: Sequence[Token]) -> None:
        for token in tokens:
            name, _, side = token.type.rpartition("_")
            if token.type in ("softbreak", "hardbreak"):
                self._write("\n")
            elif token.type == "code_inline":
                self._begin("code")
                self._write(token.content)
                self._end()
            elif token.type == "image":
                self._begin("text_link", _address(token.attrGet("src")))
                self._write(token.content or str(token.attrGet("src") or ""))
                self._end()
            elif name in INLINE and side == "open":
                self._begin(INLINE[name])
            elif name == "link" and side == "open":
                self._begin("text_link", _address(token.attrGet("href")))
            elif side == "close":
                self._end()
            else:
                self._write(token.content)

    def _preformatted(self, text: str, language: str | None) -> None:
        start = self._units
        self._write(text)
        self._entities.append(TextEntity("pre", start, self._units - start, language=language))

    def _begin(self, kind: str, url: str | None = None) -> None:
        self._open.append((kind, self._units, url))

    def _end(self) -> None:
        kind, start, url = self._open.pop()
        if kind != "text_link" or url:
            self._entities.append(TextEntity(kind, start, self._units - start, url=url))

    def _write(self, text: str) -> None:
        if text:
            self._parts.append(text)
            self._units += utf16_units(text)


def _address(found: str | int | float | None) -> str | None:
    text = str(found or "")
    return text if text.lower().startswith(LINKS) else None


def _cell(token: Token) -> str:
    """Return the plain text of a table's cell."""
    kinds = ("text", "code_inline", "image")
    return "".join(
        child.content if child.type in kinds else " " if child.type.endswith("break") else ""
        for child in token.children or ()
    ).strip()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text: columns of equal width, and a line below the first row."""
    columns = max(map(len, rows), default=0)
    filled = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(_width(row[column]) for row in filled) for column in range(columns)]
    lines = [
        " | ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in filled
    ]
    return "\n".join([*lines[:1], "-+-".join("-" * width for width in widths), *lines[1:]])


def _width(text: str) -> int:
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
