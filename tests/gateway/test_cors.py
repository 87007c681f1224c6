"""Origins of web pages: which are allowed, which headers they get, and how a site names them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from appliance.contract.model import Gateway
from appliance.errors import PermissionDeniedError
from appliance.gateway.cors import BrowserOrigins

CHAT = "https://chat.example.org"
NOTES = "app://obsidian.md"
TWO = BrowserOrigins((CHAT, NOTES))
EVERY = BrowserOrigins(("*",))


def fields(lines: bytes) -> dict[str, str]:
    """Return ``lines`` as headers; each occurs once and has its CRLF."""
    assert not lines or lines.endswith(b"\r\n")
    pairs = [line.partition(": ") for line in lines.decode("latin1").split("\r\n")[:-1]]
    found = {name: value for name, _, value in pairs}
    assert len(found) == len(pairs)
    return found


@pytest.mark.parametrize(
    ("origins", "origin", "named"),
    [
        (TWO, CHAT, CHAT),
        (TWO, NOTES, NOTES),
        (EVERY, CHAT, "*"),
        (EVERY, "null", "*"),
        (TWO, "https://other.example.org", None),
        (TWO, "http://chat.example.org", None),
        (TWO, f"{CHAT}:8443", None),
        (TWO, f"{CHAT}.evil.org", None),
        (TWO, f"{CHAT}/", None),
        (TWO, CHAT.upper(), None),
        (TWO, f"{CHAT}, {NOTES}", None),
        (TWO, "null", None),
        (TWO, "", None),
        (TWO, "*", None),
        (BrowserOrigins(()), CHAT, None),
        (TWO, None, None),
        (EVERY, None, None),
    ],
)
def test_a_response_names_an_allowed_origin(origins: BrowserOrigins, origin: str | None, named: str | None) -> None:
    found = fields(origins.headers(None if origin is None else origin.encode()))
    assert found.get("access-control-allow-origin") == named
    assert bool(found) == (named is not None)
    assert found.get("vary") == ("origin" if named not in (None, "*") else None)
    if named:
        assert {"x-request-id", "request-id", "retry-after", "x-queue-position", "x-queue-wait-ms"} <= set(
            found["access-control-expose-headers"].split(", ")
        )


@given(st.binary(max_size=60))
def test_no_other_origin_is_named_and_no_header_is_copied_unchecked(origin: bytes) -> None:
    lines = TWO.headers(origin)
    assert bool(lines) == (origin in (CHAT.encode(), NOTES.encode()))
    assert fields(EVERY.headers(origin))["access-control-allow-origin"] == "*"


@given(st.dictionaries(st.sampled_from([b"origin", b"access-control-request-headers", b"cookie"]), st.binary()))
def test_credentials_are_never_allowed_and_no_header_is_injected(headers: dict[bytes, bytes]) -> None:
    for origins in (TWO, EVERY):
        try:
            lines = origins.preflight({b"origin": CHAT.encode()} | headers)
        except PermissionDeniedError:
            continue
        assert set(fields(lines)) <= {
            "access-control-allow-methods",
            "access-control-allow-headers",
            "access-control-max-age",
        }


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        (b"authorization,content-type", "authorization,content-type"),
        (b" x-stainless-os , anthropic-version ", "x-stainless-os , anthropic-version"),
        (b"X-API-Key", "X-API-Key"),
        (None, None),
        (b"", None),
        (b"*", "*"),
        (b"a b", None),
        (b"a,,b", None),
        (b"a: b", None),
        (b"a\r\nset-cookie: x", None),
        (b"authorization;q=1", None),
    ],
)
def test_a_preflight_allows_the_requested_headers(asked: bytes | None, allowed: str | None) -> None:
    headers = {b"origin": CHAT.encode(), b"access-control-request-method": b"POST"}
    if asked is not None:
        headers[b"access-control-request-headers"] = asked
    found = fields(TWO.preflight(headers))
    assert found["access-control-allow-methods"] == "GET, HEAD, POST, OPTIONS"
    assert found["access-control-max-age"] == "7200"
    listed = found["access-control-allow-headers"]
    if allowed is None:
        assert {"authorization", "content-type", "x-api-key", "anthropic-version"} <= set(listed.split(", "))
    else:
        assert listed == allowed


@pytest.mark.parametrize(("asked", "granted"), [(b"true", "true"), (b"false", None), (None, None)])
def test_a_private_network_is_allowed_if_the_browser_requests_it(asked: bytes | None, granted: str | None) -> None:
    headers = {b"origin": CHAT.encode()}
    if asked is not None:
        headers[b"access-control-request-private-network"] = asked
    assert fields(TWO.preflight(headers)).get("access-control-allow-private-network") == granted


@pytest.mark.parametrize("origin", [b"https://other.example.org", b"null", b"", b"\xff" * 300])
@pytest.mark.parametrize("origins", [TWO, BrowserOrigins(())])
def test_a_preflight_of_another_origin_is_403_and_names_the_setting(origins: BrowserOrigins, origin: bytes) -> None:
    with pytest.raises(PermissionDeniedError, match=re.escape("add it to gateway.browser_origins")) as refused:
        origins.preflight({b"origin": origin})
    assert (refused.value.status, refused.value.code) == (403, "origin_not_allowed")
    assert repr(origin[:80].decode("latin1")) in str(refused.value)


@pytest.mark.parametrize(
    "origin",
    [
        "*", CHAT, NOTES, "http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:3000",
        "capacitor://localhost", "tauri://localhost", "moz-extension://6d3c2b1a-0000-4000-8000-000000000000",
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop", "http://example.org:443", "https://xn--bcher-kva.example",
    ],
)  # fmt: skip
def test_an_origin_as_browsers_send_it_is_accepted(origin: str) -> None:
    assert Gateway(browser_origins=(origin,)).browser_origins == (origin,)


@pytest.mark.parametrize(
    ("origins", "says"),
    [
        ((f"{CHAT}/",), f"write '{CHAT}'"),
        ((f"{CHAT}/app?x#y",), f"write '{CHAT}'"),
        (("https://Chat.Example.org",), f"write '{CHAT}'"),
        (("HTTPS://chat.example.org",), f"write '{CHAT}'"),
        ((f"{CHAT}:443",), f"write '{CHAT}'"),
        (("http://localhost:80",), "write 'http://localhost'"),
        (("http://localhost:03000",), "write 'http://localhost:3000'"),
        (("chat.example.org",), f"write '{CHAT}'"),
        (("localhost:3000",), "write 'https://localhost:3000'"),
        (("https://*.example.org",), "has a wildcard; write each origin, or only '*'"),
        (("*", CHAT), "'*' allows every origin; remove the others"),
        (("null",), "'null' allows every local file and sandboxed frame"),
        (("file://",), "is not an origin; write scheme://host"),
        (("https://",), "is not an origin"),
        (("https://user@chat.example.org",), "is not an origin"),
        (("https://chat.example.org:99999",), "is not an origin"),
        (("https://bücher.example",), "is not an origin"),
        (("https://chat.example.org https://b.example.org",), "is not an origin"),
        (("",), "is not an origin"),
        ((f"{CHAT}\n",), "is not an origin"),
        ((CHAT, f"{NOTES}/"), f"write '{NOTES}'"),
    ],
)
def test_an_origin_that_no_browser_sends_is_rejected_with_the_right_form(
    origins: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        Gateway(browser_origins=origins)


@given(st.text(max_size=30))
def test_an_accepted_origin_can_be_a_header(origin: str) -> None:
    try:
        Gateway(browser_origins=(origin,))
    except ValidationError:
        return
    assert origin == "*" or re.fullmatch(r"[a-z][a-z0-9+.-]*://[!-~]+", origin)
