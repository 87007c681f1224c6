"""A stand-in for the assistant: a process of its own with uvicorn on a Unix socket, as the real one.

It returns each request as JSON, and appends it to the file ``events.jsonl``. ``metadata.do`` of a JSON body selects
another response:

* ``stream``: events of /v1/responses with ``count`` deltas, then the end; with ``hold`` it waits before the end
  until ``POST /release`` or the client's disconnect;
* ``act``: ``count`` requests for inference on the acting socket, one after the other, and a stream of their
  statuses; with ``hold`` it waits before the last one;
* ``status``: the status ``count``; ``die``: the process ends without a response;
* ``garbage``: an event stream of ``count`` bytes without a frame.

A GET of ``…/content?size=n`` returns n bytes with ``content-disposition``.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn

from appliance.system.unix_socket import address
from tests.conftest import ROOT, START_S, Response, wait_until

BLOCK = bytes(range(256)) * 256


def content(size: int) -> bytes:
    """Return the bytes of ``…/content?size=n``."""
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


class UnixConnection(HTTPConnection):
    """A connection to a Unix socket at a path of any length."""

    def __init__(self, path: Path, timeout: float = 100) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        with address(self._path) as name:
            self.sock.connect(name)


def unix_request(
    path: Path, target: str, body: object = None, headers: dict[str, str] | None = None, method: str = "POST"
) -> Response:
    """Send one request to the Unix socket at ``path``."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    with closing(UnixConnection(path)) as connection:
        connection.request(method, target, data, {"content-type": "application/json"} | (headers or {}))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, found, response.read())


