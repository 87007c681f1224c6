"""Reads the bodies of requests for audio and images, as far as they concern the gateway. Pure.

A form is checked and later renamed in place; JSON has the reader of all other endpoints. The cost of a request is
its share of a busy engine. Usage of audio and images has no tokens: bytes, characters and images replace them.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import Raw
from pydantic import JsonValue

from appliance.contract.model import Role
from appliance.errors import InvalidRequestError
from appliance.gateway.body import CONTROLS, BodyFields, decode, is_controlled, with_role, without_controls
from appliance.gateway.form import MultipartForm

SPEECH = "/v1/audio/speech"

BYTES_PER_UNIT = 1000
"""Bytes of compressed audio that cost as much as a token: about a sixteenth of a second."""

UNITS_PER_IMAGE = 1000
"""Tokens that an image costs as much as."""

CHARACTERS_PER_UNIT = 4

TRUE = frozenset({"true", "1", "on", "yes", "t", "y"})
"""Texts that a form's reader takes for true, as pydantic does."""


@dataclass(frozen=True, slots=True)
class MediaBody:
    """A checked body: the model that it names, and whether it requests a stream of events.

    ``cost`` is in units of the fair queue. ``form`` is set for a form, and then ``body`` is empty.
    """

    model: str
    stream: bool
    cost: int
    body: bytes = b""
    form: MultipartForm | None = None
    additions: tuple[tuple[str, str], ...] = ()
    """Fields that a role adds to a form."""

    def pieces(self, served_name: str) -> list[bytes | memoryview]:
        """Return the form for an engine that calls the model ``served_name``, without a copy of its file."""
        if self.form is None:
            return [self.body]
        removed = [name for name in CONTROLS if self.form.part(name) is not None]
        return self.form.pieces({"model": served_name}, additions=dict(self.additions), without=removed)


def read_media(path: str, body: bytes, form: MultipartForm | None, *, max_n: int) -> MediaBody:
    """Check a request for ``path`` and return it.

    Args:
        path: The endpoint.
        body: The body, as JSON.
        form: The body as a form, for endpoints with a file.
        max_n: Most images, or beams of a transcription, of one request.

    Raises:
        InvalidRequestError: A field is missing or not valid; the error names it.
    """
    return _read_json(path, body, max_n) if form is None else _read_audio(form, max_n)


def with_media_role(media: MediaBody, role: Role, path: str) -> MediaBody:
    """Return ``media`` with the sampling of ``role``, unless the client set it."""
    if media.form is None:
        body = with_role(media.body, role, path)
        return MediaBody(model=media.model, stream=media.stream, cost=media.cost, body=body)
    additions = tuple(
        (name, _form_value(value)) for name, value in role.sampling.items() if media.form.part(name) is None
    )
    return MediaBody(model=media.model, stream=media.stream, cost=media.cost, form=media.form, additions=additions)


def _read_audio(form: MultipartForm, max_n: int) -> MediaBody:
    file = form.part("file")
    if file is None or not file.is_file:
        raise InvalidRequestError("The form has no file; send the audio in the field file", param="file")
    if file.size == 0:
        raise InvalidRequestError("The file is empty; send an audio file", param="file")
    model = form.text("model")
    part = form.part("model")
    if not model or (part is not None and part.is_file):
        message = "The form names no model; set `model` to a name that GET /v1/models lists (field model)"
        raise InvalidRequestError(message, param="model")
    beams = form.text("n")
    if beams is not None and not (beams.isascii() and beams.isdigit() and 1 <= int(beams[:9]) <= max_n):
        raise InvalidRequestError(f"n is {beams[:20]!r}; it must be from 1 to {max_n}", param="n")
    stream = (form.text("stream") or "").strip().lower() in TRUE
    return MediaBody(model=model, stream=stream, cost=file.size // BYTES_PER_UNIT, form=form)


def _read_json(path: str, body: bytes, max_n: int) -> MediaBody:
    fields = decode(body)
    if is_controlled(fields):
        body = without_controls(body)
    if path == SPEECH:
        text = _text(fields.input)
        if not text:
            raise InvalidRequestError("input is empty; send the text to speak", param="input")
        return MediaBody(fields.model, stream=False, cost=len(text) // CHARACTERS_PER_UNIT, body=body)
    if not _text(fields.prompt):
        raise InvalidRequestError("prompt is empty; describe the image", param="prompt")
    count = _images(fields, max_n)
    return MediaBody(fields.model, stream=bool(fields.stream), cost=count * UNITS_PER_IMAGE, body=body)


def _images(fields: BodyFields, max_n: int) -> int:
    count = 1 if fields.n is None else fields.n
    if not 1 <= count <= max_n:
        raise InvalidRequestError(f"n is {count}; it must be from 1 to {max_n}", param="n")
    return count


def _text(raw: object) -> str:
    """Return a JSON string; empty for every other value."""
    if not isinstance(raw, Raw) or bytes(raw)[:1] != b'"':
        return ""
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError:
        # Half a surrogate pair: an engine reads it, and its text is not empty.
        return bytes(raw)[1:-1].decode("utf-8", "replace")


def _form_value(value: JsonValue) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
