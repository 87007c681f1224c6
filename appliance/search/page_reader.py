"""Reads a page: its download, then its text from a confined process. One limit of time holds for both."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import PageError
from appliance.parsing.confined import run_confined
from appliance.parsing.limits import MIB, ParseLimits, UnusableFileError
from appliance.search.page_child import PageOrder
from appliance.search.page_download import DownloadedPage, DownloadLimits, PageDownloader

DOWNLOADS = 16
"""Pages that are read at once; further ones wait within their time."""
PARSERS = 4
PROGRAM = (sys.executable, "-m", "appliance.search.page_child")
PARSE_LIMITS = ParseLimits(
    memory_bytes=768 * MIB,
    parse_cpu_s=15,
    total_cpu_s=16,
    wall_s=60,
    output_bytes=32 * MIB,
    text_characters=4 * MIB,
    pages=300,
)


@dataclass(frozen=True, slots=True)
class ReadPage:
    """The text of a page in Markdown."""

    url: str
    """Its URL after all redirects."""
    title: str
    content_type: str
    text: str
    cut: bool
    """Whether the text has only the beginning."""


class PageReader:
    """Reads pages with one downloader."""

    def __init__(self, downloader: PageDownloader, limits: DownloadLimits) -> None:
        self._downloader = downloader
        self._limits = limits
        self._downloads = asyncio.Semaphore(DOWNLOADS)
        self._parsers = asyncio.Semaphore(PARSERS)

    async def read(
        self, url: str, *, characters: int, seconds: float | None = None, domains: Sequence[str] = ()
    ) -> ReadPage:
        """Return the text of the page at ``url``.

        Args:
            url: The URL.
            characters: Most characters of the text; the rest is cut.
            seconds: Time for the page, at most that of the limits, which is the default.
            domains: Domains that the page and its redirects must belong to; none allows all.

        Raises :class:`PageError`, whose code has the reason.
        """
        most = self._limits.seconds
        try:
            async with asyncio.timeout(most if seconds is None else min(seconds, most)), self._downloads:
                page = await self._downloader.download(url, domains=domains)
                async with self._parsers:
                    title, text = await self._parse(page)
        except TimeoutError:
            raise PageError("the page takes too long", code="page_timeout") from None
        return ReadPage(
            url=str(page.url),
            title=title,
            content_type=page.content_type,
            text=text[:characters],
            cut=len(text) > characters,
        )

    async def _parse(self, page: DownloadedPage) -> tuple[str, str]:
        order = PageOrder(page.extension, page.charset, PARSE_LIMITS)
        with tempfile.TemporaryFile() as file:
            file.write(page.body)
            file.seek(0)
            try:
                return await run_confined(
                    file, [*PROGRAM, order.as_argument()], _title_and_text, limits=PARSE_LIMITS
                )
            except UnusableFileError as error:
                raise PageError(f"the page cannot be read: {error}", code="unreadable_page") from None


def _title_and_text(found: Mapping[str, Any]) -> tuple[str, str]:
    return str(found["title"]), str(found["text"])
