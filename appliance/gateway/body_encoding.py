"""Decodes a body, compression first and then text, so that all later steps read UTF-8. Pure.

An editor sends zstd, a proxy gzip, a Windows program UTF-16 or a byte order mark; engines read only the last two.
The limit of a body's size applies on the wire and after each step, so a small upload cannot fill the memory.
"""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Callable

import zstandard

from appliance.errors import BodyTooLargeError, InvalidRequestError, UnsupportedMediaTypeError

PLAIN = frozenset({b'{"', b"{\n", b"{\r", b"{ ", b"{\t"})
"""First two bytes of a JSON object in UTF-8: no other text encoding begins so."""

IDENTITY = frozenset({"", "identity", "utf-8", "utf8"})
"""Content codings that change nothing. A charset is not a content coding, but clients send it."""

ACCEPTED = "gzip, deflate, zstd, identity"

STEP = 64 * 1024
"""Bytes of compressed data per step, so that the rest of a large body is not copied for each member."""

MAX_MEMBERS = 1000
"""Most members of a gzip body, or frames of a zstd body: each costs time, even an empty one of 20 bytes."""

ZSTD_WINDOW = 8 * 2**20
"""Window in bytes that every decoder of this content coding supports, and no encoder exceeds (RFC 9659)."""


def decoded(body: bytes, content_encoding: bytes | None, limit: int) -> bytes:
    """Return ``body`` without its content coding and in UTF-8.

    ``content_encoding`` is the header's value, ``limit`` the largest body in bytes. A body that needs no change is
    returned unchanged, after one comparison.

    Raises :class:`UnsupportedMediaTypeError` for other content codings, or several; :class:`InvalidRequestError`
    for data that is incomplete or has another coding; :class:`BodyTooLargeError` over ``limit``.
    """
    if content_encoding is not None:
        body = expanded(body, content_encoding, limit)
    return body if body[:2] in PLAIN else _in_utf8(body, limit)


def expanded(body: bytes, content_encoding: bytes, limit: int) -> bytes:
    """Return ``body`` without its content coding; arguments and errors as in :func:`decoded`."""
    layers = [part.strip().lower() for part in content_encoding.decode("latin1").split(",")]
    codings = [layer for layer in layers if layer not in IDENTITY]
    if not codings:
        return body
    expand = _CODINGS.get(codings[0])
    if expand is None or len(codings) > 1:
        raise UnsupportedMediaTypeError(
            f"Content-Encoding is {', '.join(layers)[:80]!r}; send one of {ACCEPTED}, or no encoding"
        )
    return expand(body, limit)


def _gzip(body: bytes, limit: int) -> bytes:
    return _inflate(body, limit, name="gzip", wbits=zlib.MAX_WBITS | 16, most=MAX_MEMBERS)


def _deflate(body: bytes, limit: int) -> bytes:
    """The coding means zlib's format (RFC 9110, 8.4.1.2); some clients send the raw data without its header."""
    wrapped = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return _inflate(body, limit, name="deflate", wbits=zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS, most=1)


def _inflate(body: bytes, limit: int, *, name: str, wbits: int, most: int) -> bytes:
    data, position, left = memoryview(body), 0, limit
    pieces: list[bytes] = []
    for _ in range(most):
        member = zlib.decompressobj(wbits)
        while not member.eof:
            if position == len(data):
                raise _broken(name, "the data ends too early")
            step = data[position : position + STEP]
            try:
                # One byte over the limit is enough to see that there is more.
                piece = member.decompress(step, left + 1)
            except zlib.error as error:
                raise _broken(name, str(error)) from None
            left -= len(piece)
            if left < 0:
                raise _too_large(limit)
            pieces.append(piece)
            position += len(step) - len(member.unused_data) - len(member.unconsumed_tail)
        if position == len(data):
            return b"".join(pieces)
    raise _broken(name, f"further data follows after {most} member{'s' * (most > 1)}")


def _zstd(body: bytes, limit: int) -> bytes:
    """Two passes: the first one measures in a bounded buffer, the second one checks that each frame is whole.

    zstandard has no object that does both: its reader hides a missing end, its other object bounds no output.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=max(ZSTD_WINDOW, limit))
    try:
        if zstandard.frame_content_size(body) > limit:
            raise _too_large(limit)
        _measure(decompressor, body, limit)
        return _frames(decompressor, body)
    except zstandard.ZstdError as error:
        raise _broken("zstd", str(error)) from None


def _measure(decompressor: zstandard.ZstdDecompressor, body: bytes, limit: int) -> None:
    buffer = bytearray(min(STEP, limit + 1))
    left = limit
    with decompressor.stream_reader(body, read_across_frames=True) as reader:
        while count := reader.readinto(buffer):
            left -= count
            if left < 0:
                raise _too_large(limit)


def _frames(decompressor: zstandard.ZstdDecompressor, body: bytes) -> bytes:
    data, position = memoryview(body), 0
    pieces: list[bytes] = []
    for _ in range(MAX_MEMBERS):
        frame = decompressor.decompressobj()
        while not frame.eof:
            if position == len(data):
                raise _broken("zstd", "the data ends too early")
            step = data[position : position + STEP]
            pieces.append(frame.decompress(step))
            position += len(step) - len(frame.unused_data)
        if position == len(data):
            return b"".join(pieces)
    raise _broken("zstd", f"further data follows after {MAX_MEMBERS} frames")


_CODINGS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}


def _in_utf8(body: bytes, limit: int) -> bytes:
    encoding = json.detect_encoding(body)
    if encoding == "utf-8":
        return body
    if encoding == "utf-8-sig":
        return body[len(codecs.BOM_UTF8) :]
    try:
        body = body.decode(encoding).encode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"The body begins as {encoding[:6].upper()} and is not valid: {error.reason} at byte {error.start}; "
            "send JSON in UTF-8",
            code="invalid_json",
        ) from None
    if len(body) > limit:
        raise BodyTooLargeError(f"The body is over the limit of {limit} bytes in UTF-8")
    return body


def _broken(name: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The body is not {name} as its Content-Encoding states: {why}", code="invalid_encoding"
    )


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body is over the limit of {limit} bytes after expansion")
