"""The client of the fetcher (`appliance fetcher`), which reads pages on another host or in another process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from appliance.errors import ConfigError, PageError
from appliance.system import files

CONNECT_S = 3.0
MARGIN_S = 2.0
"""Seconds beyond the time of a page, in which the fetcher reports that it has passed."""
MAX_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class WebPage:
    """The text of a page, of unknown origin."""

    url: str
    """Its URL after all redirects."""
    title: str
    text: str
    cut: bool = False


def read_key(path: Path) -> str:
    """Return the key of the fetcher in ``path``.

    Raises :class:`ConfigError` if it is absent or not one line of ASCII, :class:`StoreError` if it cannot be read.
    """
    content = files.read(path)
    key = "" if content is None else content.decode("utf-8", "replace").strip()
    if not key or not key.isprintable() or not key.isascii():
        raise ConfigError(f"{path} (search.key_file) has no line with the key of the fetcher; write it there")
    return key


class FetcherClient:
    """A pooled client of one fetcher.

    Args:
        url: Its address.
        key: The key that it requires, if any.
        timeout_s: Seconds for one page with its redirects.
        characters: Most characters of a page.
    """

    def __init__(self, url: str, key: str | None, *, timeout_s: float, characters: int) -> None:
        self._timeout_s = timeout_s
        self._characters = characters
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout_s + MARGIN_S, connect=CONNECT_S),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def fetch(self, url: str, *, domains: Sequence[str] = ()) -> WebPage:
        """Return the page at ``url``; it and its redirects are within ``domains``, if there are any.

        Raises :class:`PageError`, whose code is the kind of the failure.
        """
        order = {
            "url": url,
            "characters": self._characters,
            "seconds": self._timeout_s,
            "domains": list(domains),
        }
        try:
            async with (
                asyncio.timeout(self._timeout_s + MARGIN_S),
                self._client.stream("POST", "/fetch", json=order) as response,
            ):
                content = b""
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > MAX_BYTES:
                        raise _invalid()
                status = response.status_code
        except (TimeoutError, httpx.TimeoutException):
            raise PageError("the fetcher takes too long", code="fetcher_timeout") from None
        except httpx.HTTPError as error:
            raise PageError(
                f"the fetcher cannot be reached ({type(error).__name__}); check search.fetcher_url and its unit",
                code="fetcher_unreachable",
            ) from None
        if status == 401:
            raise PageError("the fetcher refuses the key of search.key_file", code="fetcher_refused")
        try:
            found = json.loads(content)
            if status == 422:
                raise PageError(str(found["error"]["message"])[:500], code=str(found["error"]["code"])[:40])
            if status != 200:
                raise _invalid()
            return WebPage(str(found["url"]), str(found["title"]), str(found["text"]), bool(found["cut"]))
        except (ValueError, KeyError, TypeError):
            raise _invalid() from None


def _invalid() -> PageError:
    return PageError("the response of the fetcher is not valid; check search.fetcher_url", code="fetcher_invalid")
