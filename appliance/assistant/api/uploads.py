"""A multipart upload as a stream: its fields in memory, its file piece by piece to a draft."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from appliance.assistant.file_contents import ContentDraft
from appliance.errors import BodyTooLargeError, InvalidRequestError

MAX_NAME = 255
MAX_FIELD_BYTES = 4096
MAX_PARTS = 32
MAX_HEADER_BYTES = 8192
_FLUSH_BYTES = 1 << 20
_PATH = re.compile(r"[/\\]")
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of text: they can hide the extension of a name."""


@dataclass(slots=True)
class Upload:
    """The fields of an upload, and the name of its file; ``None`` without a file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


def clean_filename(name: str) -> str:
    """Return ``name`` without path parts.

    Raises:
        InvalidRequestError: It is empty, longer than 255 characters, or it has control characters.
    """
    name = unicodedata.normalize("NFC", _PATH.split(name)[-1]).strip()
    if not name.strip("."):
        raise InvalidRequestError("the file has no name", param="file")
    if len(name) > MAX_NAME or len(name.encode()) > 4 * MAX_NAME:
        raise InvalidRequestError(f"the name of the file has more than {MAX_NAME} characters", param="file")
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _DIRECTIONS for letter in name):
        raise InvalidRequestError("the name of the file has control characters", param="file")
    return name


async def receive(
    content_type: str, stream: AsyncIterator[bytes], open_draft: Callable[[], ContentDraft], *, max_bytes: int
) -> Upload:
    """Read the upload ``stream`` to its end; write the part `file` to the draft that ``open_draft`` returns.

    Raises:
        InvalidRequestError: The body is not a multipart upload, or the name of the file is not valid.
        BodyTooLargeError: The file has more than ``max_bytes``.
        StoreError: The disk is full.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequestError(
            "send the file as multipart/form-data with the fields file and purpose", param="file"
        )
    reader = _PartReader(max_bytes)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        draft: ContentDraft | None = None
        async for piece in stream:
            parser.write(piece)
            if reader.upload.filename is not None and draft is None:
                draft = await asyncio.to_thread(open_draft)
            if draft is not None and len(reader.pending) >= _FLUSH_BYTES:
                await asyncio.to_thread(draft.write, reader.take())
        if draft is not None and reader.pending:
            await asyncio.to_thread(draft.write, reader.take())
        parser.finalize()
    except FormParserError:
        raise InvalidRequestError("the multipart body is not valid", param="file") from None
    if not reader.complete:
        raise InvalidRequestError("the multipart body ends early", param="file")
    return reader.upload


class _PartReader:
    """Collects the parts of a body from the callbacks of the parser."""

    def __init__(self, max_bytes: int) -> None:
        self.upload = Upload()
        self.pending = bytearray()
        """Bytes of the file that no draft has yet."""
        self.complete = False
        self._max_bytes = max_bytes
        self._size = 0
        self._parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value = bytearray(), bytearray()
        self._name = ""
        self._is_file = False
        self._text = bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def take(self) -> bytes:
        """Return the bytes of the file that wait, and forget them."""
        found = bytes(self.pending)
        self.pending.clear()
        return found

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequestError(f"the body has more than {MAX_PARTS} parts", param="file")
        self._headers = {}
        self._text.clear()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header) + len(self._value) > MAX_HEADER_BYTES:
            raise InvalidRequestError("a part has a header that is too long", param="file")

    def _header_end(self) -> None:
        if len(self._headers) < MAX_PARTS:
            self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._is_file = self._name == "file"
        if self._is_file:
            if self.upload.filename is not None:
                raise InvalidRequestError("the body has more than one file", param="file")
            if filename is None:
                raise InvalidRequestError("the field file has no file name", param="file")
            # Browsers and HTTP clients write a quotation mark like this.
            name = filename.decode("utf-8", "replace").replace("%22", '"')
            self.upload.filename = clean_filename(name)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file:
            self._text += data[start:end]
            if len(self._text) > MAX_FIELD_BYTES:
                raise InvalidRequestError("a field is too long", param=self._name[:64] or None)
            return
        self._size += end - start
        if self._size > self._max_bytes:
            raise BodyTooLargeError(f"the file is larger than {self._max_bytes} bytes", param="file")
        self.pending += data[start:end]

    def _part_end(self) -> None:
        if not self._is_file:
            self.upload.fields[self._name] = self._text.decode("utf-8", "replace")

    def _end(self) -> None:
        self.complete = True
