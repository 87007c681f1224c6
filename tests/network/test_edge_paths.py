"""Case 3: the paths that the edge passes, and bytes that two HTTP parsers in a row may read differently."""

from __future__ import annotations

import re
import socket
import ssl
import warnings
from collections.abc import Callable

import pytest

from tests.conftest import wait_until
from tests.network.client import PATH, NetworkClient, chat
from tests.network.site import NetworkSite

RecordRow = Callable[[str, str, str], None]

CONTROL = [
    "/metrics", "/health", "/ready", "/sleep", "/wake_up", "/pause", "/resume", "/load", "/server_info",
    "/version", "/collective_rpc", "/reset_prefix_cache", "/invocations", "/tokenize/", "/detokenize/x",
    "/pooling", "/score", "/docs", "/openapi.json", "/inference/v1/generate", "/v2/rerank",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "//v1/chat/completions", "/v1//chat/completions",
    "/v1/./chat/completions", "/v1/../metrics", "/v1/%2e%2e/metrics", "/v1/..%2fmetrics",
    "/v1/%2E%2E%2Fsleep", "/v1%2fmodels", "/%6detrics", "/v1/%2e%2e/%73leep",
    "/v1/chat/completions%00", "/v1/chat/completions/", "/v1/chat/completions;x", "/V1/chat/completions",
    "/v1/../v1/../sleep", "/v1/%252e%252e/metrics", "/v1/\\..\\metrics",
    "/.well-known/acme-challenge/../../wg0.key",
]  # fmt: skip


SPELLINGS = ["/%76%31/chat/completions", "/v1/chat%2fcompletions", "/v1/%63hat/completions"]
"""Spellings of :data:`PATH` (RFC 3986, 2.3), which nginx and the gateway decode equally."""


def raw(client: NetworkClient, data: bytes, *, tls: bool = True, port: int = 443, user: int = 0) -> bytes:
    """Send bytes and return all bytes of the responses."""
    with client.connect(tls=tls, port=port, user=user, timeout=15) as channel:
        channel.sendall(data)
        seen = b""
        try:
            while piece := channel.recv(65536):
                seen += piece
        except OSError:
            pass
        return seen


def statuses(responses: bytes) -> list[int]:
    """Return the status of each response."""
    return [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3}) ", responses)]


def test_an_encoded_path_of_the_api_passes(site: NetworkSite) -> None:
    for path in SPELLINGS:
        assert site.client.post(path, chat("tokens=1"), user=2).status == 200


def test_other_paths_are_rejected(site: NetworkSite, record_row: RecordRow) -> None:
    before = site.usage().get("user1", {}).get("requests", 0)
    found = {}
    for number, path in enumerate(CONTROL):
        # The addresses differ, because the edge limits fast requests of one address.
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {site.client.domain}\r\nAuthorization: Bearer {site.client.key(1)}\r\n"
        )
        tail = "Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
        found[path] = statuses(raw(site.client, (head + tail).encode(), user=number))
    passed = {path: codes for path, codes in found.items() if codes not in ([400], [404], [405])}
    assert not passed
    assert (
        site.client.post(PATH, chat("tokens=1"), user=1).status == 200
    )  # the control: the same connection, a path of the API
    wait_until(lambda: site.usage()["user1"]["requests"] == before + 1, "one request of user1 is recorded")
    record_row(
        f"3 {len(CONTROL)} engine-control, doubled and encoded paths",
        "400, 404 or 405; no request at an engine",
        "as expected",
    )


@pytest.mark.parametrize(
    ("line", "hosts"),
    [
        ("GET /v1/models", ["other.example.org"]),
        ("GET /v1/models", ["10.77.0.1"]),
        ("GET /v1/models", ["127.0.0.1:8101"]),
        ("GET /v1/models", [""]),
        ("GET /v1/models", []),
        ("GET /v1/models", ["llm.example.org", "llm.example.org"]),
        ("GET /v1/models", ["llm.example.org@evil.example.org"]),
        ("GET /v1/models", ["llm.example.org/../x"]),
        ("GET /v1/models", ["llm.example.org evil"]),
        ("GET https://evil.example.org/v1/models", ["llm.example.org"]),
        ("GET http://10.77.0.1:8000/metrics", ["llm.example.org"]),
        ("CONNECT 10.77.0.1:8000", ["llm.example.org"]),
        ("TRACE /v1/models", ["llm.example.org"]),
    ],
)
def test_forged_host_headers_are_rejected(site: NetworkSite, line: str, hosts: list[str]) -> None:
    lines = [
        f"{line} HTTP/1.1",
        *(f"Host: {host}" for host in hosts),
        f"Authorization: Bearer {site.client.key(2)}",
    ]
    responses = raw(site.client, ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode(), user=3)
    assert set(statuses(responses)) <= {400, 404, 405}, responses
    assert b"qwen3" not in responses


