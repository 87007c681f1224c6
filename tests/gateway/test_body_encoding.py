"""A body's encodings: each is decoded exactly or rejected by name, within the limit of memory."""

from __future__ import annotations

import codecs
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BodyTooLargeError, InvalidRequestError, UnsupportedMediaTypeError
from appliance.gateway import body_encoding
from appliance.gateway.body_encoding import MAX_MEMBERS, PLAIN, decoded

LIMIT = 2**20
JSON = json.dumps({"model": "fake", "text": "Grüße, 你好 👋" * 40}, ensure_ascii=False).encode()
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def flushed(data: bytes, wbits: int) -> bytes:
    """Return ``data`` in blocks of a few bytes, as from a client that streams its body."""
    stream = zlib.compressobj(wbits=wbits)
    parts = [stream.compress(data[i : i + 7]) + stream.flush(zlib.Z_SYNC_FLUSH) for i in range(0, len(data), 7)]
    return b"".join(parts) + stream.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def zstd_streamed(data: bytes) -> bytes:
    """Return a frame without its size and with a checksum."""
    return zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(data)


ENCODERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "x-gzip": (b"x-gzip", gzip.compress),
    "upper case": (b" GZip ", gzip.compress),
    "gzip in blocks": (b"gzip", lambda data: flushed(data, zlib.MAX_WBITS | 16)),
    "zlib": (b"deflate", zlib.compress),
    "zlib, uncompressed": (b"deflate", lambda data: zlib.compress(data, 0)),
    "zlib in blocks": (b"deflate", lambda data: flushed(data, zlib.MAX_WBITS)),
    "raw deflate": (b"Deflate", raw_deflate),
    "zstd": (b"zstd", zstd),
    "zstd streamed": (b"ZSTD", zstd_streamed),
    "gzip and identity": (b"identity, gzip", gzip.compress),
    "identity and zstd": (b"zstd,identity", zstd),
    "identity": (b"identity", bytes),
    "no coding": (b"", bytes),
    "a charset": (b"UTF-8", bytes),
}
COMPRESSED = {name: found for name, found in ENCODERS.items() if found[1] is not bytes}
MANY = {name: found for name, found in COMPRESSED.items() if "deflate" not in found[0].decode().lower()}


@given(st.binary(max_size=3000), st.sampled_from(list(ENCODERS)), st.integers(1, 200))
def test_each_encoding_is_decoded_exactly(data: bytes, name: str, step: int) -> None:
    header, encode = ENCODERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_encoding, "STEP", step)
        assert decoded(encode(b'{"' + data), header, LIMIT) == b'{"' + data


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=6), st.sampled_from(list(MANY)), st.integers(1, 90))
def test_several_members_are_one_body(parts: list[bytes], name: str, step: int) -> None:
    header, encode = MANY[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_encoding, "STEP", step)
        assert decoded(b"".join(encode(part) for part in [b'{"', *parts]), header, LIMIT) == b'{"' + b"".join(parts)


def test_frames_of_zstd_without_data_are_skipped() -> None:
    assert decoded(SKIPPABLE + zstd(b"") + zstd(JSON) + SKIPPABLE, b"zstd", LIMIT) == JSON


@pytest.mark.parametrize("name", COMPRESSED)
def test_truncated_data_names_its_encoding(name: str) -> None:
    header, encode = COMPRESSED[name]
    whole = encode(JSON)
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        with pytest.raises(InvalidRequestError, match=r"The body is not (gzip|deflate|zstd) as") as caught:
            decoded(whole[:length], header, LIMIT)
        assert (caught.value.status, caught.value.code) == (400, "invalid_encoding")


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("tail", [b"\0", b"garbage", b"{}" * 40_000])
def test_data_after_the_end_is_rejected(name: str, tail: bytes) -> None:
    header, encode = COMPRESSED[name]
    with pytest.raises(InvalidRequestError, match="as its Content-Encoding states"):
        decoded(encode(JSON) + tail, header, LIMIT)


@pytest.mark.parametrize("name", COMPRESSED)
def test_data_in_another_encoding_is_rejected(name: str) -> None:
    header, encode = COMPRESSED[name]
    others = [
        other for other_header, other in COMPRESSED.values() if other_header.strip().lower() not in header.lower()
    ]
    for body in (JSON, b"", *(other(JSON) for other in others if other(JSON) != encode(JSON))):
        if body[:2] != encode(JSON)[:2]:
            with pytest.raises(InvalidRequestError, match="as its Content-Encoding states"):
                decoded(body, header, LIMIT)


@pytest.mark.parametrize(
    "header", [b"br", b"compress", b"gzip, gzip", b"gzip, zstd", b"zstd;q=1", b"aws-chunked", b"\xff", b"x" * 9000]
)
def test_other_encodings_are_rejected_with_those_accepted(header: bytes) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="gzip, deflate, zstd, identity") as caught:
        decoded(gzip.compress(gzip.compress(JSON)), header, LIMIT)
    assert caught.value.status == 415
    assert "Content-Encoding" in str(caught.value)
    assert header.decode("latin1")[:80].strip("\xff") in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_limit_is_exact(name: str) -> None:
    header, encode = COMPRESSED[name]
    for size in (len(JSON), 1, 70_000):
        data = b'{"' + bytes(size - 2) if size > 1 else b"["
        assert decoded(encode(data), header, size) == data
        with pytest.raises(BodyTooLargeError, match="after expansion"):
            decoded(encode(data), header, size - 1)


