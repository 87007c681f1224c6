"""Pages over real sockets: what is read, and each attack of a hostile page."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.errors import PageError
from appliance.search.checked_dialer import is_own
from appliance.search.page_download import DownloadLimits
from tests.search.hostile_site import PRIVATE, PUBLIC, HostileSite, hostile_site

CHARACTERS = 100_000


@pytest.fixture
async def site() -> AsyncIterator[HostileSite]:
    async with hostile_site() as running:
        yield running


async def refusal(site: HostileSite, url: str, limits: DownloadLimits | None = None, **more: object) -> str:
    """Return the code with which ``url`` is refused; the private service must have no request."""
    with pytest.raises(PageError) as refused:
        await site.reader(limits).read(url, characters=CHARACTERS, **more)  # type: ignore[arg-type]
    assert site.private_seen == []
    return refused.value.code


async def test_a_page_becomes_markdown_without_its_scripts(site: HostileSite) -> None:
    page = await site.reader().read(site.url("/moved"), characters=CHARACTERS)
    assert page.url == site.url("/page")
    assert page.title == "Capitals & rivers"
    assert page.content_type == "text/html"
    assert page.text == "# Capitals\n\nRome is the capital of **Italy**.\n"
    assert not page.cut


@pytest.mark.parametrize(
    ("path", "text"), [("/gzip", "Rome is"), ("/cyrillic", "Москва стоит"), ("/json", '"capital": "Rome"')]
)
async def test_codings_charsets_and_types_are_read(site: HostileSite, path: str, text: str) -> None:
    assert text in (await site.reader().read(site.url(path), characters=CHARACTERS)).text


async def test_a_long_text_is_cut(site: HostileSite) -> None:
    page = await site.reader().read(site.url("/page"), characters=10)
    assert (page.text, page.cut) == ("# Capitals", True)


async def test_a_request_has_the_name_and_no_cookie(site: HostileSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{PRIVATE}:{site.private_port}")
    reader = site.reader()
    for _ in range(2):
        await reader.read(site.url("/cookie"), characters=CHARACTERS)
    assert site.private_seen == []
    for head in site.seen:
        assert f"Host: site.example:{site.port}\r\n" in head
        assert "\r\ncookie" not in head.lower()
        assert "authorization" not in head.lower()
        assert "referer" not in head.lower()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/to-private", "address_not_allowed"),
        ("/to-mapped", "address_not_allowed"),
        ("/to-file", "invalid_url"),
        ("/to-user", "invalid_url"),
        ("/loop", "too_many_redirects"),
        ("/nowhere", "connection_failed"),
        ("/image", "unsupported_content"),
        ("/pdf-as-html", "unreadable_page"),
        ("/binary-as-html", "unreadable_page"),
        ("/no-type", "unsupported_content"),
        ("/brotli", "unsupported_content"),
        ("/twice", "unsupported_content"),
        ("/damaged", "connection_failed"),
        ("/bomb", "page_too_large"),
        ("/missing", "http_status"),
        ("/garbage", "connection_failed"),
        ("/endless-headers", "connection_failed"),
        ("/endless-body", "page_too_large"),
        ("/deep", "unreadable_page"),
    ],
)
async def test_a_hostile_page_is_refused(site: HostileSite, path: str, code: str) -> None:
    assert await refusal(site, site.url(path)) == code


async def test_a_page_over_the_limit_of_bytes_is_refused(site: HostileSite) -> None:
    limits = DownloadLimits(seconds=60.0, body_bytes=100_000)
    assert await refusal(site, site.url("/large"), limits) == "page_too_large"


@pytest.mark.parametrize("path", ["/drip", "/silent"])
async def test_a_slow_page_ends_with_its_time(site: HostileSite, path: str) -> None:
    assert await refusal(site, site.url(path), DownloadLimits(seconds=0.5)) == "page_timeout"


async def test_a_name_that_changes_after_the_check_has_no_effect(site: HostileSite) -> None:
    site.names["rebind.example"] = [[PUBLIC], [PRIVATE]]
    reader = site.reader()
    page = await reader.read(site.url("/json", "rebind.example"), characters=CHARACTERS)
    assert "Rome" in page.text
    assert site.names["rebind.example"] == [[PRIVATE]], "one look-up a connection"
    assert await refusal(site, site.url("/json", "rebind.example")) == "address_not_allowed"


@pytest.mark.parametrize("order", [[PUBLIC, PRIVATE], [PRIVATE, PUBLIC], [PUBLIC, "::1"], ["fe80::1%lo"], ["text"]])
async def test_one_private_address_of_a_name_is_enough(site: HostileSite, order: list[str]) -> None:
    site.names["mixed.example"] = [order]
    assert await refusal(site, site.url("/page", "mixed.example")) == "address_not_allowed"


async def test_an_unknown_name_is_an_error_of_its_own(site: HostileSite) -> None:
    assert await refusal(site, site.url("/page", "absent.invalid")) == "unknown_host"


async def test_redirects_stay_within_the_allowed_domains(site: HostileSite) -> None:
    assert await refusal(site, site.url("/to-other"), domains=["site.example"]) == "domain_not_allowed"
    assert len(site.seen) == 1
    found = await site.reader().read(site.url("/to-other"), characters=10, domains=["example"])
    assert found.url == site.url("/page", "other.example")


async def test_an_address_of_this_host_is_its_own() -> None:
    assert is_own(PRIVATE)
    assert not is_own("192.0.2.1")
    site = HostileSite(port=80)
    assert await refusal(site, f"http://{PRIVATE}/") == "address_not_allowed"


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for site.example that is its own authority."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subject = ["-subj", "/CN=site.example", "-addext", "subjectAltName=DNS:site.example"]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            *subject,
            "-keyout",
            str(key),
            "-out",
            str(cert),
        ],
        check=True,
        capture_output=True,
    )
    return key, cert


async def test_tls_has_the_name_and_is_verified(tmp_path: Path) -> None:
    key, cert = await asyncio.to_thread(certificate, tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    names: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    async with hostile_site(server) as site:
        known = ssl.create_default_context(cafile=str(cert))
        url = site.url("/json", scheme="https")
        page = await site.reader(tls=known).read(url, characters=CHARACTERS)
        assert "Rome" in page.text
        assert names == ["site.example"]
        assert await refusal(site, url) == "connection_failed"
        with pytest.raises(PageError, match="connection"):
            await site.reader(tls=known).read(site.url("/page", "other.example", "https"), characters=CHARACTERS)
        assert len(site.seen) == 1
