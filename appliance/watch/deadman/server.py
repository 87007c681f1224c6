"""The HTTP server of the switch: beats, announcements and metrics, for the tunnel only.

``POST /beat`` (a webhook of Alertmanager, or nothing), ``POST /announce``, ``GET /metrics``. WireGuard proves the
address of the caller and the firewall admits the host at home only, so there is no key.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from appliance.errors import InvalidRequestError, StartError
from appliance.watch.deadman.switch import DeadMansSwitch

LOG = logging.getLogger(__name__)

BODY_LIMIT = 262_144
IP_FREEBIND = 15
"""ip(7): bind an address that does not exist yet, so that the switch starts without the tunnel."""


class SwitchServer(ThreadingHTTPServer):
    """A server on one address; requests run in threads that end with the process."""

    daemon_threads = True

    def __init__(self, address: str, port: int, switch: DeadMansSwitch) -> None:
        self.switch = switch
        try:
            super().__init__((address, port), _SwitchHandler)
        except OSError as error:
            raise StartError(
                f"the dead man's switch cannot listen on {address}:{port} ({error.strerror}); "
                f"`ss -Hltnp 'sport = :{port}'` shows the program that has the port"
            ) from None

    def server_bind(self) -> None:
        """Bind the address, also before the tunnel has it."""
        self.socket.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        super().server_bind()

    def handle_error(self, _request: object, client_address: object) -> None:
        """Log an error of a request in one line."""
        LOG.warning("a request from %s failed", client_address, exc_info=True)


class _SwitchHandler(BaseHTTPRequestHandler):
    server: SwitchServer
    timeout = 5.0
    """Limit of each wait for the client, in seconds."""

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._respond(200, self.server.switch.metrics(), "text/plain; version=0.0.4; charset=utf-8")
        else:
            self._error(404, "the switch has GET /metrics, POST /beat and POST /announce")

    def do_POST(self) -> None:
        body = self._body()
        if body is None:
            return
        try:
            if self.path == "/beat":
                self._json(200, {"counted": self.server.switch.beat(body)})
            elif self.path == "/announce":
                self._json(200, {"quiet_s": round(self.server.switch.announce(body))})
            else:
                self._error(404, "the switch has POST /beat and POST /announce")
        except InvalidRequestError as error:
            self._error(400, str(error))

    def _body(self) -> bytes | None:
        text = self.headers.get("Content-Length", "0")
        length = int(text) if text.isascii() and text.isdigit() else -1
        if not 0 <= length <= BODY_LIMIT or "Transfer-Encoding" in self.headers:
            self._error(413, f"the body needs a Content-Length of at most {BODY_LIMIT} bytes")
            return None
        return self.rfile.read(length)

    def _error(self, status: int, message: str) -> None:
        self.close_connection = True
        self._json(status, {"error": message})

    def _json(self, status: int, table: object) -> None:
        self._respond(status, json.dumps(table).encode(), "application/json")

    def _respond(self, status: int, body: bytes, kind: str) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log no request: a beat arrives each minute."""
