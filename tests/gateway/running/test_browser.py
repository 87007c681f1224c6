"""A real browser: a page of an allowed origin reads responses of the gateway, a page of another one does not."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import serving
from tests.ports import free_port

NAMES = ("chromium", "chromium-browser", "google-chrome")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
)  # fmt: skip
"""Without the flags for background work, Chromium contacts hosts of its maker at every start."""

START_S = 60.0
"""Seconds for the start of Chromium and both pages, also on a busy machine."""

PAGE = """<!doctype html><meta charset=utf-8><script>
const gateway = %(gateway)s, key = %(key)s;
const get = (path, more) => fetch(gateway + path, more);
const chat = (key, stream) => get("/v1/chat/completions", {
  method: "POST",
  headers: {"Authorization": "Bearer " + key, "Content-Type": "application/json", "X-Stainless-Lang": "js"},
  body: JSON.stringify({model: "fake", stream, messages: [{role: "user", content: "fake: tokens=8 itl_ms=40"}]}),
});
const tries = {
  async stream() {
    const response = await chat(key, true);
    let text = "", pieces = 0;
    const reader = response.body.getReader(), decoder = new TextDecoder();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += decoder.decode(part.value, {stream: true});
      pieces += 1;
    }
    const id = response.headers.get("x-request-id");
    return {status: response.status, id, done: text.endsWith("[DONE]\\n\\n"), pieces};
  },
  async models() {
    const response = await get("/v1/models", {headers: {"Authorization": "Bearer " + key}});
    return {status: response.status, first: (await response.json()).data[0].id};
  },
  async denied() {
    const response = await chat("sk-wrong", false);
    return {status: response.status, code: (await response.json()).error.code};
  },
  async nothing() {
    const response = await get("/v1/nothing");
    return {status: response.status, code: (await response.json()).error.code};
  },
};
(async () => {
  const results = {origin: location.origin};
  for (const [name, run] of Object.entries(tries)) {
    try { results[name] = await run(); } catch (error) { results[name] = String(error); }
  }
  await fetch("/results", {method: "POST", body: JSON.stringify(results)});
  if (%(next)s) location = %(next)s;
})();
</script>"""


class BrowserSite(ThreadingHTTPServer):
    """A web server of one page on loopback, which receives the results of the page."""

    daemon_threads = True

    def __init__(self, results: queue.Queue[Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.page = b""
        self.results = results

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Page(BaseHTTPRequestHandler):
    server: BrowserSite

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.server.page)

    def do_POST(self) -> None:
        self.server.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site(results: queue.Queue[Any]) -> Iterator[BrowserSite]:
    with BrowserSite(results) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def browser(url: str, folder: Path) -> Iterator[None]:
    """Chromium on ``url``, with a profile of its own."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("NOT CHECKED: chromium is missing; apt-get install $(cat tests/nix/apt.txt)")
    with (folder / "chromium.log").open("wb") as log:
        argv = [
            found,
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            f"--remote-debugging-port={free_port()}",
            url,
        ]
        process = subprocess.Popen(argv, stdout=log, stderr=log, env={"HOME": str(folder), "PATH": "/usr/bin:/bin"})
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_a_page_streams_from_an_allowed_origin_and_gets_nothing_from_another(tmp_path: Path) -> None:
    results: queue.Queue[Any] = queue.Queue()
    with site(results) as mine, site(results) as other:
        settings = {"browser_origins": [mine.origin, "app://obsidian.md"]}
        with serving(tmp_path / "service", gateway=settings) as service:
            values = {"gateway": json.dumps(service.url), "key": json.dumps(service.key)}
            mine.page = (PAGE % {**values, "next": json.dumps(other.origin)}).encode()
            other.page = (PAGE % {**values, "next": "null"}).encode()
            with browser(mine.origin, tmp_path):
                first = results.get(timeout=START_S)
                requests = service.stats()["requests"]
                second = results.get(timeout=START_S)
            streamed = first.pop("stream")
            assert (streamed["status"], streamed["done"]) == (200, True)
            assert streamed["pieces"] > 3, "tokens arrive as they are generated"
            assert streamed["id"] == service.wait_rows(1)[0]["request_id"], "the page reads the header"
            assert first == {
                "origin": mine.origin,
                "models": {"status": 200, "first": "fake"},
                "denied": {"status": 401, "code": "invalid_api_key"},
                "nothing": {"status": 404, "code": "not_found"},
            }
            failed = "TypeError: Failed to fetch"
            assert second.pop("origin") == other.origin
            assert second == dict.fromkeys(("stream", "models", "denied", "nothing"), failed)
            assert service.stats()["requests"] == requests == 1, "the browser sent no request at all"
