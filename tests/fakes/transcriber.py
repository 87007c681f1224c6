"""A server with OpenAI's endpoint of transcriptions, for an engine of kind ``http``: it records and it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class TranscriberState:
    """The requests of a running server, and its next responses."""

    port: int
    text: str = "Hello from the microphone."
    status: int = 200
    forms: list[dict[str, bytes]] = field(default_factory=list)
    """The fields of each request by their names; ``filename`` is that of the file."""
    keys: list[str] = field(default_factory=list)
    """The header ``authorization`` of each request."""


class _TranscriberServer(ThreadingHTTPServer):
    daemon_threads = True
    state: TranscriberState


class _TranscriberHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _TranscriberServer

    def do_GET(self) -> None:
        self._send(200, {"status": "ok"})

    def do_POST(self) -> None:
        state = self.server.state
        body = self._body()
        if self.path != "/v1/audio/transcriptions":
            self._send(404, {"error": {"message": "absent"}})
            return
        state.keys.append(self.headers.get("authorization", ""))
        state.forms.append(form_fields(self.headers["content-type"], body))
        if state.status != 200:
            self._send(state.status, {"error": {"message": "The sound is not readable.", "type": "server_error"}})
            return
        self._send(200, {"text": state.text})

    def _body(self) -> bytes:
        if "content-length" in self.headers:
            return self.rfile.read(int(self.headers["content-length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, found: Any) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        pass


def form_fields(kind: str, body: bytes) -> dict[str, bytes]:
    """Return the fields of a multipart form."""
    found: dict[str, bytes] = {}
    message = message_from_bytes(b"content-type: " + kind.encode() + b"\r\n\r\n" + body)
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str):
            data = part.get_payload(decode=True)
            found[name] = data if isinstance(data, bytes) else b""
            if part.get_filename():
                found["filename"] = str(part.get_filename()).encode()
    return found


@contextmanager
def transcriber() -> Iterator[TranscriberState]:
    """Serve on loopback until the block ends."""
    server = _TranscriberServer(("127.0.0.1", 0), _TranscriberHandler)
    server.state = TranscriberState(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
