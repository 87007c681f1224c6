"""The download of one page: redirects, content type, sizes and time are bounded, and every hop is checked.

| step | refused with |
|---|---|
| URL of the hop (:func:`read_page_url`) | invalid_url, address_not_allowed |
| domain of the hop, if the request names allowed ones | domain_not_allowed |
| addresses of the host, when dialled (:class:`CheckedDialer`) | unknown_host, address_not_allowed |
| connection, TLS, header section | connection_failed |
| redirect after the last allowed one, or without a place | too_many_redirects, connection_failed |
| status other than 2xx | http_status |
| content type, content coding | unsupported_content |
| bytes of the body, as sent and decompressed | page_too_large |
| time of all hops together | page_timeout |

A request has no cookie, no credential and no referrer. Each hop has a connection of its own, and no proxy of the
environment applies.
"""

from __future__ import annotations

import ssl
import zlib
from collections.abc import AsyncIterable, Iterable, Sequence
from dataclasses import dataclass

import httpcore

from appliance.errors import PageError
from appliance.search.checked_dialer import CheckedDialer
from appliance.search.page_url import PORTS, PageUrl, is_within, read_page_url

USER_AGENT = "Mozilla/5.0 (compatible; appliance-fetcher/1.0)"
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CONTENT_TYPES = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/plain": "txt",
    "text/markdown": "md",
    "text/csv": "csv",
    "text/xml": "xml",
    "application/xml": "xml",
    "application/json": "json",
    "application/pdf": "pdf",
}
"""The types of pages that are read, and the extension of each."""
CODINGS = frozenset({"gzip", "x-gzip"})
_ACCEPT = "text/html, application/xhtml+xml, application/pdf;q=0.8, text/*;q=0.7, application/json;q=0.5"


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """The most that one page may cost."""

    seconds: float = 20.0
    """Time of the whole page: all hops and the parser."""
    body_bytes: int = 5 * 2**20
    """Bytes of a body, as sent and decompressed."""
    redirects: int = 5


@dataclass(frozen=True, slots=True)
class DownloadedPage:
    """A page as it was sent, decompressed."""

    url: PageUrl
    """Its URL after all redirects."""
    content_type: str
    charset: str
    """As the header names it, or empty."""
    body: bytes

    @property
    def extension(self) -> str:
        """The extension of a file of this type."""
        return CONTENT_TYPES[self.content_type]


class PageDownloader:
    """Downloads pages.

    Args:
        dialer: The network.
        tls: The TLS context; it verifies certificates.
        limits: Bounds; :attr:`DownloadLimits.seconds` is enforced by the caller.
        ports: The ports that are allowed.
    """

    def __init__(
        self,
        dialer: CheckedDialer,
        tls: ssl.SSLContext,
        limits: DownloadLimits,
        ports: Iterable[int] = PORTS,
    ) -> None:
        self._dialer = dialer
        self._tls = tls
        self._limits = limits
        self._ports = frozenset(ports)

    async def download(self, text: str, *, domains: Sequence[str] = ()) -> DownloadedPage:
        """Return the page at the URL ``text``; every hop must be within ``domains``, unless there are none.

        Raises :class:`PageError` with one of the codes of this module's table.
        """
        url = read_page_url(text, ports=self._ports)
        for _ in range(self._limits.redirects + 1):
            if domains and not is_within(url.host, domains):
                raise PageError(f"{url.host} is not one of the allowed domains", code="domain_not_allowed")
            found = await self._hop(url)
            if isinstance(found, DownloadedPage):
                return found
            url = read_page_url(found, base=url, ports=self._ports)
        raise PageError(f"the page redirects more than {self._limits.redirects} times", code="too_many_redirects")

    async def _hop(self, url: PageUrl) -> DownloadedPage | str:
        """Return the page at ``url``, or the place to which it redirects."""
        wait = self._limits.seconds
        try:
            async with (
                httpcore.AsyncConnectionPool(
                    ssl_context=self._tls, network_backend=self._dialer, max_keepalive_connections=0, retries=0
                ) as pool,
                pool.stream(
                    "GET",
                    httpcore.URL(
                        scheme=url.scheme.encode(), host=url.host.encode(), port=url.port, target=url.target
                    ),
                    headers=[
                        (b"Host", url.url.netloc),
                        (b"User-Agent", USER_AGENT.encode()),
                        (b"Accept", _ACCEPT.encode()),
                        (b"Accept-Encoding", b"gzip"),
                        (b"Connection", b"close"),
                    ],
                    extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), wait)},
                ) as response,
            ):
                headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
                if response.status in REDIRECTS:
                    return _place(headers)
                if not 200 <= response.status < 300:
                    raise PageError(f"the page has the status {response.status}", code="http_status")
                kind, charset = _content_type(headers)
                body = await _read(response.aiter_stream(), _coding(headers), self._limits.body_bytes)
                return DownloadedPage(url, kind, charset, body)
        except httpcore.TimeoutException:
            raise PageError("the page takes too long", code="page_timeout") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
            raise PageError(
                f"the connection to the host failed ({type(error).__name__})", code="connection_failed"
            ) from None


def _place(headers: dict[bytes, str]) -> str:
    place = headers.get(b"location")
    if not place:
        raise PageError("the page redirects to nowhere", code="connection_failed")
    return place.strip()


def _content_type(headers: dict[bytes, str]) -> tuple[str, str]:
    """Return content type and charset; raise :class:`PageError` for a type that is not read."""
    kind, *parameters = (part.strip() for part in headers.get(b"content-type", "").lower().split(";"))
    if kind not in CONTENT_TYPES:
        shown = kind[:64] if kind.isprintable() and kind else "none"
        raise PageError(
            f"the content type {shown} is not read; HTML, text, JSON and PDF are", code="unsupported_content"
        )
    charset = next((one[8:].strip("'\" ") for one in parameters if one.startswith("charset=")), "")
    return kind, charset


def _coding(headers: dict[bytes, str]) -> bool:
    """Return whether the body is compressed; raise :class:`PageError` for a coding that was not offered."""
    coding = headers.get(b"content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return False
    if coding not in CODINGS:
        raise PageError("the content coding of the page is not supported", code="unsupported_content")
    return True


async def _read(pieces: AsyncIterable[bytes], compressed: bool, most: int) -> bytes:
    """Return the whole body; raise :class:`PageError` once it, compressed or not, exceeds ``most`` bytes."""
    # 16 selects the format of gzip.
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if compressed else None
    body, received = bytearray(), 0
    async for piece in pieces:
        received += len(piece)
        try:
            # One byte more than allowed shows the excess; the rest of a bomb stays compressed.
            body += piece if inflater is None else inflater.decompress(piece, most + 1 - len(body))
        except zlib.error:
            raise PageError("the body of the page is damaged", code="connection_failed") from None
        if max(received, len(body)) > most:
            raise PageError(f"the page is larger than {most} bytes", code="page_too_large")
    if inflater is not None and not inflater.eof:
        raise PageError("the body of the page ends early", code="connection_failed")
    return bytes(body)
