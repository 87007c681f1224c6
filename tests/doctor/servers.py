"""Servers with one fixed response, and a certificate authority of the tests."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

from appliance.system.unix_socket import address


def start_server(body: bytes, status: int, context: ssl.SSLContext | None = None) -> ThreadingHTTPServer:
    """Start a server with one fixed response."""

    class CannedResponse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), CannedResponse)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


@contextmanager
def serving_ready(engines: dict[str, str], status: int = 200) -> Iterator[int]:
    """Run a server that responds to ``/ready`` with the state of each engine; yield its port."""
    server = start_server(json.dumps({"engines": engines}).encode(), status)
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serving_bot(name: str, status: int = 200) -> Iterator[int]:
    """Run a Bot API that responds to each request as to ``getMe``; yield its port."""
    server = start_server(json.dumps({"ok": status == 200, "result": {"username": name}}).encode(), status)
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serving_state(path: Path, state: dict[str, Any]) -> Iterator[None]:
    """Run a server at the Unix socket ``path`` that responds with the present content of ``state``."""

    class StateHandler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(state).encode()
            self.send_response(state.get("status", 200))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    path.parent.mkdir(parents=True)
    with address(path) as name:
        server = ThreadingUnixStreamServer(name, StateHandler)
    path.chmod(0o660)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the tests."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, domain: str, days: int, folder: Path, *, begins: str = "") -> tuple[Path, Path]:
        """Issue a certificate for ``domain`` and its key; ``begins`` is a time in faketime's format."""
        folder.mkdir(parents=True, exist_ok=True)
        key, request, cert = folder / "key.pem", folder / "request.pem", folder / "fullchain.pem"
        extension = folder / "extension"
        extension.write_text(f"subjectAltName=DNS:{domain}\nauthorityKeyIdentifier=keyid\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={domain}",
                 "-keyout", key, "-out", request)  # fmt: skip
        openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self.folder / "ca.key", "-days", days,
                 "-extfile", extension, "-out", cert, begins=begins)  # fmt: skip
        return cert, key


def openssl(*words: object, begins: str = "") -> None:
    argv = [*(("faketime", "-f", begins) if begins else ()), "openssl", *map(str, words)]
    subprocess.run(argv, check=True, capture_output=True)
