"""The format of a file and the encoding of a text, as pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.parsing.file_type import Format, extension_of, format_of
from appliance.parsing.limits import UnusableFileError
from appliance.parsing.text import decode
from tests.assistant.made_documents import a_docx, a_pdf

RUSSIAN = "Ночь, улица, фонарь, аптека. Бессмысленный и тусклый свет. Живи ещё хоть четверть века."
FRENCH = "Le garçon était déjà là, où il a goûté une crème brûlée à l'hôtel."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1251", "koi8-r", "cp866"])
def test_russian_text_is_decoded(encoding: str) -> None:
    assert decode(RUSSIAN.encode(encoding)) == RUSSIAN


def test_russian_text_with_few_words_among_english_ones_is_decoded() -> None:
    text = "def main():  # Печать отчёта\n    print('hello world')  # конец\n" * 5
    assert decode(text.encode("cp1251")) == text


def test_western_text_is_not_taken_for_russian() -> None:
    assert decode(FRENCH.encode("cp1252")) == FRENCH


def test_line_ends_are_unified() -> None:
    assert decode(b"a\r\nb\rc\n") == "a\nb\nc\n"


@pytest.mark.parametrize("content", [b"a\x00b", "text".encode("utf-16-le"), b"\xff\xfea"])
def test_binary_content_is_rejected(content: bytes) -> None:
    with pytest.raises(UnusableFileError) as found:
        decode(content)
    assert found.value.code == "invalid_file"


@given(st.text().filter(lambda text: "\0" not in text and not text.startswith("\ufeff")))
def test_every_utf_8_text_is_decoded_as_it_is(text: str) -> None:
    assert decode(text.encode()) == text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("a.PDF", "pdf"),
        ("archive.tar.gz", "gz"),
        ("Makefile", "makefile"),
        (".gitignore", ""),
        ("README", ""),
        ("a.t x t", ""),
        ("a." + "x" * 13, ""),
    ],
)
def test_extensions(name: str, extension: str) -> None:
    assert extension_of(name) == extension


@pytest.mark.parametrize(
    ("content", "extension", "kind"),
    [
        (a_pdf(["x"]), "txt", Format.PDF),
        (b"\n\n" + a_pdf(["x"]), "pdf", Format.PDF),
        (a_docx([("", "x")]), "", Format.DOCX),
        (b"<!DOCTYPE html><p>x", "txt", Format.HTML),
        (b"# Title", "md", Format.MARKDOWN),
        (b"{}", "json", Format.CODE),
        (b"a,b\n1,2", "csv", Format.TEXT),
        (b"GIF8 is a word here", "txt", Format.TEXT),
        ("слово".encode("utf-16"), "unknown", Format.TEXT),
    ],
)
def test_content_decides_before_the_extension(content: bytes, extension: str, kind: Format) -> None:
    assert format_of(content, extension) is kind


@pytest.mark.parametrize(
    ("content", "extension", "code"),
    [
        (b"", "txt", "invalid_file"),
        (b"text", "pdf", "invalid_file"),
        (b"text", "docx", "invalid_file"),
        (b"PK\x03\x04 damaged", "docx", "invalid_file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "doc", "unsupported_file"),
        (b"\x89PNG\r\n", "png", "unsupported_file"),
        (b"GIF89a\x01\x00\x00", "gif", "unsupported_file"),
        (b"\x01\x02\x03", "bin", "unsupported_file"),
    ],
)
def test_unusable_content_has_a_code(content: bytes, extension: str, code: str) -> None:
    with pytest.raises(UnusableFileError) as found:
        format_of(content, extension)
    assert found.value.code == code
