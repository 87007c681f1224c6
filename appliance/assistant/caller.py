"""The caller of a request: the gateway has authenticated it and names it in headers.

Only the gateway reaches the assistant's socket, and it removes these headers from the requests of clients.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.contract.model import USER_PATTERN
from appliance.errors import InternalError

USER_HEADER = "x-appliance-user"
KEY_HEADER = "x-appliance-key"
BACKGROUND_HEADER = "x-appliance-background"
REQUEST_ID_HEADER = "x-request-id"

_USER = re.compile(USER_PATTERN)
_KEY = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant and the key by which it calls."""

    user: str
    """The tenant, ``ada`` or ``ada/end-user``: everything that it creates belongs to it alone."""
    key_id: str
    request_id: str

    def headers(self, *, background: bool = False) -> dict[str, str]:
        """Return the headers with which the gateway serves inference for this caller."""
        found = {USER_HEADER: self.user, KEY_HEADER: self.key_id, REQUEST_ID_HEADER: self.request_id}
        return {**found, BACKGROUND_HEADER: "1"} if background else found


def names_caller(user: str, key_id: str) -> bool:
    """Return whether ``user`` and ``key_id`` have the form of a tenant and of the id of a key."""
    return _USER.fullmatch(user) is not None and _KEY.fullmatch(key_id) is not None


def read_caller(headers: Mapping[str, str]) -> Caller:
    """Return the caller of a request with ``headers``.

    Raises :class:`InternalError` if they do not name one: the request did not pass the gateway.
    """
    user, key_id = headers.get(USER_HEADER, ""), headers.get(KEY_HEADER, "")
    if not names_caller(user, key_id):
        raise InternalError("The request names no user; the assistant accepts requests of the gateway only")
    return Caller(user=user, key_id=key_id, request_id=headers.get(REQUEST_ID_HEADER, "")[:64])
