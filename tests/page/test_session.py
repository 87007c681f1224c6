"""The session of the page through the running gateway: log-in, log-out, foreign pages, revoked keys."""

from __future__ import annotations

import stat

import pytest

from appliance.store.keys import KeyStore
from tests.conftest import http, wait_until
from tests.page.conftest import SAME, PageUnderTest, cookie_of, log_in, send_raw

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def test_a_session_can_do_what_its_key_can(site: PageUnderTest) -> None:
    cookie = {"Cookie": log_in(site.service)}
    assert send_raw(site.service, "GET", "/v1/models", cookie).status == 200
    made = send_raw(site.service, "POST", "/v1/conversations", {**cookie, **SAME, **JSON}, {})
    assert made.status == 200
    session = send_raw(site.service, "GET", "/session", cookie)
    assert session.status == 200
    assert session.json["user"] == "ada"
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    response = send_raw(site.service, "POST", "/v1/chat/completions", {**cookie, **SAME, **JSON}, body)
    assert response.status == 200
    assert site.service.row(response)["user"] == "ada"
    seen = http(site.assistant.engine.url + "/last").json["head"].lower()
    assert "cookie" not in seen
    assert "v1." not in seen


def test_an_invalid_key_opens_no_session(site: PageUnderTest) -> None:
    bodies = set()
    for key in ("", "sk-wrong", site.service.key[:-1] + "_", f"sk-{'0' * 12}-{'x' * 43}"):
        response = send_raw(site.service, "POST", "/session", {**SAME, **JSON}, {"key": key})
        assert response.status == 401
        assert "set-cookie" not in response.headers
        bodies.add(response.body)
    assert len(bodies) == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"key": 1}', b'{"other": "x"}', b"\xff", b"[" * 60_000])
def test_a_log_in_without_a_key_is_invalid(site: PageUnderTest, body: bytes) -> None:
    response = send_raw(site.service, "POST", "/session", {**SAME, **JSON}, body)
    assert response.status == 400
    assert response.json["error"]["param"] == "key"


def test_a_foreign_page_can_neither_log_in_nor_use_a_session(site: PageUnderTest) -> None:
    cookie = {"Cookie": log_in(site.service)}
    for foreign in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {}):
        refused = send_raw(site.service, "POST", "/session", {**foreign, **JSON}, {"key": site.service.key})
        assert refused.status == 403
        assert "set-cookie" not in refused.headers
        for method, path in (("POST", "/v1/conversations"), ("DELETE", "/v1/files/x"), ("POST", "/v1/responses")):
            response = send_raw(site.service, method, path, {**cookie, **foreign, **JSON}, {})
            assert (response.status, response.json["error"]["code"]) == (403, "foreign_origin"), (method, path)
        assert send_raw(site.service, "DELETE", "/session", {**cookie, **foreign}).status == 403
    refused = send_raw(site.service, "GET", "/v1/conversations", {**cookie, "Sec-Fetch-Site": "cross-site"})
    assert refused.status == 403
    # A key in the request needs no origin.
    headers = {"Authorization": f"Bearer {site.service.key}", "Sec-Fetch-Site": "cross-site", **JSON}
    assert send_raw(site.service, "POST", "/v1/conversations", headers, {}).status == 200


def test_a_session_ends_with_the_revocation_of_its_key(site: PageUnderTest) -> None:
    key = site.key("leaver")
    cookie = {"Cookie": log_in(site.service, key)}
    assert send_raw(site.service, "GET", "/v1/models", cookie).status == 200
    assert 'class="chat"' in send_raw(site.service, "GET", "/", cookie).body.decode()
    store = KeyStore(site.service.data)
    store.revoke(key)
    store.close()
    wait_until(lambda: send_raw(site.service, "GET", "/v1/models", cookie).status == 401, "the end of the session")
    response = send_raw(site.service, "GET", "/v1/conversations", cookie)
    assert (response.status, response.json["error"]["code"]) == (401, "session_ended")
    assert 'class="login"' in send_raw(site.service, "GET", "/", cookie).body.decode()


