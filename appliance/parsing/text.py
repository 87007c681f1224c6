"""Decodes text files: Unicode, and the single-byte encodings of Russian and Western files.

1. A byte order mark decides.
2. Bytes that are valid UTF-8 are UTF-8.
3. Otherwise the bytes above 127 decide. In Russian text most of them follow another one, because words consist of
   them; accents of Western languages are single. Western text is cp1252.
4. Russian text is mostly lower case. The encoding with the most bytes of lower-case letters wins, cp1251 in doubt.
   These bytes are 0xE0 to 0xFF in cp1251 and 0xC0 to 0xDF in KOI8-R. Those of cp866 are 0xA0 to 0xAF and 0xE0 to
   0xEF.
"""

from __future__ import annotations

import codecs
import re

from appliance.parsing.limits import UnusableFileError

ENCODINGS = ("utf-8-sig", "utf-16", "utf-32", "cp1251", "koi8-r", "cp866", "cp1252")
"""The encodings that :func:`decode` uses."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HIGH = re.compile(rb"[\x80-\xff]+")
_SAMPLE = 1 << 20


def decode(content: bytes) -> str:
    """Return ``content`` as text with ``\\n`` as line end.

    Raises:
        UnusableFileError: The content is binary.
    """
    return _decoded(content).replace("\r\n", "\n").replace("\r", "\n")


def _decoded(content: bytes) -> str:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError:
                raise UnusableFileError(
                    "invalid_file", f"The file begins as {encoding} text, but is damaged."
                ) from None
    if b"\x00" in content:
        raise UnusableFileError("invalid_file", "The file is not text; save text as UTF-8.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode(single_byte_encoding(content), "replace")


def single_byte_encoding(content: bytes) -> str:
    """Return the likely encoding of ``content``, which is not UTF-8."""
    runs = _HIGH.findall(content[:_SAMPLE])
    high = b"".join(runs)
    in_words = sum(len(run) for run in runs if len(run) > 1)
    if in_words * 2 < len(high):
        return "cp1252"
    lower = {
        "cp1251": sum(byte >= 0xE0 for byte in high),
        "koi8-r": sum(0xC0 <= byte < 0xE0 for byte in high),
        "cp866": sum(0xA0 <= byte < 0xB0 or 0xE0 <= byte < 0xF0 for byte in high),
    }
    # 0xE0 to 0xEF are letters of cp1251 as well: text without 0xA0 to 0xAF is not cp866.
    if sum(0xA0 <= byte < 0xB0 for byte in high) * 4 < len(high):
        lower["cp866"] = 0
    return max(lower, key=lambda name: lower[name])
