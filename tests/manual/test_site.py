"""The built site: both languages, a search that finds, no request to another host, phone and desktop."""

from __future__ import annotations

import functools
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from playwright.sync_api import Browser, sync_playwright
from properdocs.exceptions import Abort

from tools.manual import pages, site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_MS = 60_000
"""Milliseconds for a page, also on a busy machine."""
pytestmark = pytest.mark.timeout(300)


class QuietFiles(SimpleHTTPRequestHandler):
    """Serves a folder without a log."""

    def log_message(self, *_: object) -> None:
        """Drop the line of the log."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    site.build(out, tmp_path_factory.mktemp("stage"))
    return out


@pytest.fixture(scope="module")
def address(built: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietFiles, directory=str(built)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=WAIT_MS)
        yield running
        running.close()


def foreign(content: str) -> list[str]:
    """Return the addresses of other hosts from which a browser would load a part of ``content``."""
    loaded = r"<(?:script|img|iframe|audio|video|source|embed)[^>]*\ssrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    linked = r"<link[^>]*\shref=[\"']?((?:https?:)?//[^\"'\s>]+)"
    styles = r"(?:url\(\s*[\"']?|@import\s+[\"'])((?:https?:)?//[^\"')\s]+)"
    return [address for pattern in (loaded, linked, styles) for address in re.findall(pattern, content)]


def test_no_page_and_no_style_loads_from_another_host(built: Path) -> None:
    files = [path for path in built.rglob("*") if path.suffix in {".html", ".css"}]
    assert len(files) > 40
    found = {
        str(path.relative_to(built)): some for path in files if (some := foreign(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "part",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<link rel=stylesheet href='//fonts.example/a.css'>",
        "@font-face{src:url(https://fonts.example/a.woff2)}",
        '<img alt="" src="http://x.example/p.png">',
    ],
)
def test_a_part_of_another_host_is_detected(part: str) -> None:
    assert foreign(part)
    assert not foreign('<a href="https://x.example">link</a><script src="js/base.js"></script>')


@pytest.mark.parametrize("language", pages.LANGUAGES)
def test_the_printable_file_is_whole_and_alone(built: Path, language: str) -> None:
    text = (built / f"manual-{language}.html").read_text(encoding="utf-8")
    for name in pages.names(language):
        assert f'<section id="{name.removesuffix(".md")}">' in text
    assert text.count("<svg") == 5
    assert not re.search(r"\ssrc=|<link|<script", text)
    anchors = set(re.findall(r'\sid="([^"]+)"', text))
    assert {unquote(link) for link in re.findall(r'href="#([^"]+)"', text)} <= anchors


def test_links_to_files_outside_the_site_become_text() -> None:
    text = site.relinked("[bench](../benchmarks/run.py) [d](doctor.md#x)", "docs/gateway.md", "en")
    assert text == "bench (`benchmarks/run.py`) [d](doctor.md#x)"
    russian = site.relinked("[d](../../doctor.md#x)", "docs/manual/ru/index.md", "ru")
    assert russian == '<a href="../en/reference/doctor.html#x">d</a>'


def test_a_dead_link_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "docs/manual"
    shutil.copytree(pages.SOURCE / "img", source / "img")
    shutil.copy(pages.SOURCE / "site.css", source / "site.css")
    (source / "en").mkdir()
    (source / "en/index.md").write_text("# Manual\n\n[dead](index.md#absent)\n")
    monkeypatch.setattr(pages, "SOURCE", source)
    monkeypatch.setattr(site, "_more", list)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    shutil.copy(Path(site.__file__).parents[2] / "mkdocs.yml", tmp_path)
    with pytest.raises(Abort):
        site.build_language("en", tmp_path / "out", tmp_path / "work")


@pytest.mark.parametrize(
    ("language", "word", "expected"),
    [("en", "fail over", "09-recovery"), ("ru", "резервные копии", "10-backups")],
)
def test_the_search_finds_a_chapter(
    browser: Browser, address: str, language: str, word: str, expected: str
) -> None:
    page = browser.new_page()
    page.set_default_timeout(WAIT_MS)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    # With a term in the address, the page searches as soon as its index is ready.
    page.goto(f"{address}/{language}/index.html?q={quote(word)}")
    page.wait_for_selector(f"#properdocs-search-results a[href*='{expected}']", state="attached")
    assert [url for url in requests if not url.startswith(address)] == []
    page.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_fits_phone_and_desktop(browser: Browser, address: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(WAIT_MS)
    for language, name in (("ru", "01-hardware"), ("ru", "ref-commands"), ("en", "17-old-guides")):
        page.goto(f"{address}/{language}/{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        twin = page.locator("a.twin")
        twin.click()
        page.wait_for_url(f"**/{'en' if language == 'ru' else 'ru'}/{name}.html")
    page.close()


@pytest.mark.parametrize("language", pages.LANGUAGES)
def test_the_printable_file_fits_a_phone(browser: Browser, address: str, language: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.set_default_timeout(WAIT_MS)
    page.goto(f"{address}/manual-{language}.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