def test_a_log_out_removes_the_cookie(site: PageUnderTest) -> None:
    cookie = {"Cookie": log_in(site.service)}
    response = send_raw(site.service, "DELETE", "/session", {**cookie, **SAME})
    assert response.status == 204
    assert response.headers["set-cookie"].startswith("session=; Path=/; Max-Age=0; HttpOnly")


def test_a_form_works_without_scripts(site: PageUnderTest) -> None:
    sent = f"key={site.service.key}".encode()
    response = send_raw(site.service, "POST", "/session", {**SAME, **FORM}, sent)
    assert (response.status, response.headers["location"]) == (303, "/")
    assert send_raw(site.service, "GET", "/v1/models", {"Cookie": cookie_of(response)}).status == 200
    response = send_raw(site.service, "POST", "/session", {**SAME, **FORM}, b"key=sk-wrong")
    assert (response.status, response.headers["location"]) == (303, "/?login=failed")
    assert "not valid" in send_raw(site.service, "GET", "/?login=failed", {}).body.decode()
    many = "&".join(f"a{n}=1" for n in range(20)).encode()
    assert send_raw(site.service, "POST", "/session", {**SAME, **FORM}, many).status == 400


def test_the_page_is_served_with_a_strict_policy(site: PageUnderTest) -> None:
    response = send_raw(site.service, "GET", "/", {})
    assert response.status == 200
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "geolocation=()" in response.headers["permissions-policy"]
    assert response.headers["cache-control"] == "no-store"
    assert "ada" not in response.body.decode()


def test_static_files_are_kept_by_browsers_and_nothing_else_is_there(site: PageUnderTest) -> None:
    html = send_raw(site.service, "GET", "/", {}).body.decode()
    base = html.partition('href="/page/')[2].partition("/")[0]
    for name, kind in (("page.css", "text/css"), ("main.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        response = send_raw(site.service, "GET", f"/page/{base}/{name}", {})
        assert response.status == 200
        assert response.headers["content-type"].startswith(kind)
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert send_raw(site.service, "HEAD", f"/page/{base}/{name}", {}).status == 200
    for path in (
        f"/page/{base}/none.js", "/page/0000000000000000/main.js", "/page/", "/page", f"/page/{base}/",
        f"/page/{base}/../shell.py", f"/page/{base}/%2e%2e/shell.py", f"/page/{base}/..%2fshell.py",
        f"/page/{base}//main.js", f"/page/{base}/texts.py", "/page/x/y/z", "//",
    ):  # fmt: skip
        assert send_raw(site.service, "GET", path, {}).status == 404, path
    for path in ("/", f"/page/{base}/main.js"):
        assert send_raw(site.service, "POST", path, SAME, {}).status == 405
    assert send_raw(site.service, "PUT", "/session", SAME, {}).status == 405


def test_the_messages_of_others_are_not_there(site: PageUnderTest) -> None:
    chat = site.chat("secret", "words")
    other = {"Cookie": log_in(site.service, site.key("mallory"))}
    mine = {"Cookie": log_in(site.service)}
    path = f"/v1/page/conversations/{chat}"
    assert len(send_raw(site.service, "GET", path, mine).json["data"]) == 2
    refused = send_raw(site.service, "GET", path, other)
    unknown = send_raw(site.service, "GET", f"/v1/page/conversations/conv_{'0' * 32}", other)
    assert (refused.status, unknown.status) == (404, 404)
    assert refused.body.replace(chat.encode(), b"") == unknown.body.replace(b"conv_" + b"0" * 32, b"")
    assert send_raw(site.service, "GET", path, {}).status == 401
    for bad in ("/v1/page/conversations/x", f"{path}?after=x", f"{path}?limit=0", f"{path}?limit=101"):
        assert send_raw(site.service, "GET", bad, mine).status in (400, 404)


def test_neither_key_nor_cookie_is_in_a_log(site: PageUnderTest) -> None:
    cookie = log_in(site.service)
    send_raw(site.service, "GET", "/v1/nothing", {"Cookie": cookie})
    send_raw(site.service, "POST", "/session", {**SAME, **JSON}, {"key": site.service.key + "x"})
    for log in (site.service.gateway.log, site.assistant.log):
        text = log.read_text()
        assert site.service.key[16:] not in text
        assert cookie.partition("=")[2] not in text
    secret = site.service.data / "session.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
