"""One rule for proxies: never for loopback, and for all other addresses by the environment."""

from __future__ import annotations

import ast
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.errors import UsageError
from appliance.system.http_request import send_request
from appliance.system.proxy import Proxy, ProxyRefusedError, is_loopback, opener, route
from tests.conftest import ROOT

PROXY = "http://proxy.test:3128"
LOOPBACK = [
    "localhost", "LOCALHOST", "localhost.", "gateway.localhost", "127.0.0.1", "127.9.9.9", "127.1", "2130706433",
    "0x7f000001", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::]",
]  # fmt: skip
NAMES = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [*os.environ]:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    resolve = socket.getaddrinfo

    def resolve_here(host: str, *more: Any, **named: Any) -> list[Any]:
        if host.endswith(".test"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return resolve(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
    is_loopback.cache_clear()
    return monkeypatch


@pytest.mark.parametrize(("host", "scheme"), [*itertools.product(LOOPBACK, ["http", "https"])])
def test_loopback_is_reached_directly(host: str, scheme: str, environment: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        environment.setenv(name, PROXY)
    assert route(f"{scheme}://{host}:8000").proxy is None
    assert not any(handler.__class__.__name__ == "ProxyHandler" and getattr(handler, "proxies", None)
                   for handler in opener(f"{scheme}://{host}:8000").handlers)  # type: ignore[attr-defined]  # fmt: skip


@pytest.mark.parametrize("host", ["gateway.test", "10.1.2.3", "[2001:db8::1]", "localhost.test", "127.0.0.1.test"])
@pytest.mark.parametrize(("name", "schemes"), [
    ("http_proxy", {"http"}), ("HTTP_PROXY", {"http"}), ("https_proxy", {"https"}), ("HTTPS_PROXY", {"https"}),
    ("all_proxy", {"http", "https"}), ("ALL_PROXY", {"http", "https"}),
])  # fmt: skip
def test_others_follow_the_environment(
    host: str, name: str, schemes: set[str], environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(name, PROXY)
    for scheme in ("http", "https"):
        expected = Proxy("proxy.test", 3128) if scheme in schemes else None
        assert route(f"{scheme}://{host}").proxy == expected


@pytest.mark.parametrize(
    ("excepted", "host", "straight"),
    [
        ("gateway.test", "gateway.test", True),
        (".test", "gateway.test", True),
        ("a, gateway.test:8000", "gateway.test:8000", True),
        ("*", "gateway.test", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("2001:db8::/32", "[2001:db8::1]", True),
        ("other.test", "gateway.test", False),
    ],
)
def test_no_proxy(excepted: str, host: str, straight: bool, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", PROXY)
    environment.setenv("no_proxy", excepted)
    assert (route(f"http://{host}").proxy is None) is straight


def test_a_direct_route_ignores_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "http://proxy.example:3128")
    assert route("http://10.77.0.1:8000").proxy is not None
    assert route("http://10.77.0.1:8000", direct=True).proxy is None


def test_a_name_of_this_machine_is_loopback(environment: pytest.MonkeyPatch) -> None:
    def resolve(host: str, *_: object, **__: object) -> list[object]:
        return [(2, 1, 6, "", ("127.0.1.1", 0))] if host == "myself.test" else []

    environment.setattr(socket, "getaddrinfo", resolve)
    assert is_loopback("myself.test")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("socks5://me:secret@proxy.test:1080", r"socks5://proxy\.test of the environment is not an HTTP proxy"),
        ("http://proxy.test:99999", "is not a valid address"),
        ("http://", "is not an HTTP proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    found: str, said: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("http_proxy", found)
    with pytest.raises(UsageError, match=said) as caught:
        route("http://gateway.test")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://host:99999", "http://host:x", "http://", "ftp://host", "http://[::1"])
def test_an_address_that_is_not_valid(url: str) -> None:
    with pytest.raises(UsageError, match="is not a valid address"):
        route(url)


class Forwarder:
    """A proxy that responds by itself and records its requests."""

    def __init__(self, answer: bytes) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.answer = answer
        self.asked: list[bytes] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with self.listener:
            connection, _ = self.listener.accept()
        with connection:
            seen = b""
            while b"\r\n\r\n" not in seen:
                seen += connection.recv(65536)
            self.asked.append(seen)
            connection.sendall(self.answer)


@pytest.fixture
def forwarder(request: pytest.FixtureRequest) -> Iterator[Forwarder]:
    made = Forwarder(request.param)
    yield made
    made.thread.join(10)


@pytest.mark.parametrize("forwarder", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"], indirect=True)
def test_a_plain_request_through_a_proxy(forwarder: Forwarder, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", f"http://me:se%40cret@127.0.0.1:{forwarder.port}")
    response = send_request("http://gateway.test/base/", "/v1/models", key="k", timeout_s=5)
    assert (response.status, response.body) == (200, b"hi")
    head = forwarder.asked[0].decode()
    assert head.startswith("GET http://gateway.test/base/v1/models HTTP/1.1\r\n")
    assert "Host: gateway.test\r\n" in head
    assert "Proxy-Authorization: Basic bWU6c2VAY3JldA==\r\n" in head
    assert "Authorization: Bearer k\r\n" in head


@pytest.mark.parametrize("forwarder", [b"HTTP/1.1 200 Connected\r\n\r\nfrom the server"], indirect=True)
def test_a_tunnel(forwarder: Forwarder, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("https_proxy", f"127.0.0.1:{forwarder.port}")
    with route("https://[2001:db8::1]/base").connect(5) as connection:
        assert connection.recv(100) == b"from the server", "what follows the head belongs to the server"
    assert forwarder.asked[0].startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n")


@pytest.mark.parametrize(
    "forwarder", [b"HTTP/1.1 407 Who are you\r\n\r\n", b"HTTP/1.1 2", b"\r\n\r\n"], indirect=True
)
def test_a_refused_tunnel_is_an_error(forwarder: Forwarder, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("https_proxy", f"http://127.0.0.1:{forwarder.port}")
    with pytest.raises(ProxyRefusedError):
        route("https://gateway.test").connect(5)


def test_nothing_else_opens_an_address_by_the_environment() -> None:
    """urllib's own opener, and similar libraries, send requests for loopback through a proxy."""
    openers, libraries = {"urlopen", "build_opener"}, {"requests", "httpx", "aiohttp", "urllib3"}
    found = set()
    for file in [*(ROOT / "appliance").rglob("*.py"), *(ROOT / "loadtests").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            used = isinstance(node, ast.Attribute) and node.attr in openers
            if isinstance(node, ast.Import):
                used = bool(libraries & {alias.name.partition(".")[0] for alias in node.names})
            elif isinstance(node, ast.ImportFrom):
                module = (node.module or "").partition(".")[0]
                used = module in libraries or bool(openers & {alias.name for alias in node.names})
            if used:
                found.add(str(file.relative_to(ROOT)))
    # Some clients have a Unix socket only, and others ignore the environment, as aiohttp does. The last files only
    # name errors, or read URLs.
    sockets = {
        "appliance/assistant/inference.py",
        "appliance/telegram/acting.py",
    }
    direct = {
        "appliance/assistant/memory/qdrant.py",
        "appliance/assistant/web/fetcher.py",
        "appliance/assistant/web/searxng.py",
        "appliance/doctor/checks/telegram.py",
    }
    named = {
        "appliance/assistant/api/chat_completions.py",
        "appliance/assistant/turns/chat_search.py",
        "appliance/search/page_url.py",
        "appliance/telegram/channel.py",
    }
    assert found == {"appliance/system/proxy.py", *sockets, *direct, *named}, (
        "open addresses through appliance.system.proxy"
    )
    for name in found - {"appliance/system/proxy.py"}:
        text = (ROOT / name).read_text()
        clients = text.count("httpx.Client(") + text.count("httpx.AsyncClient(")
        assert (clients > 0) == (name not in named), name
        assert text.count("trust_env=False") == clients, name
        assert name not in sockets or text.count("uds=") == clients, name
        # The default loads all certificate authorities, for connections without TLS.
        assert name not in sockets or text.count("verify=without_authorities()") == clients, name
