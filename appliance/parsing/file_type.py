"""The format of a file, by its content first and its extension second.

1. The content of PDF and DOCX has a signature. It decides alone: a PDF with the name `notes.txt` is parsed as PDF.
2. Other known binary formats are unsupported, each with advice.
3. Text with an extension of a binary format is an invalid file: it is damaged or misnamed.
4. Text has the format of its extension. Text without a known extension is plain text, or HTML if it begins like it.
"""

from __future__ import annotations

import enum
import io
import zipfile
from collections.abc import Mapping
from types import MappingProxyType

from appliance.parsing.limits import UnusableFileError

_CODE = (
    "bash.c.cc.clj.cmake.cpp.cs.css.cu.dart.dockerfile.ex.exs.fish.go.gradle.groovy.h.hpp.hs.ini.java.jl.js.json."
    "jsonl.jsx.kt.kts.less.lock.lua.m.makefile.mjs.ml.nix.php.pl.proto.ps1.py.r.rb.rs.sass.scala.scss.sh.sql.swift."
    "tf.toml.ts.tsx.vim.vue.xml.yaml.yml.zig.zsh"
)
CODE: Mapping[str, str] = MappingProxyType({name: name for name in _CODE.split(".")})
"""The language of a fenced block by extension, without the dot."""

_TEXT = frozenset(
    ["", "txt", "text", "log", "csv", "tsv", "rst", "org", "srt", "vtt", "tex", "adoc", "conf", "cfg"]
)
_BINARY = frozenset(["pdf", "docx", "doc", "xlsx", "xls", "pptx", "ppt", "odt", "epub", "rtf", "zip", "png", "jpg"])
_SIGNATURES = (
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "an old or encrypted Office document; save it as plain .docx",
    ),
    (b"{\\rtf", "RTF; save it as .docx or .pdf"),
    (b"\x89PNG", "an image; text in images is not recognised"),
    (b"\xff\xd8\xff", "an image; text in images is not recognised"),
    (b"GIF8", "an image; text in images is not recognised"),
    (b"II*\x00", "an image; text in images is not recognised"),
    (b"MM\x00*", "an image; text in images is not recognised"),
    (b"\x1f\x8b", "a gzip archive; upload the files in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; upload the files in it"),
    (b"Rar!", "a RAR archive; upload the files in it"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90\x00", "a program"),
    (b"SQLite format 3\x00", "a database"),
    (b"ID3", "audio"),
    (b"OggS", "audio or video"),
    (b"RIFF", "audio, video or an image"),
)


class Format(enum.Enum):
    """The formats that have a parser."""

    PDF = "pdf"
    DOCX = "docx"
    HTML = "html"
    MARKDOWN = "markdown"
    TEXT = "text"
    CODE = "code"


_BY_EXTENSION = {
    **dict.fromkeys(("html", "htm", "xhtml"), Format.HTML),
    **dict.fromkeys(("md", "markdown", "mdx", "mkd"), Format.MARKDOWN),
    **dict.fromkeys(CODE, Format.CODE),
}


def extension_of(filename: str) -> str:
    """Return the extension of ``filename`` in lower case, without the dot; letters and digits, at most 12.

    A name such as `Makefile` or `Dockerfile` is its own extension.
    """
    name = filename.lower()
    if name in ("makefile", "dockerfile"):
        return name
    found = name.rpartition(".")[2] if "." in name.lstrip(".") else ""
    return found if found.isascii() and found.isalnum() and len(found) <= 12 else ""


def format_of(content: bytes, extension: str) -> Format:
    """Return the format of ``content``, whose name ends with ``extension``.

    Raises:
        UnusableFileError: The file is empty, or it has no parser.
    """
    if not content:
        raise UnusableFileError("invalid_file", "The file is empty.")
    if b"%PDF-" in content[:1024]:
        return Format.PDF
    if content.startswith(b"PK\x03\x04"):
        return _zip_format(content, extension)
    for signature, advice in _SIGNATURES:
        word = signature.isascii() and signature.isalnum()
        if content.startswith(signature) and not (word and _printable(content)):
            raise UnusableFileError("unsupported_file", f"The file is {advice}.")
    if extension in _BINARY:
        raise UnusableFileError(
            "invalid_file", f"The name ends with .{extension}, but the content is not in that format."
        )
    if extension in _BY_EXTENSION:
        return _BY_EXTENSION[extension]
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return Format.HTML
    if extension not in _TEXT and not _printable(content):
        raise UnusableFileError(
            "unsupported_file",
            f"Files with the extension .{extension} have no parser. Use PDF, DOCX, HTML, Markdown, text or code.",
        )
    return Format.TEXT


def _zip_format(content: bytes, extension: str) -> Format:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        raise UnusableFileError("invalid_file", "The DOCX or archive is damaged.") from None
    if "word/document.xml" in names:
        return Format.DOCX
    if extension == "docx":
        raise UnusableFileError("invalid_file", "The name ends with .docx, but the file contains no document.")
    raise UnusableFileError(
        "unsupported_file", "The file is an archive or a document without a parser. Use PDF, DOCX or its text."
    )


def _printable(content: bytes) -> bool:
    """Return whether the beginning of ``content`` has no control characters except white space."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    return not any(byte < 32 and byte not in (9, 10, 12, 13, 27) for byte in content[:4096])
