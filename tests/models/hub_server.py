"""A model hub on loopback: real HTTP with ranges, tags and redirects, and each failure that a hub can have."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPOSITORY = "Qwen/Qwen3-0.6B"
REVISION = "a" * 40
WEIGHTS = bytes(range(256)) * 12_000
CONFIG = b'{"model_type": "qwen3"}\n'


@dataclass
class FakeHub:
    """Files of one revision, and how the server fails. ``cuts`` responses end after ``cut_after`` bytes."""

    files: dict[str, bytes] = field(default_factory=lambda: {"model.safetensors": WEIGHTS, "config.json": CONFIG})
    revisions: set[str] = field(default_factory=lambda: {REVISION, "b" * 40})
    cuts: int = 0
    cut_after: int = 1_000_000
    errors: int = 0
    ranges: bool = True
    honest_condition: bool = True
    etag: str = '"one"'
    corrupt: bytes | None = None
    token: str = ""
    url: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def listing(self, revision: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            one: dict[str, Any] = {"rfilename": name, "size": len(content)}
            one["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            if name.endswith((".safetensors", ".gguf", ".bin")):
                one["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            siblings.append(one)
        return {"sha": revision, "siblings": siblings}


@contextmanager
def hub() -> Iterator[FakeHub]:
    """Run a hub on a free port."""
    state = FakeHub()
    lock = threading.Lock()

    class RangeHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Print nothing."""

        def do_GET(self) -> None:
            state.requests.append((self.path, dict(self.headers)))
            path = self.path.partition("?")[0]
            needs_token = state.token and not path.startswith("/cdn/")
            if needs_token and self.headers.get("Authorization") != f"Bearer {state.token}":
                return self._empty(401)
            listed = re.fullmatch(rf"/api/models/{REPOSITORY}/revision/(\w+)", path)
            if listed and listed[1] in state.revisions:
                return self._send(200, json.dumps(state.listing(listed[1])).encode(), {})
            resolved = re.fullmatch(rf"/{REPOSITORY}/resolve/(\w+)/(.+)", path)
            if resolved and resolved[1] in state.revisions and resolved[2] in state.files:
                return self._empty(302, Location=f"{state.url}/cdn/{resolved[2]}")
            if path.startswith("/cdn/") and path[5:] in state.files:
                return self._file(path[5:])
            return self._empty(404)

        def _file(self, name: str) -> None:
            with lock:
                failing = state.errors > 0
                state.errors -= failing
            if failing:
                return self._empty(503)
            content = state.files[name]
            if state.corrupt is not None and name.endswith(".safetensors"):
                content = state.corrupt
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            condition = self.headers.get("If-Range", state.etag)
            if asked is None or not state.ranges or (state.honest_condition and condition != state.etag):
                return self._send(200, content, {"ETag": state.etag}, name)
            first = int(asked[1])
            if first >= len(content):
                return self._empty(416)
            extent = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return self._send(206, content[first:], {"ETag": state.etag, "Content-Range": extent}, name)

        def _empty(self, status: int, **headers: str) -> None:
            self._send(status, b"", headers)

        def _send(self, status: int, content: bytes, headers: dict[str, str], name: str = "") -> None:
            with lock:
                cut = name.endswith(".safetensors") and state.cuts > 0
                if cut:
                    state.cuts -= 1
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            sent = content[: state.cut_after] if cut else content
            self.wfile.write(sent)
            with lock:
                state.sent[name] = state.sent.get(name, 0) + len(sent)
            if cut:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
