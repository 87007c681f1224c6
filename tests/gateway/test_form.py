"""Forms: the parts that are found, the notations that are rejected, and edits that copy no file."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.multipart import parse_form

from appliance.errors import InvalidRequestError, UnsupportedMediaTypeError
from appliance.gateway.form import MAX_PARTS, boundary_of, read_form
from appliance.gateway.media_body import read_media

BOUNDARY = b"----WebKitFormBoundary7MA4YWxk"
KIND = b"multipart/form-data; boundary=" + BOUNDARY


def part(name: str, content: bytes = b"x", *, more: str = "", lines: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{more}\r\n{lines}'.encode()
    return b"--" + BOUNDARY + b"\r\n" + head + b"\r\n" + content + b"\r\n"


def file(content: bytes = b"RIFF") -> bytes:
    return part("file", content, more='; filename="a.wav"', lines="Content-Type: audio/wav\r\n")


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def as_the_engine_reads(body: bytes) -> dict[str, list[bytes]]:
    """Return the contents of the parts by name, as vLLM's parser reads them."""
    found: dict[str, list[bytes]] = {}

    def on_field(field: object) -> None:
        found.setdefault(field.field_name.decode(), []).append(field.value or b"")  # type: ignore[attr-defined]

    def on_file(one: object) -> None:
        one.file_object.seek(0)  # type: ignore[attr-defined]
        found.setdefault(one.field_name.decode(), []).append(one.file_object.read())  # type: ignore[attr-defined]

    parse_form({"Content-Type": KIND}, io.BytesIO(body), on_field, on_file)
    return found


@pytest.mark.parametrize(
    ("value", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data;boundary="a b"', None),
        (b'multipart/form-data; boundary="a:b"', b"a:b"),
        (b"multipart/form-data; charset=utf-8; boundary=abc", b"abc"),
        (b"multipart/form-data; boundary=abc; boundary=def", None),
        (b"multipart/form-data; boundary=" + b"a" * 71, None),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
    ],
)
def test_the_boundary(value: bytes, boundary: bytes | None) -> None:
    if boundary is None:
        with pytest.raises(InvalidRequestError, match="boundary"):
            boundary_of(value)
    else:
        assert boundary_of(value) == boundary


@pytest.mark.parametrize("value", [None, b"", b"application/json", b"multipart/mixed; boundary=a", b"audio/wav"])
def test_another_content_type_is_415(value: bytes | None) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="multipart/form-data") as found:
        boundary_of(value)
    assert found.value.param == "file"


def test_the_model_may_follow_the_file_and_is_renamed_in_place() -> None:
    sound = bytes(range(256)) * 4
    body = form(file(sound), part("language", b"ru"), part("model", b"whisper"))
    read = read_form(body, BOUNDARY)
    assert [(one.name, one.is_file, one.size) for one in read.parts] == [
        ("file", True, 1024),
        ("language", False, 2),
        ("model", False, 7),
    ]
    pieces = read.pieces(
        {"model": "openai/whisper-large-v3"}, additions={"temperature": "0.2"}, without=["language"]
    )
    large = [piece for piece in pieces if len(piece) > 1000]
    assert [type(piece) for piece in large] == [memoryview]
    again = b"".join(pieces)
    assert as_the_engine_reads(again) == {
        "file": [sound],
        "model": [b"openai/whisper-large-v3"],
        "temperature": [b"0.2"],
    }


def test_a_form_without_changes_stays_as_it_is() -> None:
    body = form(part("model", b"m"), file(), part("prompt", b""))
    assert b"".join(read_form(body, BOUNDARY).pieces({})) == body


