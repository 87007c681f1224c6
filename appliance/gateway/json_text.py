"""Reads JSON as leniently as the engines do, and keeps the bytes of every value. Pure.

msgspec reads a body in microseconds and rejects some texts that Python's json accepts: ``NaN``, half a surrogate
pair, a float beyond the largest double. An engine accepts such a request, so the gateway must accept it, too. Each
function tries msgspec first and reads with the standard library's scanner after that. That scanner converts no
number, so neither its size nor its number of digits matters. A text that is nested too deeply for Python is
rejected: that depth is the recursion limit at least. Since Python 3.14 the size of the C stack limits it.

Every function raises :class:`InvalidRequestError` with the code ``invalid_json`` for a text that neither accepts.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from msgspec import Raw

from appliance.errors import InvalidRequestError

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_ARRAY = msgspec.json.Decoder(list[Raw])
_ANY = msgspec.json.Decoder()

_LENIENT = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
"""Leaves numbers as their text: ``int`` refuses more than 4,300 digits, and no number is needed."""

_SPACE = re.compile(r"[ \t\n\r]*")


def members(text: bytes | Raw) -> dict[str, Raw]:
    """Split a JSON object into its members; the last one of equal names counts, as in the engines' parsers."""
    try:
        return _OBJECT.decode(text)
    except msgspec.DecodeError:
        return _members(_text(text))
    except RecursionError:
        raise _too_deep() from None


def items(text: bytes | Raw) -> list[Raw]:
    """Split a JSON array into its items."""
    try:
        return _ARRAY.decode(text)
    except msgspec.DecodeError:
        return _items(_text(text))
    except RecursionError:
        raise _too_deep() from None


def value(text: bytes | Raw) -> Any:
    """Decode a JSON text to inspect its strings and its structure; a number may be returned as its text."""
    try:
        return _ANY.decode(text)
    except msgspec.DecodeError:
        return _value(_text(text))
    except RecursionError:
        raise _too_deep() from None


def numbers(text: bytes | Raw) -> Any:
    """Decode a short JSON text as Python's json does, with real numbers (``1e400`` becomes infinity)."""
    try:
        return json.loads(_text(text))
    except ValueError as error:
        raise _malformed(error) from None
    except RecursionError:
        raise _too_deep() from None


def is_string(text: bytes | Raw) -> bool:
    """Return whether a JSON text is a string."""
    return bytes(text)[:1] == b'"'


def join(table: dict[str, Raw]) -> bytes:
    """Write ``table`` as a JSON object; the bytes of its values stay as they are."""
    return b"{" + b",".join(_name(key) + b":" + bytes(raw) for key, raw in table.items()) + b"}"


def join_items(values: list[Raw]) -> bytes:
    """Write ``values`` as a JSON array; their bytes stay as they are."""
    return b"[" + b",".join(map(bytes, values)) + b"]"


def before(prefix: str, raw: Raw) -> Raw:
    """Put ``prefix`` in front of a JSON string without decoding it."""
    return Raw(msgspec.json.encode(prefix)[:-1] + bytes(raw)[1:])


def first_item(new: object, raw: Raw) -> Raw:
    """Put ``new`` in front of the items of a JSON array without decoding them."""
    rest = bytes(raw)[1:].lstrip()
    return Raw(b"[" + msgspec.json.encode(new) + (b"" if rest[:1] == b"]" else b",") + rest)


def _name(key: str) -> bytes:
    try:
        return msgspec.json.encode(key)
    except UnicodeEncodeError:
        # Half a surrogate pair in a member's name.
        return json.dumps(key).encode()


def _text(text: bytes | Raw) -> str:
    try:
        return str(bytes(text), "utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(error) from None


def _members(text: str) -> dict[str, Raw]:
    table: dict[str, Raw] = {}
    if text.lstrip(" \t\n\r")[:1] not in ("{", ""):
        _value(text)
        raise InvalidRequestError("The body is not a JSON object", code="invalid_json")
    at = _expect(text, 0, "{", "an object")
    if text[at : at + 1] == "}":
        _end(text, at + 1)
        return table
    while True:
        if text[at : at + 1] != '"':
            raise _missing("a name", at)
        key, at = _scan(text, at)
        at = _expect(text, at, ":", "a colon")
        _, end = _scan(text, at)
        table[key] = Raw(text[at:end].encode())
        at = _skip(text, end)
        if text[at : at + 1] == "}":
            _end(text, at + 1)
            return table
        at = _expect(text, at, ",", "a comma")


def _items(text: str) -> list[Raw]:
    found: list[Raw] = []
    at = _expect(text, 0, "[", "an array")
    if text[at : at + 1] == "]":
        _end(text, at + 1)
        return found
    while True:
        _, end = _scan(text, at)
        found.append(Raw(text[at:end].encode()))
        at = _skip(text, end)
        if text[at : at + 1] == "]":
            _end(text, at + 1)
            return found
        at = _expect(text, at, ",", "a comma")


def _value(text: str) -> Any:
    try:
        return _LENIENT.decode(text)
    except ValueError as error:
        raise _malformed(error) from None
    except RecursionError:
        raise _too_deep() from None


def _scan(text: str, at: int) -> tuple[Any, int]:
    """Return the value that begins at ``at``, and its end."""
    try:
        return _LENIENT.raw_decode(text, at)
    except ValueError as error:
        raise _malformed(error) from None
    except RecursionError:
        raise _too_deep() from None


def _expect(text: str, at: int, mark: str, missing: str) -> int:
    """Return the position after ``mark`` and the white space around it."""
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise _missing(missing, at)
    return _skip(text, at + 1)


def _end(text: str, at: int) -> None:
    if _skip(text, at) != len(text):
        raise InvalidRequestError(f"The body is not JSON: extra data (character {at})", code="invalid_json")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _missing(what: str, at: int) -> InvalidRequestError:
    return InvalidRequestError(f"The body is not JSON: {what} is missing at character {at}", code="invalid_json")


def _malformed(error: ValueError) -> InvalidRequestError:
    return InvalidRequestError(f"The body is not JSON: {error}", code="invalid_json")


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError("The body is nested too deeply", code="invalid_json")
