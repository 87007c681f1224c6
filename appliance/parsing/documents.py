"""The parsers: bytes of one format to text in Markdown, with the beginnings of pages. They open no file."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from xml.parsers.expat import ExpatError

from appliance.parsing.file_type import CODE, Format
from appliance.parsing.limits import ParseLimits, UnusableFileError
from appliance.parsing.text import decode


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """The text of a document."""

    text: str
    pages: Sequence[int] = ()
    """Offsets in ``text`` at which the pages begin, from the first one."""


TOO_DEEP = "The document has too many elements in one another."

Parser = Callable[[bytes, str, ParseLimits], ParsedDocument]
"""A parser of content, extension and limits; it raises :class:`UnusableFileError` for unusable content."""


def parser_for(kind: Format) -> Parser:
    """Return the parser of ``kind`` and load its library, so that it needs no file later."""
    return _LOADERS[kind]()


def _load_pdf() -> Parser:
    pdfium, raw = import_module("pypdfium2"), import_module("pypdfium2.raw")

    def parse(content: bytes, _extension: str, limits: ParseLimits) -> ParsedDocument:
        try:
            pdf = pdfium.PdfDocument(content)
        except pdfium.PdfiumError as error:
            if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
                raise UnusableFileError("invalid_file", "The PDF is encrypted; remove its password.") from None
            raise UnusableFileError("invalid_file", "The PDF is damaged.") from None
        count = len(pdf)
        if count > limits.pages:
            raise UnusableFileError("invalid_file", f"The PDF has {count} pages; the limit is {limits.pages}.")
        pages, starts, length = [], [], 0
        for index in range(count):
            starts.append(length)
            try:
                page = pdf[index]
                content_of_page = page.get_textpage()
                text = content_of_page.get_text_range().replace("\r\n", "\n").replace("\ufffe", "")
                content_of_page.close()
                page.close()
            except pdfium.PdfiumError:
                # One damaged page does not make the others unusable.
                text = ""
            pages.append(f"{text.rstrip()}\n\n" if text.strip() else "")
            length += len(pages[-1])
            _require_length(length, limits)
        if not length:
            raise UnusableFileError("invalid_file", "The PDF has no text; recognise the text of a scan first.")
        return ParsedDocument("".join(pages), starts)

    return parse


def _load_docx() -> Parser:
    mammoth = import_module("mammoth")
    # Minidom imports it at its first use.
    import_module("xml.dom.expatbuilder")
    # Mammoth has no error of its own for a document without the parts that it expects.
    damaged = (
        *(zipfile.BadZipFile, zlib.error, ExpatError),
        *(KeyError, ValueError, IndexError, AttributeError, TypeError, EOFError),
    )
    to_markdown = _load_markdownify()

    def parse(content: bytes, _extension: str, limits: ParseLimits) -> ParsedDocument:
        _check_archive(content, limits)
        try:
            # Images would become data URIs in the text.
            html = mammoth.convert_to_html(
                io.BytesIO(content), convert_image=mammoth.images.img_element(lambda _image: {})
            ).value
        except damaged as error:
            raise UnusableFileError("invalid_file", f"The DOCX is damaged ({type(error).__name__}).") from None
        except RecursionError:
            raise UnusableFileError("invalid_file", TOO_DEEP) from None
        return ParsedDocument(to_markdown(html))

    return parse


_DECLARATION = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)


def _check_archive(content: bytes, limits: ParseLimits) -> None:
    """Reject an archive that would unpack to more than ``limits``, or that declares entities.

    The sizes in the archive's index suffice: the module zipfile reads no more of a member than its size there.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > limits.members:
                raise UnusableFileError("invalid_file", f"The DOCX has {len(members)} parts; it is not a document.")
            if any(member.flag_bits & 1 for member in members):
                raise UnusableFileError("invalid_file", "The DOCX is encrypted; save it without a password.")
            unpacked = sum(member.file_size for member in members)
            xml = [member for member in members if member.filename.lower().endswith((".xml", ".rels"))]
            largest = max((member.file_size for member in xml), default=0)
            if unpacked > limits.unpacked_bytes or largest > limits.xml_bytes:
                raise UnusableFileError("invalid_file", "The DOCX is too large after decompression.")
            for member in xml:
                with archive.open(member) as part:
                    if _DECLARATION.search(part.read(limits.xml_bytes + 1)):
                        raise UnusableFileError("invalid_file", "The DOCX declares entities; it is not a document.")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError, EOFError):
        raise UnusableFileError("invalid_file", "The DOCX is damaged.") from None


