"""The metadata of an object, by the rules of OpenAI's API."""

from __future__ import annotations

from appliance.errors import InvalidRequestError

MAX_PAIRS = 16
"""Pairs of metadata, and of the attributes of a file in a vector store."""
MAX_NAME = 64
MAX_VALUE = 512


def read_metadata(value: object, param: str = "metadata") -> dict[str, str]:
    """Return ``value`` of a request as pairs of texts; ``None`` gives none.

    Raises :class:`InvalidRequestError` with the place of the pair that is not valid.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequestError(f"'{param}' is not an object.", param=param)
    if len(value) > MAX_PAIRS:
        raise InvalidRequestError(f"'{param}' has {len(value)} pairs; at most {MAX_PAIRS} fit.", param=param)
    for name, text in value.items():
        place = f"{param}.{name[:MAX_NAME]}"
        if not 0 < len(name) <= MAX_NAME:
            raise InvalidRequestError(f"A name in '{param}' has 1 to {MAX_NAME} characters.", param=place)
        if not isinstance(text, str):
            raise InvalidRequestError(f"'{place}' is not a text.", param=place)
        if len(text) > MAX_VALUE:
            raise InvalidRequestError(
                f"'{place}' has {len(text)} characters; at most {MAX_VALUE} fit.", param=place
            )
    return dict(value)
