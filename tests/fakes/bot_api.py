"""A server with the shape and the limits of Telegram's Bot API, and the failures that a test requests.

``python -m tests.fakes.bot_api PORT FILE`` serves until it is killed and appends each delivered text to FILE.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "123456:fake-token_for-tests-only_0123456789"
CHAT = "4242"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a client that a test kills is part of the test."""


class BotApi:
    """The server. Each entry of ``failures`` is the result of one request; without an entry it succeeds.

    ``500``, ``502`` (a proxy's page), ``429:SECONDS``, ``reset`` (accepted, then a reset), ``early``
    (reset before it is accepted), ``hang`` (accepted, no response), ``drip`` (accepted, a response without end),
    ``400:DESCRIPTION``, ``403:DESCRIPTION``.
    """

    def __init__(self, port: int = 0, file: Path | None = None) -> None:
        self.delivered: list[str] = []
        self.requests = 0
        self.failures: deque[str] = deque()
        self.refuses = ""
        """Texts that contain it get 400."""
        self.delay_s = 0.0
        """Time between the acceptance of a message and the response."""
        self.file = file
        self.released = threading.Event()
        self._lock = threading.Lock()
        self.server = _Server(("127.0.0.1", port), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def deliver(self, text: str) -> None:
        with self._lock:
            self.delivered.append(text)
            if self.file is not None:
                with self.file.open("a") as file:
                    file.write(json.dumps(text) + "\n")

    def next_failure(self) -> str:
        with self._lock:
            self.requests += 1
            return self.failures.popleft() if self.failures else ""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class _Requests(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                failure, _, detail = api.next_failure().partition(":")
                if failure == "early":
                    self.reset()
                elif failure == "502":
                    self.reply(502, b"<html>Bad Gateway</html>", "text/html")
                elif failure == "500":
                    self.error(500, "Internal Server Error")
                elif failure == "429":
                    seconds = int(detail)
                    self.error(429, f"Too Many Requests: retry after {seconds}", {"retry_after": seconds})
                elif failure in ("400", "403"):
                    self.error(int(failure), detail)
                elif self.path != f"/bot{TOKEN}/sendMessage":
                    known = self.path.startswith("/bot123456:")
                    self.error(401 if known else 404, "Unauthorized" if known else "Not Found")
                else:
                    self.message(json.loads(body), failure)

            def message(self, sent: dict[str, Any], failure: str) -> None:
                text = sent.get("text", "")
                if str(sent.get("chat_id")) != CHAT:
                    self.error(400, "Bad Request: chat not found")
                elif not text.strip():
                    self.error(400, "Bad Request: message text is empty")
                elif len(text.encode("utf-16-le")) // 2 > 4096:
                    self.error(400, "Bad Request: message is too long")
                elif api.refuses and api.refuses in text:
                    self.error(400, "Bad Request: the text is not acceptable")
                else:
                    api.deliver(text)
                    api.released.wait(api.delay_s)
                    if failure == "reset":
                        self.reset()
                    elif failure == "hang":
                        api.released.wait(60)
                        self.reset()
                    elif failure == "drip":
                        self.drip()
                    else:
                        result = {"message_id": len(api.delivered), "chat": {"id": int(CHAT)}, "text": text}
                        self.reply(200, json.dumps({"ok": True, "result": result}).encode())

            def drip(self) -> None:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while not api.released.wait(0.1):
                    self.wfile.write(b" ")
                    self.wfile.flush()

            def error(self, status: int, description: str, parameters: dict[str, Any] | None = None) -> None:
                body: dict[str, Any] = {"ok": False, "error_code": status, "description": description}
                if parameters:
                    body["parameters"] = parameters
                self.reply(status, json.dumps(body).encode())

            def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def reset(self) -> None:
                # Close with unread state discarded: the client gets a reset, not an orderly end.
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True

        return _Requests


@contextmanager
def bot_api(port: int = 0) -> Iterator[BotApi]:
    """Serve until the block ends."""
    api = BotApi(port)
    thread = threading.Thread(target=api.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.released.set()
        api.server.shutdown()
        thread.join()
        api.server.server_close()


if __name__ == "__main__":
    BotApi(int(sys.argv[1]), Path(sys.argv[2])).server.serve_forever()
