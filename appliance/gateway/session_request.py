"""The requests to ``/session``: the key of a log-in, and responses for scripts and for plain forms. Pure."""

from __future__ import annotations

import json
from urllib.parse import parse_qs

from appliance.errors import AuthenticationError, InvalidRequestError
from appliance.gateway import reply
from appliance.http1.types import JSON, ClientResponder, Request
from appliance.store.models import Key

_FORM = b"application/x-www-form-urlencoded"
_UNCACHED = b"cache-control: no-store\r\n"


def read_login(request: Request) -> str:
    """Return the key in the body of a log-in, which is JSON or a form.

    Raises :class:`InvalidRequestError` if the body has none.
    """
    if _is_form(request):
        try:
            fields = parse_qs(request.body.decode("utf-8", "replace"), max_num_fields=8)
        except ValueError:
            raise InvalidRequestError("The form has too many fields; send the field 'key'", param="key") from None
        return fields.get("key", [""])[0]
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("key"), str):
        raise InvalidRequestError('Send the API key as {"key": "sk-..."}', param="key")
    return str(body["key"])


def session_body(key: Key, expiry: int | None = None) -> dict[str, object]:
    """Return the session of ``key`` for JSON; ``expiry`` is its end, in seconds since the epoch."""
    return {"object": "session", "user": key.user, "key_id": key.id, "expires_at": expiry}


def respond_session(
    request: Request,
    client: ClientResponder,
    result: dict[str, object] | AuthenticationError | None,
    headers: bytes = b"",
) -> None:
    """Respond with ``result``, or lead the form of a browser without scripts back to the page.

    Args:
        request: The request.
        client: Receives the response.
        result: The session, the error of a log-in, or nothing after a log-out.
        headers: Lines with the cookie.
    """
    headers = _UNCACHED + headers
    if _is_form(request):
        target = b"/?login=failed" if isinstance(result, AuthenticationError) else b"/"
        client.respond(303, b"", headers=headers + b"location: %s\r\n" % target)
    elif isinstance(result, AuthenticationError):
        reply.respond_error(client, result, request.path, headers)
    elif result is None:
        client.respond(204, b"", headers=headers)
    else:
        client.respond(200, json.dumps(result).encode(), JSON, headers)


def _is_form(request: Request) -> bool:
    return request.method == "POST" and request.headers.get(b"content-type", b"").startswith(_FORM)
