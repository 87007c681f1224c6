"""A TCP proxy on loopback that cuts its connections on request, also after a number of bytes of a response."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType


class CuttingProxy:
    """Forwards connections to ``target``, a port on loopback.

    ``cut_at`` is a text: the connection that sends it to its client next is cut behind it, once.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.cut_at: bytes | None = None
        self.cuts = 0
        self.refusing = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A blocked accept does not end when its socket is closed.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join()

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            cut, self._open = self._open, set()
        for one in cut:
            _close(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                _close(client)
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._open |= {client, server}
            for source, sink, watched in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._forward, args=(source, sink, watched), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, watched: bool) -> None:
        seen = b""
        with suppress(OSError):
            while data := source.recv(65536):
                mark = self.cut_at
                seen = (seen + data)[-4096:]
                found = watched and mark is not None and mark in seen
                end = data.find(mark) + len(mark) if found and mark is not None and mark in data else len(data)
                sink.sendall(data[:end])
                if found:
                    self.cut_at = None
                    self.cuts += 1
                    break
        for one in (source, sink):
            _close(one)
        with self._lock:
            self._open -= {source, sink}


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
