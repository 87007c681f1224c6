"""Reads text files that people write: configurations, key files, tokens, locks, catalogs.

Editors and shells write UTF-8 with or without a byte order mark, and some (Notepad, PowerShell's ``>``) write
UTF-16 with one. All of these are read. Any other encoding is rejected, with the file, the place and the fix. A
guess would turn a key or a model name into another one. Standard library only.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from appliance.errors import ConfigError, UsageError

MAX_BYTES = 16_000_000
"""Upper limit of a file in bytes. People do not write larger files by hand."""

MARK = "\ufeff"
"""The byte order mark as a character."""

_MARKS = (
    # UTF-32 first: its little-endian mark begins with the mark of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)

_KEY = re.compile(r"[!-~]+")


def read(
    path: Path,
    *,
    name: str | None = None,
    missing: str = "No such file or directory; check the path",
    folder: str = "name a file in it",
    what: str = "a text file",
    max_bytes: int = MAX_BYTES,
) -> str:
    """Return the text of ``path`` without a byte order mark.

    Errors begin with ``name`` (the path by default). ``missing`` is the error if the file does not exist,
    ``folder`` the fix if it is a folder, ``what`` the kind of file that has at most ``max_bytes``. Raises
    :class:`ConfigError` if the file cannot be read, is too large or has another encoding.
    """
    name = name or str(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ConfigError(f"{name}: {size} bytes; {what} has at most {max_bytes}: is it the right file?")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{name}: {missing}") from None
    except IsADirectoryError:
        raise ConfigError(f"{name}: is a folder; {folder}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror}); check its permissions") from None
    return decode(raw, name)


def decode(raw: bytes, name: str) -> str:
    """Return ``raw`` as text without a byte order mark; errors begin with ``name``.

    Raises :class:`ConfigError` with the line and the byte offset of the first invalid byte.
    """
    mark, codec, encoding = next((one for one in _MARKS if raw.startswith(one[0])), (b"", "utf-8", "UTF-8"))
    if not mark and b"\0" in raw:
        raise ConfigError(_with_zeros(raw, name))
    try:
        text = raw[len(mark) :].decode(codec)
    except UnicodeDecodeError as error:
        # The text before the invalid byte is complete in each of these encodings, so its lines can be counted.
        before = raw[len(mark) : len(mark) + error.start].decode(codec, "replace")
        line, offset = before.count("\n") + 1, len(mark) + error.start
        message = f"{name}: line {line} is not {encoding}; save the file as UTF-8"
        raise ConfigError(f"{message} (byte {offset} of the file is 0x{raw[offset]:02x})") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ConfigError(f"{name}: line {line} holds a NUL byte; save the file as plain text")
    return text.lstrip(MARK)


def _with_zeros(raw: bytes, name: str) -> str:
    """Return the error for text with NUL bytes and no mark: UTF-16 and UTF-32 look like that."""
    even, odd = raw[::2].count(0), raw[1::2].count(0)
    if len(raw) % 2 == 0 and max(even, odd) * 4 > len(raw):
        order = "little" if odd >= even else "big"
        return f"{name}: looks like UTF-16 ({order}-endian) without a byte order mark; save the file as UTF-8"
    line = raw[: raw.index(b"\0")].count(b"\n") + 1
    return f"{name}: line {line} holds a NUL byte; save the file as plain text"


def keys(path: Path, *, name: str | None = None) -> list[str]:
    """Return the keys in ``path``, separated by spaces or lines; errors begin with ``name`` (the path by default).

    Raises :class:`ConfigError` if the file cannot be read, :class:`UsageError` if a word in it cannot be a key. No
    message contains a part of a key.
    """
    name = name or str(path)
    text = read(path, name=name, missing="No such file or directory; write one key a line into it")
    return [
        key(word, f"{name}: line {number}")
        for number, line in enumerate(text.split("\n"), 1)
        for word in line.split()
        if word.strip(MARK)
    ]


def key(value: str, name: str) -> str:
    """Return ``value``, one key or token, without byte order marks and spaces around it; errors begin with
    ``name``.

    An empty value is returned as it is. Raises :class:`UsageError` if a character cannot be part of a key: HTTP
    headers carry printable ASCII only.
    """
    # A shell that fills a variable from a file keeps the mark. It becomes a character, or bytes that the locale's
    # encoding does not have.
    text = value.strip().removeprefix("\udcef\udcbb\udcbf").strip(MARK).strip()
    if not text or _KEY.fullmatch(text):
        return text
    if text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise UsageError(f"{name}: is UTF-16, of which a shell variable holds only a part; save the key as UTF-8")
    place = next(number for number, character in enumerate(text, 1) if not _KEY.fullmatch(character))
    code = ord(text[place - 1])
    shown = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
    raise UsageError(
        f"{name}: character {place} ({shown}) cannot be part of a key; copy the key again, as plain text"
    )