def test_control_the_host_name_of_the_edge_is_served(site: NetworkSite, record_row: RecordRow) -> None:
    for host in ("llm.example.org", "LLM.example.org", "llm.example.org:443"):
        lines = ["GET /v1/models HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {site.client.key(2)}"]
        responses = raw(site.client, ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode(), user=3)
        assert statuses(responses) == [200], responses
        assert b"qwen3" in responses
    record_row("3 Host tricks (13)", "no response, 400, 404 or 405", "as expected; the right name: 200")


def test_an_unknown_name_gets_no_certificate(site: NetworkSite, record_row: RecordRow) -> None:
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    for name in ("other.example.org", site.edge()):
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
            site.client.connect(name=name, context=unverified)
    site.client.connect(context=unverified).close()
    with pytest.raises(ssl.SSLCertVerificationError):
        site.client.connect(context=ssl.create_default_context())
    record_row("3 unknown names in the handshake", "no certificate", "unrecognized_name")


def test_plain_http_is_redirected(site: NetworkSite, record_row: RecordRow) -> None:
    response = site.client.request("POST", PATH, chat(), tls=False, port=80)
    assert response.status == 301
    assert response.headers["location"] == f"https://{site.client.domain}{PATH}"
    assert raw(site.client, b"GET / HTTP/1.1\r\nHost: other.example.org\r\n\r\n", tls=False, port=80) == b""
    assert statuses(raw(site.client, b"GET /v1/models HTTP/1.1\r\nHost: llm.example.org\r\n\r\n", tls=False)) == [
        400
    ]
    record_row("3 plain HTTP", "301 to https, 444 for other names, 400 on the TLS port", "as expected")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_versions(site: NetworkSite, version: ssl.TLSVersion, record_row: RecordRow) -> None:
    old = version == ssl.TLSVersion.TLSv1_1
    context = ssl.create_default_context(cadata=(site.folder / "root.pem").read_text())
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    if old:
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            site.client.connect(context=context)
        record_row("3 TLS 1.1", "refused; 1.2 and 1.3 served", "alert protocol version")
        return
    with site.client.connect(context=context) as channel:
        assert isinstance(channel, ssl.SSLSocket)
        assert channel.version() == version.name.replace("_", ".").replace("TLSv1.", "TLSv1.")


# Request smuggling: the outer request has the key of user4, the hidden one that of user39, used only there.

HIDDEN_USER = 39


def hidden(client: NetworkClient) -> bytes:
    """Return the hidden request."""
    body = b'{"model":"qwen3-30b","messages":[{"role":"user","content":"fake:tokens=1"}]}'
    return client.head("POST", PATH, body, HIDDEN_USER, {"Connection": "close"}) + body