INVALID = {
    "empty": b"",
    "preamble": b"hello\r\n" + form(file()),
    "no end": form(file())[:-6],
    "cut in the file": form(file(b"x" * 100))[:90],
    "epilogue": form(file()) + b"more",
    "padding behind a boundary": form(file()).replace(BOUNDARY + b"\r\n", BOUNDARY + b"  \r\n", 1),
    "padding behind a later boundary": form(part("model"), file()).replace(
        b"x\r\n--" + BOUNDARY, b"x\r\n--" + BOUNDARY + b"  "
    ),
    "no headers": b"--" + BOUNDARY + b"\r\n\r\nx\r\n--" + BOUNDARY + b"--",
    "no name": form(b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data\r\n\r\nx\r\n"),
    "another disposition": form(file().replace(b"form-data", b"attachment")),
    "two dispositions": form(part("model", lines='Content-Disposition: form-data; name="x"\r\n')),
    "an encoded name": form(part("a", more="; name*=utf-8''model")),
    "an escape in a name": form(part('mo\\"del')),
    "a name twice": form(part("a", more='; name="model"')),
    "folded": form(part("a", lines="X-A: b\r\n c\r\n")),
    "base64": form(part("model", lines="Content-Transfer-Encoding: base64\r\n")),
    "long headers": form(part("model", lines="X-A: " + "b" * 5000 + "\r\n")),
    "many parts": form(*[part(f"a{number}") for number in range(MAX_PARTS + 1)]),
    "two models": form(part("model", b"a"), file(), part("model", b"b")),
    "two files": form(file(), file()),
    "bare line ends": form(file()).replace(b"\r\n", b"\n"),
}


@pytest.mark.parametrize("body", INVALID.values(), ids=INVALID)
def test_an_unusual_notation_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        read_form(body, BOUNDARY)


def test_a_field_for_several_values_may_occur_twice() -> None:
    body = form(part("timestamp_granularities[]", b"word"), part("timestamp_granularities[]", b"segment"), file())
    assert len(read_form(body, BOUNDARY).parts) == 3


NAMES = st.sampled_from(["model", "file", "prompt", "language", "a[]"])
CONTENTS = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"\r\n", b"--" + BOUNDARY, b"\r\n--", b"\r\n--" + BOUNDARY[:-1], b"-"])
)


@given(st.lists(st.tuples(NAMES, CONTENTS), min_size=1, max_size=5), st.binary(max_size=6), st.integers(0, 400))
def test_the_engine_reads_the_same_fields(parts: list[tuple[str, bytes]], noise: bytes, place: int) -> None:
    """If a form passes, also a damaged one, vLLM's parser reads the same fields."""
    body = form(*[part(name, content) for name, content in parts])
    if noise:
        body = body[:place] + noise + body[place:]
    try:
        read = read_form(body, BOUNDARY)
    except InvalidRequestError:
        return
    ours: dict[str, list[bytes]] = {}
    for one in read.parts:
        ours.setdefault(one.name, []).append(body[one.start : one.end])
    assert as_the_engine_reads(body) == ours


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((part("model", b"m"),), "file"),
        ((part("model", b"m"), file(b"")), "file"),
        ((part("model", b"m"), part("file", b"text")), "file"),
        ((file(),), "model"),
        ((file(), part("model", b"")), "model"),
        ((file(), part("model", b"\xff")), "model"),
        ((file(), part("model", b"m" * 70_000)), "model"),
        ((file(), part("model", b"m", more='; filename="m"')), "model"),
        ((file(), part("model", b"m"), part("n", b"17")), "n"),
        ((file(), part("model", b"m"), part("n", b"0")), "n"),
        ((file(), part("model", b"m"), part("n", b"9" * 5000)), "n"),
    ],
)
def test_a_field_that_is_not_valid_is_named(parts: tuple[bytes, ...], param: str) -> None:
    read = read_form(form(*parts), BOUNDARY)
    with pytest.raises(InvalidRequestError) as found:
        read_media("/v1/audio/transcriptions", b"", read, max_n=16)
    assert found.value.param == param


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/audio/speech", b'{"model":"m"}', "input"),
        ("/v1/audio/speech", b'{"model":"m","input":""}', "input"),
        ("/v1/audio/speech", b'{"model":"m","input":["a"]}', "input"),
        ("/v1/audio/speech", b'{"input":"a"}', "model"),
        ("/v1/images/generations", b'{"model":"m"}', "prompt"),
        ("/v1/images/generations", b'{"model":"m","prompt":"cat","n":17}', "n"),
        ("/v1/images/generations", b'{"model":"m","prompt":"cat","n":"0"}', "n"),
        ("/v1/images/generations", b"[]", None),
    ],
)
def test_json_that_is_not_valid_names_the_field(path: str, body: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequestError) as found:
        read_media(path, body, None, max_n=16)
    assert found.value.param == param


def test_controls_of_the_engine_are_removed() -> None:
    read = read_form(form(part("request_id", b"a"), file(), part("model", b"m"), part("priority", b"-1")), BOUNDARY)
    media = read_media("/v1/audio/transcriptions", b"", read, max_n=16)
    assert as_the_engine_reads(b"".join(media.pieces("n"))) == {"file": [b"RIFF"], "model": [b"n"]}
    json = read_media("/v1/audio/speech", b'{"model":"m","input":"a","priority":1}', None, max_n=16)
    assert b"priority" not in json.body


def test_longer_media_cost_more() -> None:
    costs = [
        read_media(
            "/v1/audio/transcriptions",
            b"",
            read_form(form(file(b"x" * size), part("model", b"m")), BOUNDARY),
            max_n=1,
        ).cost
        for size in (10_000, 1_000_000)
    ]
    assert costs == [10, 1000]
