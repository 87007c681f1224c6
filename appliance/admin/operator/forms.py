"""The forms of the operator's page: the fields of a body, as text, numbers and checked models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, TypeVar
from urllib.parse import parse_qs

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from appliance.errors import BodyTooLargeError, InvalidRequestError

BODY_LIMIT = 64 * 1024
MOST_FIELDS = 200
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Form = Mapping[str, str]
_ModelT = TypeVar("_ModelT", bound=BaseModel)


async def read_form(request: Request) -> Form:
    """Return the fields of a form; several values of one name are joined by commas.

    ``request.state.form`` gets them too, without control characters: a refused form keeps its fields.

    Raises :class:`RequestError` for a body that is not a form, is too large, or has control characters.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        raise InvalidRequestError("The body is not a form")
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_LIMIT:
            raise BodyTooLargeError(f"A form has at most {BODY_LIMIT} bytes")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise InvalidRequestError("The form is not valid UTF-8, or has too many fields") from None
    joined = {name: ",".join(values) for name, values in fields.items()}
    request.state.form = {CONTROL.sub("", name): CONTROL.sub(" ", value) for name, value in joined.items()}
    for name, values in fields.items():
        if any(CONTROL.search(value) for value in (name, *values)):
            raise InvalidRequestError(f"{CONTROL.sub('', name)[:40]}: control characters are not allowed")
    return joined


ReadForm = Annotated[Form, Depends(read_form)]


def validated(model: type[_ModelT], **values: object) -> _ModelT:
    """Return ``values`` as a ``model``; raises :class:`InvalidRequestError` that names the field."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidRequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def whole_number(form: Form, name: str) -> int | None:
    """Return a field as a number, ``None`` if it is empty; raises :class:`InvalidRequestError`."""
    text = form.get(name, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise InvalidRequestError(f"{name}: write a whole number")
    return int(text)
