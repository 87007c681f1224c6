"""A server that shows a test the progress of a long run, and can hold its requests at one step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import ROOT, wait_until

HELD_S = 60.0
MANY = 30
"""Requests after which a load has begun."""
MARK = "LONG_RUN_OF_A_TEST"
"""A variable that every process of one run inherits, in any process group."""

FRAMES: list[dict[str, Any]] = [
    *[{"choices": [{"index": 0, "delta": {"content": "word "}}]}] * 3,
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
    {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}},
]
ANSWER = b"".join(b"data: %s\n\n" % json.dumps(frame).encode() for frame in FRAMES) + b"data: [DONE]\n\n"


class Witness(ThreadingHTTPServer):
    """A server that responds like an engine.

    Requests of the step ``hold`` wait; every request of the load gets ``status``.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, hold: str = "", *, status: int = 200, last_of: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hold = hold
        self.status = status
        self.last_of = last_of
        """Number of requests of the load after which a request for the metrics is the last one."""
        self.reached: dict[str, int] = {}
        self.released = threading.Event()
        self.headers: list[dict[str, str]] = []
        self.hosts: set[str] = set()
        self.keys: set[str] = set()
        """Valid keys; empty for a server that needs none."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def reach(self, moment: str) -> None:
        """Record that a run has reached ``moment``, and hold it there if that is the step to hold."""
        self.reached[moment] = self.reached.get(moment, 0) + 1
        if moment == self.hold:
            self.released.wait(HELD_S)

    def came_to(self, moment: str, times: int = 1) -> Callable[[], bool]:
        return lambda: self.reached.get(moment, 0) >= times

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore aborted requests of a run that ends."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Witness

    def do_GET(self) -> None:
        # As a proxy it gets a whole address.
        path = urlsplit(self.path).path
        self.server.hosts.add(self.headers["Host"])
        if self._refused():
            return
        if path == "/v1/models":
            self.server.reach("list")
            self._answer(b'{"data": [{"id": "fake"}]}', "application/json")
        else:
            last = self.server.last_of is not None and self.server.reached.get("load", 0) >= self.server.last_of
            self.server.reach("report" if last else "look")
            self._answer(b"appliance_gateway_requests_in_flight 0\n", "text/plain")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.hosts.add(self.headers["Host"])
        if self._refused():
            return
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if body["max_tokens"] == 1:
            self.server.reach("sizing" if self.server.reached.get("preflight") else "preflight")
            self._answer(ANSWER, "text/event-stream")
            return
        self.server.reach("load")
        self._answer(ANSWER, "text/event-stream", self.server.status)

    def _refused(self) -> bool:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.server.keys or key in self.server.keys:
            return False
        self._answer(b"{}", "application/json", 401)
        return True

    def _answer(self, body: bytes, kind: str, status: int = 200) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        """Log nothing."""


@contextmanager
def witness(hold: str = "", *, status: int = 200, last_of: int | None = None) -> Iterator[Witness]:
    with Witness(hold, status=status, last_of=last_of) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


class LongRun:
    """A command in a process of its own, with default signal handlers even if the tests' parent ignores signals."""

    def __init__(
        self,
        folder: Path,
        *words: object,
        ignored: Sequence[signal.Signals] = (),
        stdout: Any = None,
        cwd: Path = ROOT,
        **environ: str,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.out, self.err = folder / "out", folder / "err"
        own = {MARK: self.mark, "TMPDIR": str(self.temporary), "APPLIANCE_CONFIG": "/nonexistent", "COLUMNS": "150"}
        signals = ["env", "--default-signal=INT,TERM,HUP", *(f"--ignore-signal={one.name[3:]}" for one in ignored)]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*signals, sys.executable, "-m", "appliance", *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err,
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": str(ROOT), **own, **environ},
            )

    def processes(self) -> dict[int, bytes]:
        """Return the processes of this run by pid, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                        found[int(entry.name)] = (entry / "cmdline").read_bytes()
        return found

    def load(self) -> int | None:
        """Return the load generator's pid; ``None`` if it does not run."""
        return next((pid for pid, line in self.processes().items() if b"locust" in line.split(b"\0")), None)

    def is_quiet(self) -> bool:
        """Return whether the interpreter has restored SIGINT's default, so that it ends without a traceback."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        lines = [line.split() for line in status.splitlines() if line.startswith(("SigIgn", "SigCgt"))]
        masks = {name[:6]: int(mask, 16) for name, mask in lines}
        started = masks["SigIgn"] & 1 << signal.SIGPIPE - 1
        return bool(started) and not masks["SigCgt"] & 1 << signal.SIGINT - 1

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.output}"
            return condition()

        wait_until(holds, what, 60)

    @property
    def output(self) -> str:
        return self.out.read_text() + self.err.read_text()

    def end(self) -> int:
        """Wait for its end; return its exit code once no process and no file of it remains."""
        try:
            code = self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
        assert self.processes() == {}, "a process outlives the run"
        assert [*self.temporary.iterdir()] == [], "a folder outlives the run"
        assert "Traceback" not in self.output, self.output
        return code

    def close(self) -> None:
        """Kill the processes of a failed test."""
        self.process.kill()
        self.process.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def long_run(folder: Path, *words: object, **more: Any) -> Iterator[LongRun]:
    run = LongRun(folder, *words, **more)
    try:
        yield run
    finally:
        run.close()
