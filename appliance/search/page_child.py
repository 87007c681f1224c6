"""The confined process that turns one page into text: ``python -m appliance.search.page_child ORDER``.

It reads the body from its standard input and writes one line of JSON: title and text, or a code and a message.
Before it parses, it confines itself (:mod:`appliance.parsing.confinement`).
"""

from __future__ import annotations

import codecs
import html
import json
import re
import sys
from dataclasses import asdict, dataclass

from appliance.parsing.confinement import load_encodings, parse_and_report, renounce_files
from appliance.parsing.documents import parse, parser_for
from appliance.parsing.file_type import Format, format_of
from appliance.parsing.limits import ParseLimits, UnusableFileError

MAX_TITLE = 200
"""Letters of a title."""
_TITLE = re.compile(r"<title\b[^>]{0,500}>([^<]{0,2000})", re.IGNORECASE)
_HEADING = re.compile(r"^#{1,3} (.{1,500})$", re.MULTILINE)
_SEARCHED = 1 << 18


@dataclass(frozen=True, slots=True)
class PageOrder:
    """The arguments of the process."""

    extension: str
    charset: str
    """The charset of the content type, or empty."""
    limits: ParseLimits

    def as_argument(self) -> str:
        """Return the order as one argument of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> PageOrder:
        """Return the order in ``text``."""
        found = json.loads(text)
        return cls(**{**found, "limits": ParseLimits(**found["limits"])})


def main() -> int:
    """Parse the page on standard input; return 0 if a result was written."""
    order = PageOrder.from_argument(sys.argv[1])
    return parse_and_report(order.limits, lambda content: page_text(order, content))


def page_text(order: PageOrder, content: bytes) -> dict[str, str]:
    """Return title and text of ``content``. Confines this process first.

    Raises :class:`UnusableFileError` if the page is empty, damaged, or not what its content type states.
    """
    content = _in_utf8(content, order)
    kind = format_of(content, order.extension)
    if (kind is Format.PDF) != (order.extension == "pdf") or kind is Format.DOCX:
        raise UnusableFileError("invalid_file", "The page is not what its content type states.")
    parser = parser_for(kind)
    load_encodings()
    renounce_files()
    text = parse(parser, content, order.extension, order.limits).text
    return {"title": _title(content, text) if kind is Format.HTML else "", "text": text}


def _in_utf8(content: bytes, order: PageOrder) -> bytes:
    """Return ``content`` as UTF-8 with a mark, which has precedence, if its charset is known."""
    if not order.charset or order.extension == "pdf" or content.startswith(codecs.BOM_UTF8):
        return content
    try:
        return codecs.BOM_UTF8 + content.decode(order.charset, "replace").encode("utf-8", "replace")
    except (LookupError, ValueError):
        # An unknown charset, or one that is not an encoding of text: the content decides.
        return content


def _title(content: bytes, text: str) -> str:
    found = _TITLE.search(content[:_SEARCHED].decode("utf-8", "replace"))
    title = html.unescape(found[1]) if found else ""
    if not title.strip():
        heading = _HEADING.search(text[:_SEARCHED])
        title = heading[1] if heading else ""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in title).split())[:MAX_TITLE]


if __name__ == "__main__":
    sys.exit(main())
