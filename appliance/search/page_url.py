"""The URL of a page: one parser, whose host is the host that is checked, dialled and sent. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

import httpx

from appliance.errors import PageError

MAX_LETTERS = 4096
PORTS = frozenset({80, 443})
_DEFAULTS = {"http": 80, "https": 443}
_PRIVATE_NAMES = ("localhost", "local", "localdomain", "internal", "home.arpa", "lan", "intranet", "onion")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True, slots=True)
class PageUrl:
    """A valid URL of a page."""

    url: httpx.URL
    host: str
    """Its host in ASCII, in lower case, without a dot at the end; an IPv6 address has no brackets."""
    port: int

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return self.url.scheme

    @property
    def target(self) -> bytes:
        """Path and query, as the request line has them."""
        return self.url.raw_path

    def __str__(self) -> str:
        return str(self.url)


def read_page_url(text: str, *, base: PageUrl | None = None, ports: Iterable[int] = PORTS) -> PageUrl:
    """Return the URL in ``text``; a relative one belongs to ``base``.

    Raises :class:`PageError` ``invalid_url`` or ``address_not_allowed``.
    """
    if len(text) > MAX_LETTERS or _FORBIDDEN.search(text):
        raise _invalid(f"has more than {MAX_LETTERS} letters, white space, control characters or a backslash")
    try:
        url = httpx.URL(text) if base is None else base.url.join(text)
        host = url.raw_host.decode("ascii").lower().removesuffix(".")
        port = _DEFAULTS.get(url.scheme, 0) if url.port is None else url.port
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise _invalid("cannot be parsed") from None
    if url.scheme not in _DEFAULTS or not host:
        raise _invalid("must begin with http:// or https:// and a host")
    if url.userinfo:
        raise _invalid("has a user or a password; a page that needs one cannot be read")
    if port not in frozenset(ports):
        raise PageError(f"the port {port} is not allowed; pages are read on 80 and 443", code="address_not_allowed")
    _check_host(host)
    if base is not None and len(str(url)) > MAX_LETTERS:
        raise _invalid(f"has more than {MAX_LETTERS} letters")
    return PageUrl(url.copy_with(fragment=None, host=host), host, port)


def is_within(host: str, domains: Iterable[str]) -> bool:
    """Return whether ``host`` is one of ``domains`` or a subdomain of one."""
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def _check_host(host: str) -> None:
    """Raise :class:`PageError` for a host that cannot be public by its name."""
    try:
        ip_address(host)
    except ValueError:
        pass
    else:
        # The rule of addresses decides when it is dialled.
        return
    if not _NAME.fullmatch(host):
        raise _invalid("has a host that is not a name")
    last = host.rpartition(".")[2]
    if _NUMBER.fullmatch(last):
        raise _invalid("has a number as its host; write an IPv4 address as four decimal numbers")
    if "." not in host or is_within(host, _PRIVATE_NAMES):
        raise PageError("the host is not a public name; only public pages are read", code="address_not_allowed")


def _invalid(problem: str) -> PageError:
    return PageError(f"the URL {problem}", code="invalid_url")