@pytest.mark.parametrize(
    "name", [name for name in COMPRESSED if "uncompressed" not in name and "blocks" not in name]
)
@pytest.mark.parametrize("before", [b"", b"a" * 10])
def test_a_bomb_uses_memory_up_to_the_limit(name: str, before: bytes) -> None:
    header, encode = COMPRESSED[name]
    several = before and name in MANY
    bomb = (encode(before) * 5 if several else b"") + encode(bytes(16 * 2**20))
    assert len(bomb) < 2**15
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError, match="over the limit of 1048576 bytes after expansion"):
            decoded(bomb, header, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * LIMIT, "the pieces of the body, and once the whole"


def test_a_bomb_inside_a_bomb_is_expanded_once() -> None:
    inner = gzip.compress(bytes(16 * 2**20))
    assert decoded(gzip.compress(inner), b"gzip", LIMIT) == inner


@pytest.mark.parametrize("name", MANY)
def test_members_without_data_have_a_bound(name: str) -> None:
    header, encode = MANY[name]
    assert decoded(encode(b"") * (MAX_MEMBERS - 1) + encode(JSON), header, LIMIT) == JSON
    with pytest.raises(InvalidRequestError, match="further data follows after 1000"):
        decoded(encode(b"") * MAX_MEMBERS + encode(JSON), header, LIMIT)


def test_a_window_over_the_limit_and_over_the_standards_is_rejected() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24, write_content_size=0)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = stream.compress(JSON) + stream.flush()
    with pytest.raises(InvalidRequestError, match=r"not zstd as .* memory"):
        decoded(body, b"zstd", LIMIT)


def test_a_frame_with_a_size_over_the_limit_is_too_large_with_any_window() -> None:
    """The highest levels need a window as large as the data, which the decoder would reject because of its
    memory."""
    with pytest.raises(BodyTooLargeError, match="after expansion"):
        decoded(zstandard.ZstdCompressor(level=22).compress(bytes(9 * 2**20)), b"zstd", LIMIT)
    body = b'{"' + bytes(9 * 2**20)
    assert decoded(zstandard.ZstdCompressor(level=22).compress(body), b"zstd", 16 * 2**20) == body


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([None, b"gzip", b"deflate", b"zstd", b"identity"]), st.booleans())
def test_any_bytes_are_decoded_or_rejected(body: bytes, header: bytes | None, real: bool) -> None:
    """The bytes may begin like the encoding."""
    start = {b"gzip": gzip.compress(JSON), b"zstd": zstd_streamed(JSON), b"deflate": zlib.compress(JSON)}
    if real and header in start:
        body = start[header][: len(body)] + body
    try:
        assert len(decoded(body, header, 1000)) <= 1000
    except (InvalidRequestError, BodyTooLargeError):
        return


# Text.


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("first", ["", "\n", " \t"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
        (b"", "utf-16-le"),
        (b"", "utf-16-be"),
        (b"", "utf-32-le"),
        (b"", "utf-32-be"),
        (b"", "utf-8"),
    ],
)
def test_every_text_encoding_that_json_has_becomes_utf_8(
    mark: bytes, encoding: str, first: str, indent: int | None
) -> None:
    text = first + json.dumps(json.loads(JSON), ensure_ascii=False, indent=indent)
    body = mark + text.encode(encoding)
    assert decoded(body, None, LIMIT) == text.encode()
    assert decoded(gzip.compress(body), b"gzip", LIMIT) == text.encode()


@given(st.binary(max_size=40))
def test_plain_utf_8_is_returned_as_the_same_object(tail: bytes) -> None:
    for start in PLAIN:
        body = start + tail
        assert decoded(body, None, LIMIT) is body


def test_no_beginning_that_counts_as_plain_can_be_another_encoding() -> None:
    for start in PLAIN:
        assert {json.detect_encoding(start + tail) for tail in (b"", b"\0", b"\0\0", b"\0\0\0", b"x")} == {"utf-8"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xff\xfe{", "UTF-16 .* truncated data at byte 2"),
        (codecs.BOM_UTF16_LE + b"{\0\x00\xd8x\0", "UTF-16 .* illegal UTF-16 surrogate at byte 4"),
        (codecs.BOM_UTF32_BE + b"\0\0\0{\xff\xff\xff\xff", "UTF-32 .* code point not in range"),
        (b"\0\0\0\0\xff", "UTF-32"),
    ],
)
def test_text_that_is_not_valid_names_its_encoding(body: bytes, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        decoded(body, None, LIMIT)
    assert caught.value.code == "invalid_json"


def test_the_limit_holds_for_the_text_in_utf_8() -> None:
    text = '{"a":"' + "你" * 300 + '"}'
    body = text.encode("utf-16")
    assert len(body) < 700
    assert decoded(body, None, 908) == text.encode()
    with pytest.raises(BodyTooLargeError, match="700 bytes in UTF-8"):
        decoded(body, None, 700)