class StandInApp:
    """The application, for ASGI."""

    def __init__(self, acting: Path, events: Path) -> None:
        self._acting = acting
        self._events = events
        self._released = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        digest, length, body = hashlib.sha256(), 0, b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._log({"disconnected": scope["path"]})
                return
            digest.update(message["body"])
            length += len(message["body"])
            body = body + message["body"] if length < 100_000 else b""
            if not message.get("more_body"):
                break
        headers = [(name.decode(), value.decode("latin1")) for name, value in scope["headers"]]
        seen = {
            "method": scope["method"],
            "path": scope["path"],
            "raw": scope["raw_path"].decode(),
            "query": scope["query_string"].decode(),
            "headers": dict(headers),
            "names": [name for name, _ in headers],
            "length": length,
            "sha256": digest.hexdigest(),
        }
        self._log(seen)
        if scope["path"].endswith("/release"):
            # Those that wait now, and none that begins to wait later.
            self._released.set()
            self._released.clear()
        if scope["path"].endswith("/content"):
            await self._download(int(parse_qs(seen["query"])["size"][0]), send)
            return
        do: dict[str, Any] = {}
        with suppress(ValueError):
            fields = json.loads(body)
            do = (fields.get("metadata") or {}) if isinstance(fields, dict) else {}
        kind, number = do.get("do", "echo"), int(do.get("count", 0))
        if kind == "die":
            os._exit(9)
        elif kind == "stream":
            await self._watched(receive, scope["path"], self._stream(send, number, hold="hold" in do))
        elif kind == "act":
            await self._watched(receive, scope["path"], self._act(send, seen["headers"], do))
        elif kind == "garbage":
            await self._start(send, 200, "text/event-stream")
            await send({"type": "http.response.body", "body": b"x" * number, "more_body": True})
            await self._released.wait()
        else:
            status = number if kind == "status" else 200
            text = json.dumps(seen).encode()
            more = [
                (b"content-length", str(len(text)).encode()),
                (b"openai-version", b"2020-10-01"),
                (b"set-cookie", b"a=b"),
                (b"access-control-allow-origin", b"*"),
                (b"x-request-id", b"of the assistant"),
            ]
            await self._start(send, status, "application/json", more)
            await send({"type": "http.response.body", "body": text})

    def _log(self, entry: dict[str, Any]) -> None:
        with self._events.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    async def _start(
        self, send: Any, status: int, kind: str, more: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        headers = [(b"content-type", kind.encode()), *(more or [])]
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def _download(self, size: int, send: Any) -> None:
        more = [(b"content-disposition", b'attachment; filename="a.bin"'), (b"content-length", str(size).encode())]
        await self._start(send, 200, "application/octet-stream", more)
        sent = 0
        while sent < size:
            block = BLOCK[: size - sent]
            sent += len(block)
            await send({"type": "http.response.body", "body": block, "more_body": sent < size})
            if sent % 2**20 == 0:
                self._log({"sent": sent})

    async def _watched(self, receive: Any, path: str, work: Any) -> None:
        """Run ``work`` until its end or the client's disconnect."""
        task = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._left(receive))
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            self._log({"disconnected": path})
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _left(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _event(self, send: Any, number: int, kind: str, *, more: bool = True, **fields: Any) -> None:
        event = {"type": kind, "sequence_number": number, **fields}
        text = f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode()
        # In two pieces: the gateway must forward whole frames only.
        await send({"type": "http.response.body", "body": text[:20], "more_body": True})
        await send({"type": "http.response.body", "body": text[20:], "more_body": more})

    async def _stream(self, send: Any, count: int, *, hold: bool) -> None:
        await self._start(send, 200, "text/event-stream", [(b"cache-control", b"no-store")])
        response = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
        await self._event(send, 0, "response.created", response=response)
        for number in range(1, count + 1):
            await self._event(send, number, "response.output_text.delta", delta=f"word {number} ")
        if hold:
            # The beginning of a frame, whose end follows after the release.
            await send({"type": "http.response.body", "body": b": half of", "more_body": True})
            await self._released.wait()
            await send({"type": "http.response.body", "body": b" a comment\n\n", "more_body": True})
        await self._event(
            send, count + 1, "response.completed", more=False, response=response | {"status": "completed"}
        )

    async def _act(self, send: Any, headers: dict[str, str], do: dict[str, Any]) -> None:
        await self._start(send, 200, "text/event-stream")
        names = ("x-appliance-user", "x-appliance-key", "x-request-id")
        same = {name: headers[name] for name in names}
        body = {"model": do.get("model", "fake"), "messages": [{"role": "user", "content": "fake: tokens=3"}]}
        await self._event(send, 0, "response.created", response={"id": "resp_1"})
        for number in range(1, int(do["count"]) + 1):
            if "hold" in do and number == int(do["count"]):
                await self._released.wait()
            found = await asyncio.to_thread(unix_request, self._acting, "/v1/chat/completions", body, same)
            await self._event(send, number, "acted", status=found.status)
        await self._event(send, int(do["count"]) + 1, "response.completed", more=False)


class StandIn:
    """The process, as tests see it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "assistant.sock"
        self.acting = folder / "acting.sock"
        self._events = folder / "events.jsonl"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def section(self) -> dict[str, Any]:
        """The section of the site."""
        return {"socket": str(self.socket), "acting_socket": str(self.acting)}

    def start(self) -> None:
        argv = [sys.executable, "-m", "tests.gateway.running.stand_in", str(self.folder)]
        with (self.folder / "assistant.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
        wait_until(self._listens, "the stand-in listens", START_S)

    def kill(self) -> None:
        """End the process with SIGKILL."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(20)
            self.process = None

    def release(self) -> None:
        unix_request(self.socket, "/release")

    def seen(self, path: str = "") -> list[dict[str, Any]]:
        """The requests so far, or those of ``path``."""
        return [one for one in self._entries() if "method" in one and path in ("", one["path"])]

    def sent(self) -> int:
        """Bytes of the download that the process has written so far."""
        return max((int(one["sent"]) for one in self._entries() if "sent" in one), default=0)

    def disconnected(self) -> int:
        """The number of requests whose client disconnected."""
        return sum("disconnected" in one for one in self._entries())

    def forget(self) -> None:
        self._events.unlink(missing_ok=True)

    def _entries(self) -> list[dict[str, Any]]:
        if not self._events.exists():
            return []
        return [json.loads(line) for line in self._events.read_text().splitlines(keepends=True) if line[-1] == "\n"]

    def _listens(self) -> bool:
        try:
            return unix_request(self.socket, "/up").status == 200
        except (OSError, HTTPException):
            return False


@contextmanager
def stand_in(folder: Path) -> Iterator[StandIn]:
    """A running stand-in with its sockets in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    running = StandIn(folder)
    running.start()
    running.forget()
    try:
        yield running
    finally:
        running.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    path = folder / "assistant.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        with address(path) as name:
            listener.bind(name)
        listener.listen(100)
        app = StandInApp(folder / "acting.sock", folder / "events.jsonl")
        config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
        asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