def _load_html() -> Parser:
    to_markdown = _load_markdownify()

    def parse(content: bytes, _extension: str, _limits: ParseLimits) -> ParsedDocument:
        return ParsedDocument(to_markdown(_decode_html(content)))

    return parse


_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w-]{1,40})", re.IGNORECASE)
_CHARSETS = {
    b"windows-1251": "cp1251",
    b"cp1251": "cp1251",
    b"koi8-r": "koi8-r",
    b"iso-8859-1": "cp1252",
    b"windows-1252": "cp1252",
}


def _decode_html(content: bytes) -> str:
    declared = _CHARSET.search(content[:4096])
    encoding = _CHARSETS.get(declared[1].lower()) if declared else None
    return decode(content) if encoding is None else content.decode(encoding, "replace")


_REMOVED = ("script", "style", "nav", "footer", "noscript", "template", "svg", "iframe", "form", "head", "img")
_EMPTY_LINES = re.compile(r"\n[ \t]*\n[ \t\n]*\n")


def _load_markdownify() -> Callable[[str], str]:
    """Return a function from HTML to Markdown, without scripts, styles, navigation and images."""
    soup_of, markdownify = import_module("bs4").BeautifulSoup, import_module("markdownify")
    converter = markdownify.MarkdownConverter(
        heading_style=markdownify.ATX, escape_asterisks=False, escape_underscores=False
    )

    def convert(html: str) -> str:
        soup = soup_of(html, "html.parser")
        for tag in soup(_REMOVED):
            tag.decompose()
        try:
            text = converter.convert_soup(soup)
        except RecursionError:
            raise UnusableFileError("invalid_file", TOO_DEEP) from None
        return _EMPTY_LINES.sub("\n\n", str(text)).strip() + "\n"

    return convert


def _load_text() -> Parser:
    return lambda content, _extension, _limits: ParsedDocument(decode(content))


def _load_code() -> Parser:
    def parse(content: bytes, extension: str, _limits: ParseLimits) -> ParsedDocument:
        text = decode(content).rstrip("\n")
        # A fence is longer than each one in the code.
        longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
        fence = "`" * (longest + 1)
        return ParsedDocument(f"{fence}{CODE.get(extension, '')}\n{text}\n{fence}\n" if text.strip() else "")

    return parse


def _require_length(length: int, limits: ParseLimits) -> None:
    if length > limits.text_characters:
        raise UnusableFileError(
            "invalid_file", f"The text is longer than {limits.text_characters} characters; split the file."
        )


_LOADERS: dict[Format, Callable[[], Parser]] = {
    Format.PDF: _load_pdf,
    Format.DOCX: _load_docx,
    Format.HTML: _load_html,
    Format.MARKDOWN: _load_text,
    Format.TEXT: _load_text,
    Format.CODE: _load_code,
}


def parse(parser: Parser, content: bytes, extension: str, limits: ParseLimits) -> ParsedDocument:
    """Return the text of ``content``.

    Raises:
        UnusableFileError: It is damaged, encrypted, too large, or it contains no text.
    """
    document = parser(content, extension, limits)
    _require_length(len(document.text), limits)
    if not document.text.strip():
        raise UnusableFileError("invalid_file", "The file contains no text.")
    # Text databases reject NUL, and half of a surrogate pair has no UTF-8 form.
    if "\x00" in document.text or not _encodable(document.text):
        clean = document.text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8")
        return ParsedDocument(clean, document.pages)
    return document


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