def outer(client: NetworkClient, framing: bytes, body: bytes) -> bytes:
    """Return a request with the header lines ``framing``."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: {client.domain}\r\nAuthorization: Bearer {client.key(4)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n" + framing + b"\r\n\r\n" + body


WHOLE = b'{"model":"qwen3-30b","messages":[{"role":"user","content":"fake:tokens=1"}]}'


def chunked(body: bytes, extension: bytes = b"", end: bytes = b"\r\n") -> bytes:
    return b"%x%s%s%s\r\n0\r\n\r\n" % (len(body), extension, end, body)


def payloads(client: NetworkClient) -> dict[str, bytes]:
    """Return requests that two parsers may read differently."""
    secret = hidden(client)
    both = b"Content-Length: %d\r\nTransfer-Encoding: %s"
    end = b"0\r\n\r\n" + secret
    everything = chunked(WHOLE) + secret
    size = len(everything)
    twice = b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"
    folded = b"X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: %d"
    return {
        "CL.TE": outer(client, both % (len(end), b"chunked"), end),
        "CL.TE with a body": outer(client, both % (size, b"chunked"), everything),
        "TE.CL": outer(client, both % (4, b"chunked"), b"%x\r\n%s\r\n0\r\n\r\n" % (len(secret), secret)),
        "TE.TE identity": outer(client, twice, everything),
        "TE cow": outer(client, both % (size, b"chunked, cow"), everything),
        "TE xchunked": outer(client, both % (size, b"xchunked"), everything),
        "TE tab": outer(client, both % (size, b"\tchunked"), everything),
        "TE with a space before the colon": outer(
            client, b"Transfer-Encoding : chunked\r\nContent-Length: %d" % size, everything
        ),
        "TE on a folded line": outer(
            client, folded % size, everything
        ),
        "TE after a bare LF": outer(
            client, b"X: y\nTransfer-Encoding: chunked\r\nContent-Length: %d" % len(end), end
        ),
        "two lengths": outer(client, b"Content-Length: 0\r\nContent-Length: %d" % len(secret), secret),
        "a length list": outer(client, b"Content-Length: 0, %d" % len(secret), secret),
        "a signed length": outer(client, b"Content-Length: +%d" % len(WHOLE + secret), WHOLE + secret),
        "a hexadecimal length": outer(client, b"Content-Length: 0x%x" % len(WHOLE + secret), WHOLE + secret),
        "a plain chunk extension": outer(
            client, b"Transfer-Encoding: chunked", chunked(WHOLE, b";a=b") + secret
        ),
        "a chunk extension over lines": outer(
            client, b"Transfer-Encoding: chunked", chunked(WHOLE, b";a=" + b"b" * 64 + b"\n" + b"%x" % len(secret))
            + secret,
        ),
        "a chunk extension with a bare LF": outer(
            client, b"Transfer-Encoding: chunked", chunked(WHOLE, b";x", b"\n") + secret
        ),
        "a chunk size that overflows": outer(
            client, b"Transfer-Encoding: chunked", b"1%016x\r\n%s\r\n0\r\n\r\n%s" % (len(WHOLE), WHOLE, secret)
        ),
        "a chunk longer than its size": outer(
            client, b"Transfer-Encoding: chunked", b"1\r\n%s%s\r\n0\r\n\r\n" % (WHOLE, secret)
        ),
        "a trailer": outer(
            client, b"Transfer-Encoding: chunked\r\nTrailer: Content-Length",
            b"%x\r\n%s\r\n0\r\nContent-Length: %d\r\n\r\n%s" % (len(WHOLE), WHOLE, len(secret), secret),
        ),
    }  # fmt: skip


def hidden_requests(site: NetworkSite) -> int:
    """Return the number of requests of the user whose key only hidden requests have."""
    return int(site.usage().get(f"user{HIDDEN_USER}", {}).get("requests", 0))


def second_responses(seen: dict[str, list[int]]) -> int:
    """Return the number of hidden requests that got their own response: those are not hidden."""
    assert all(codes and set(codes) <= {200, 400, 501} for codes in seen.values()), seen
    return sum(code == 200 for codes in seen.values() for code in codes[1:])


@pytest.mark.parametrize("path", ["through nginx", "from nginx's place to the gateway"])
def test_smuggling(site: NetworkSite, path: str, record_row: RecordRow) -> None:
    """Each recorded request has one response, for any reading by the parsers; no other request is recorded."""
    before = hidden_requests(site)
    client, port = site.client, 443
    if path != "through nginx":
        client, port = site.client.on_machine(site.hosts["vps-a"].machine, "10.77.0.1", 8000), 8000
    seen = {
        name: statuses(raw(client, data, tls=client.tls, port=port, user=10 + number))
        for number, (name, data) in enumerate(payloads(client).items())
    }
    second = second_responses(seen)
    wait_until(lambda: hidden_requests(site) >= before + second, "the requests with a response are recorded")
    # A hidden request would be recorded before this one.
    marker = site.usage().get("user5", {}).get("requests", 0)
    assert client.post(PATH, chat("tokens=1"), user=5).status == 200
    wait_until(lambda: site.usage().get("user5", {}).get("requests", 0) > marker, "a later request is recorded")
    assert hidden_requests(site) == before + second, seen
    refused = sum(codes[0] != 200 for codes in seen.values())
    record_row(f"3 request smuggling {path} ({len(seen)} ways)", "refused, or a response per request; none hidden",
        f"{refused} refused, {len(seen) - refused} understood by both, 0 hidden")  # fmt: skip


def test_control_a_hidden_request_is_recorded(site: NetworkSite) -> None:
    """A hidden request would reach the gateway behind a parser that disagrees; here the test sends it there."""
    before = hidden_requests(site)
    gateway = site.client.on_machine(site.hosts["vps-a"].machine, "10.77.0.1", 8000)
    with gateway.connect() as channel:
        channel.sendall(outer(gateway, b"Content-Length: %d" % len(WHOLE), WHOLE) + hidden(gateway))
        channel.shutdown(socket.SHUT_RD)
        wait_until(lambda: hidden_requests(site) == before + 1, "the hidden request is recorded")
