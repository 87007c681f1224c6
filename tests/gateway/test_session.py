"""Sessions of browsers: cookies that stand for a key, and requests that a foreign page causes. No socket."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from appliance.errors import AuthenticationError, PermissionDeniedError, StartError
from appliance.gateway.auth import Authenticator
from appliance.gateway.session import SESSION_S, BrowserSessions, require_same_origin
from appliance.gateway.session_secret import NAME, read_secret
from appliance.store.models import Key

SECRET = bytes(range(32))
TEXT = f"sk-{'a1' * 6}-{'x' * 43}"
LOOPBACK = {b"host": b"127.0.0.1:8000"}
EDGE = {b"host": b"llm.example.org", b"x-forwarded-proto": b"https"}


def key(text: str = TEXT, *, expires_at: float | None = None, revoked_at: float | None = None) -> Key:
    digest = sha256(text.encode()).digest()
    return Key(
        id=text.split("-")[1], user="ada", digest=digest, created_at=0, expires_at=expires_at, revoked_at=revoked_at
    )


class Desk:
    """Sessions with a clock that the test sets."""

    def __init__(self, *keys: Key, secret: bytes = SECRET) -> None:
        self.now = 1000.0
        self.authenticator = Authenticator(lambda: self.now)
        self.authenticator.replace(keys or (key(),))
        self.sessions = BrowserSessions(secret, self.authenticator, lambda: self.now)

    def cookie(self, headers: dict[bytes, bytes] = LOOPBACK, text: str = TEXT) -> bytes:
        line = self.sessions.open(text, headers)[2]
        return line.removeprefix(b"set-cookie: ").partition(b";")[0]

    def user(self, cookie: bytes, headers: dict[bytes, bytes] = LOOPBACK) -> str | None:
        found = self.sessions.key_of({**headers, b"cookie": cookie})
        return found.user if found is not None else None


def test_a_cookie_is_the_key_until_it_expires() -> None:
    desk = Desk()
    cookie = desk.cookie()
    assert desk.user(cookie) == "ada"
    assert TEXT.encode() not in cookie
    desk.now += SESSION_S - 1
    assert desk.user(cookie) == "ada"
    desk.now += 1
    with pytest.raises(AuthenticationError, match="log in again"):
        desk.user(cookie)


def test_a_session_ends_with_its_key() -> None:
    desk = Desk()
    cookie = desk.cookie()
    for keys in ([], [key(revoked_at=1.0)], [key(expires_at=999.0)], [key(TEXT[:-1] + "y")]):
        desk.authenticator.replace(keys)
        with pytest.raises(AuthenticationError):
            desk.user(cookie)
    desk.authenticator.replace([key()])
    assert desk.user(cookie) == "ada"


def test_no_part_of_a_cookie_can_be_changed() -> None:
    other = f"sk-{'b2' * 6}-{'z' * 43}"
    desk = Desk(key(), key(other))
    cookie = desk.cookie()
    name, _, value = cookie.partition(b"=")
    version, key_id, expiry, mac = value.split(b".")
    for parts in (
        (b"v2", key_id, expiry, mac),
        (version, b"b2" * 6, expiry, mac),
        (version, key_id, b"%d" % (int(expiry) + 1), mac),
        (version, key_id, expiry, mac[:-1] + (b"0" if mac[-1:] != b"0" else b"1")),
        (version, key_id, expiry, b""),
        (version, key_id, expiry, mac.upper()),
        (version, key_id, expiry),
    ):
        with pytest.raises(AuthenticationError):
            desk.user(name + b"=" + b".".join(parts))
    with pytest.raises(AuthenticationError):
        Desk(key(), secret=bytes(32)).user(cookie)


def test_an_invalid_key_has_one_message() -> None:
    desk = Desk()
    messages = set()
    for text in ("", "x", TEXT[:-1] + "y", f"sk-{'00' * 6}-{'x' * 43}", "ключ", "sk-\n", "a" * 10_000):
        with pytest.raises(AuthenticationError) as caught:
            desk.sessions.open(text, LOOPBACK)
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("headers", "name", "secure"),
    [
        (LOOPBACK, "session", False),
        ({b"host": b"localhost:8000"}, "session", False),
        ({b"host": b"[::1]:8000"}, "session", False),
        (EDGE, "__Host-session", True),
        ({b"host": b"llm.example.org", b"origin": b"https://llm.example.org"}, "__Host-session", True),
        ({b"host": b"127.0.0.1", b"x-forwarded-proto": b"https"}, "__Host-session", True),
    ],
)
def test_the_cookie_is_hidden_from_scripts_and_other_sites(
    headers: dict[bytes, bytes], name: str, secure: bool
) -> None:
    line = Desk().sessions.open(TEXT, headers)[2].decode()
    assert line.startswith(f"set-cookie: {name}=v1.")
    assert "; HttpOnly" in line
    assert "; SameSite=Strict" in line
    assert "; Path=/" in line
    assert "Domain" not in line
    assert ("; Secure" in line) is secure
    assert line.endswith("\r\n")


def test_a_log_in_without_tls_from_another_machine_is_refused() -> None:
    for host in (b"192.168.1.5:8000", b"llm.example.org", b"127.0.0.1.example.org", b"localhost.example.org", b""):
        with pytest.raises(PermissionDeniedError, match="https"):
            Desk().sessions.open(TEXT, {b"host": host})


def test_over_tls_only_the_protected_cookie_counts() -> None:
    desk = Desk()
    value = desk.cookie(EDGE).partition(b"=")[2]
    assert desk.user(b"__Host-session=" + value, EDGE) == "ada"
    # A neighbouring host can set a cookie without the prefix.
    assert desk.user(b"session=" + value, EDGE) is None
    assert desk.user(b"other=1; __Host-session=" + value + b"; more=2", EDGE) == "ada"
    assert desk.user(b"other=1", EDGE) is None


@pytest.mark.parametrize(
    ("method", "headers", "accepted"),
    [
        ("POST", {b"sec-fetch-site": b"same-origin"}, True),
        ("POST", {b"origin": b"http://127.0.0.1:8000"}, True),
        ("POST", {b"sec-fetch-site": b"same-origin", b"origin": b"http://127.0.0.1:8000"}, True),
        ("POST", {}, False),
        ("POST", {b"sec-fetch-site": b"none"}, False),
        ("POST", {b"sec-fetch-site": b"same-site"}, False),
        ("POST", {b"sec-fetch-site": b"cross-site"}, False),
        ("POST", {b"sec-fetch-site": b"cross-site", b"origin": b"http://127.0.0.1:8000"}, False),
        ("POST", {b"origin": b"null"}, False),
        ("POST", {b"origin": b"http://127.0.0.1:8001"}, False),
        ("POST", {b"origin": b"http://127.0.0.1:8000.evil.example"}, False),
        ("DELETE", {b"origin": b"https://evil.example"}, False),
        ("PUT", {}, False),
        ("GET", {}, True),
        ("GET", {b"sec-fetch-site": b"same-origin"}, True),
        ("GET", {b"sec-fetch-site": b"none"}, True),
        ("GET", {b"sec-fetch-site": b"same-site"}, False),
        ("GET", {b"sec-fetch-site": b"cross-site"}, False),
        ("HEAD", {b"sec-fetch-site": b"cross-site"}, False),
    ],
)
def test_only_the_page_of_this_host_can_use_a_session(
    method: str, headers: dict[bytes, bytes], accepted: bool
) -> None:
    if accepted:
        require_same_origin(method, {**LOOPBACK, **headers})
    else:
        with pytest.raises(PermissionDeniedError):
            require_same_origin(method, {**LOOPBACK, **headers})


def test_behind_tls_a_plain_origin_is_foreign() -> None:
    require_same_origin("POST", {**EDGE, b"origin": b"https://llm.example.org"})
    with pytest.raises(PermissionDeniedError):
        require_same_origin("POST", {**EDGE, b"origin": b"http://llm.example.org"})


def test_a_key_in_the_request_takes_precedence() -> None:
    desk = Desk()
    cookie = {b"cookie": desk.cookie(), **LOOPBACK, b"sec-fetch-site": b"same-origin"}
    found = desk.sessions.authenticate("POST", cookie)
    assert found is not None
    assert found.user == "ada"
    for credential in ({b"authorization": b"Bearer x"}, {b"x-api-key": b"x"}, {b"api-key": b"x"}):
        assert desk.sessions.authenticate("POST", {**cookie, **credential}) is None
    # The proxy in front of a site may need a password of its own.
    assert desk.sessions.authenticate("POST", {**cookie, b"authorization": b"Basic eA=="}) is not None


def test_the_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first = read_secret(tmp_path / "data")
    assert len(first) == 32
    assert read_secret(tmp_path / "data") == first
    assert read_secret(tmp_path / "other") != first
    assert (tmp_path / "data" / NAME).stat().st_mode & 0o777 == 0o600
    assert [one.name for one in (tmp_path / "data").iterdir()] == [NAME]


def test_a_damaged_secret_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"short")
    with pytest.raises(StartError, match="has 5 bytes, not 32; remove it"):
        read_secret(tmp_path)
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with pytest.raises(StartError, match="cannot use"):
        read_secret(tmp_path)


def test_a_value_that_another_host_sets_opens_no_session() -> None:
    # A cookie of the whole domain: its value has a comma and the name of ours.
    desk, other = Desk(key()), Desk(key())
    own = desk.cookie(EDGE)
    assert desk.user(own + b"; x=1," + other.cookie(EDGE), EDGE) == "ada"
    assert desk.user(b"x=1," + own, EDGE) is None
    assert desk.user(own + b"; " + own.partition(b"=")[0] + b"=v1.x", EDGE) == "ada"
