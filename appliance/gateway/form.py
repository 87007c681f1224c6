"""Reads a form (multipart/form-data) in memory and edits its fields without a copy of its file. Pure.

Two programs must not read one form differently: the gateway checks the model, and the engine uses it. So a form in
an unusual notation is rejected. Examples are a field that occurs twice, a name with an escape, folded headers, and
bytes before the first part or after the last one. Clients and SDKs write none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.errors import InvalidRequestError, UnsupportedMediaTypeError

FORM = b"multipart/form-data"

MAX_PARTS = 100
"""Most parts of a form."""

MAX_PART_HEAD = 4096
"""Bytes of the headers of one part."""

MAX_VALUE = 64 * 1024
"""Bytes of a field without a file."""

_BOUNDARY = re.compile(
    rb"multipart/form-data(?:[ \t]*;[ \t]*charset=\"?[\w-]+\"?)?[ \t]*;[ \t]*"
    rb"boundary=(?:\"([\w'()+,./:=?-]{1,70})\"|([\w'+.=-]{1,70}))[ \t]*;?"
    rb"(?:[ \t]*charset=\"?[\w-]+\"?)?[ \t]*",
    re.IGNORECASE,
)
_DISPOSITION = re.compile(
    rb"form-data((?:[ \t]*;[ \t]*[\w*-]+=(?:\"[^\"\r\n]*\"|[^\";\s]+))+)[ \t]*;?", re.IGNORECASE
)
_PARAMETER = re.compile(rb";[ \t]*([\w*-]+)=(?:\"([^\"\r\n]*)\"|([^\";\s]+))")
_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,64}(\[[A-Za-z0-9_-]{0,64}\])?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~A-Za-z0-9-]+):[ \t]*([^\r\n]*)")
_CODINGS = frozenset({b"binary", b"8bit", b"7bit"})


@dataclass(frozen=True, slots=True)
class FormPart:
    """One part of a form: its name, and its place in the body in bytes."""

    name: str
    is_file: bool
    begin: int
    """The first byte of its delimiter line."""
    start: int
    """The first byte of its content."""
    end: int
    """The byte after its content."""

    @property
    def size(self) -> int:
        """Bytes of its content."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class MultipartForm:
    """A form: its ``body``, its ``boundary``, and its parts in their order."""

    body: bytes
    boundary: bytes
    parts: tuple[FormPart, ...]

    def part(self, name: str) -> FormPart | None:
        """Return the part ``name``, if the form has it."""
        return next((part for part in self.parts if part.name == name), None)

    def text(self, name: str) -> str | None:
        """Return the field ``name``; raises :class:`InvalidRequestError` if it is not UTF-8, or too long."""
        part = self.part(name)
        if part is None:
            return None
        if part.size > MAX_VALUE:
            raise InvalidRequestError(f"The field {name} is over the limit of {MAX_VALUE} bytes", param=name)
        try:
            return self.body[part.start : part.end].decode()
        except UnicodeDecodeError:
            raise InvalidRequestError(f"The field {name} is not UTF-8", param=name) from None

    def pieces(
        self, changes: Mapping[str, str], *, additions: Mapping[str, str] | None = None, without: Sequence[str] = ()
    ) -> list[bytes | memoryview]:
        """Return the body with other values of the fields in ``changes``, in pieces that share its memory.

        Args:
            changes: New values by the names of existing fields.
            additions: Values of fields that the form does not have, which follow its last part.
            without: Names of fields to remove.
        """
        view, found = memoryview(self.body), list[bytes | memoryview]()
        position = 0
        for index, part in enumerate(self.parts):
            following = self.parts[index + 1].begin if index + 1 < len(self.parts) else part.end + 2
            if part.name in without:
                found.append(view[position : part.begin])
                position = following
            elif part.name in changes:
                found += [view[position : part.start], changes[part.name].encode()]
                position = part.end
        last = self.parts[-1].end + 2
        found.append(view[position:last])
        position = last
        for name, value in (additions or {}).items():
            head = f'content-disposition: form-data; name="{name}"'.encode()
            found.append(b"--%s\r\n%s\r\n\r\n%s\r\n" % (self.boundary, head, value.encode()))
        found.append(view[position:])
        return [piece for piece in found if len(piece)]


