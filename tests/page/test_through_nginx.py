"""The page through the real nginx of the edge, over TLS: log-in, stream, upload, log-out."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests.nix.test_edge import DOMAIN, running
from tests.page.conftest import PageUnderTest, say


def test_the_page_works_through_the_edge(site: PageUnderTest, tmp_path: Path) -> None:
    (tmp_path / "edge").mkdir()
    with running(tmp_path / "edge", gateway_port=site.service.gateway.port) as port:
        context = site.context(ignore_https_errors=True)
        site.problems.clear()
        page = site.logged_in(context, url=f"https://{DOMAIN}:{port}/")
        cookie = context.cookies()[0]
        assert cookie["name"] == "__Host-session"
        assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")
        # The engine holds the rest, so an edge that buffers shows nothing.
        say(page, "fake: tokens=13 itl_ms=1 hold=5")
        expect(page.locator("article.live")).to_contain_text("the quick brown fox jumps")
        site.assistant.release()
        expect(page.locator("article.assistant .markdown")).to_contain_text("in grün")
        content = b"Words through the edge. " * 100_000
        page.set_input_files("#file-input", {"name": "edge.txt", "mimeType": "text/plain", "buffer": content})
        expect(page.locator(".file .file-state")).to_have_text("ready")
        page.click("#account")
        page.click("#logout")
        expect(page.locator("#key")).to_be_visible()
        assert context.cookies() == []
        assert site.problems == []
        context.close()
