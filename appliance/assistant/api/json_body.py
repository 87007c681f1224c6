"""The JSON body of a request: limits of its size and depth, and texts that every database can store."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import msgspec
from fastapi import Depends, Request

from appliance.errors import BodyTooLargeError, InvalidRequestError

MAX_DEPTH = 64
"""Levels of lists and objects within one another."""


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """Return the JSON object of ``request``, whose body has at most ``limit`` bytes; an empty body is ``{}``.

    Raises :class:`BodyTooLargeError` or :class:`InvalidRequestError`.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise BodyTooLargeError(f"The body is larger than {limit} bytes; send less at a time.")
    return parse_object(bytes(body)) if body else {}


async def check_json(request: Request) -> None:
    """Apply :func:`parse_object` to a request whose body the framework validates; it accepts more itself.

    A dependency of a router, see :data:`CHECKED`. The framework has read the body already.
    """
    body = await request.body()
    if body:
        parse_object(body)


CHECKED = (Depends(check_json),)
"""The dependencies of a router whose endpoints have their bodies as parameters."""


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Raises :class:`InvalidRequestError` for text that is not JSON, for lists and objects deeper than
    :data:`MAX_DEPTH`, and for a NUL character, which PostgreSQL does not store.
    """
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The body is not valid JSON ({error}).", param="body") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(found, dict):
        raise InvalidRequestError("The body is not a JSON object.", param="body")
    _check_depth(found)
    # JSON has a NUL character only as an escape.
    if rb"\u0000" in body and (place := _with_nul(found, "")) is not None:
        raise InvalidRequestError(f"'{place}' has a NUL character.", param=place)
    return found


def refuse_unknown(body: Mapping[str, Any], fields: Set[str]) -> None:
    """Raise :class:`InvalidRequestError` for a field of ``body`` that is not among ``fields``."""
    for name in body:
        if name not in fields:
            raise InvalidRequestError(
                f"Unknown parameter: '{name[:64]}'.", code="unknown_parameter", param=name[:64]
            )


def _check_depth(found: dict[str, Any]) -> None:
    depth = 0
    level: list[Any] = [found]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]


def _with_nul(value: object, place: str) -> str | None:
    """Return the place of the first text or name in ``value``, at ``place``, that has a NUL character."""
    if isinstance(value, str):
        return (place or "body") if "\0" in value else None
    if isinstance(value, list):
        inner = ((f"{place}[{at}]", one) for at, one in enumerate(value))
    elif isinstance(value, dict):
        if any("\0" in name for name in value):
            return place or "body"
        inner = ((f"{place}.{name}" if place else name, one) for name, one in value.items())
    else:
        return None
    return next((found for where, one in inner if (found := _with_nul(one, where)) is not None), None)


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(f"The body has more than {MAX_DEPTH} levels.", param="body")