def boundary_of(content_type: bytes | None) -> bytes:
    """Return the boundary in the header ``content_type`` of a form.

    Raises :class:`UnsupportedMediaTypeError` for another content type, and :class:`InvalidRequestError` for a form
    without a plain boundary.
    """
    kind = (content_type or b"").partition(b";")[0].strip().lower()
    if kind != FORM:
        shown = kind.decode("latin1")[:80] or "absent"
        raise UnsupportedMediaTypeError(
            f"Content-Type is {shown}; send a form, multipart/form-data, with the fields file and model",
            param="file",
        )
    found = _BOUNDARY.fullmatch(content_type or b"")
    if found is None:
        raise InvalidRequestError("Content-Type has no valid boundary; let the HTTP client write it", param="file")
    return found[1] or found[2]


def read_form(body: bytes, boundary: bytes) -> MultipartForm:
    """Return the form in ``body``.

    Raises :class:`InvalidRequestError` if it is not valid, incomplete, or in an unusual notation.
    """
    delimiter = b"\r\n--" + boundary
    if not body.startswith(delimiter[2:] + b"\r\n"):
        raise _invalid("it does not begin with its boundary")
    parts: list[FormPart] = []
    names: set[str] = set()
    begin = 0
    while True:
        if len(parts) == MAX_PARTS:
            raise _invalid(f"it has more than {MAX_PARTS} parts")
        head = begin + len(delimiter)
        start = body.find(b"\r\n\r\n", head - 2, head + MAX_PART_HEAD)
        if start < 0:
            raise _invalid("a part has no headers, or too many")
        name, is_file = _read_head(body[head:start])
        start += 4
        # From two bytes before: a delimiter directly behind the headers is not a part without content.
        end = body.find(delimiter, start - 2)
        if end < 0:
            raise _invalid("it ends inside a part")
        if end < start:
            raise _invalid("a part has no content")
        if name in names and not name.endswith("]"):
            raise InvalidRequestError(f"The field {name} occurs twice; send it once", param=name)
        names.add(name)
        parts.append(FormPart(name=name, is_file=is_file, begin=begin, start=start, end=end))
        begin = end + 2
        rest = body[end + len(delimiter) : end + len(delimiter) + 2]
        if rest == b"--":
            if body[end + len(delimiter) + 2 :].strip():
                raise _invalid("data follows its end")
            return MultipartForm(body, boundary, tuple(parts))
        if rest != b"\r\n":
            raise _invalid("bytes follow a boundary in its line")


def _read_head(head: bytes) -> tuple[str, bool]:
    """Return the name of a part from its headers, and whether it is a file."""
    disposition = b""
    for line in head.split(b"\r\n"):
        found = _HEADER.fullmatch(line)
        if found is None:
            raise _invalid("a header of a part is not valid")
        key, value = found[1].lower(), found[2].strip()
        if key == b"content-disposition":
            if disposition:
                raise _invalid("a part has two Content-Disposition headers")
            disposition = value
        elif key == b"content-transfer-encoding" and value.lower() not in _CODINGS:
            raise _invalid("a part has a Content-Transfer-Encoding; send it as it is")
    found = _DISPOSITION.fullmatch(disposition)
    if found is None:
        raise _invalid("a part has no plain Content-Disposition")
    parameters: dict[bytes, bytes] = {}
    for parameter in _PARAMETER.finditer(found[1]):
        key = parameter[1].lower()
        if key in parameters:
            raise _invalid("a part has a parameter twice")
        parameters[key] = parameter[2] if parameter[2] is not None else parameter[3]
    name = parameters.get(b"name", b"")
    if b"name*" in parameters or not _NAME.fullmatch(name):
        raise _invalid("the name of a part is not plain")
    return name.decode(), bool({b"filename", b"filename*"} & parameters.keys())


def _invalid(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"The body is not a valid form: {why}", code="invalid_form")
