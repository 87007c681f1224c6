"""Starts this repository's programs by fork, from one process for each program that has imported its modules.

A gateway imports for a second of CPU and an assistant for three, and the tests start hundreds of them. Here, the
first start of a program imports; each further one is a fork with its own command line, environment and output.
Tests of a whole start (``appliance up``, the units, the command line) use no process of this module.

``python -m tests.preloaded FD PROGRAM``, the process that forks, takes one request for each message of its socket.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import IO, Protocol

ROOT = Path(__file__).resolve().parent.parent

_STORE = "sqlalchemy.dialects.sqlite"
_SERVER = (
    "anyio._backends._asyncio",
    "pydantic.v1",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
_GATEWAY = ("appliance.cli.serve", "appliance.gateway.main", _STORE)
_ASSISTANT = ("appliance.cli.serve", "appliance.assistant.main", "alembic.command", "httpcore", _STORE, *_SERVER)

MODULES = {
    "appliance gateway": _GATEWAY,
    "appliance assistant": _ASSISTANT,
    "appliance admin": ("appliance.cli.serve", "appliance.admin.serve", _STORE, *_SERVER),
    "appliance telegram": ("appliance.cli.telegram", "appliance.telegram.main", _STORE),
    "appliance deadman": ("appliance.cli.deadman",),
    "appliance gpu-watch": ("appliance.cli.gpu_watch",),
    "appliance notify": ("appliance.cli.notify",),
    "appliance power": ("appliance.cli.power",),
    "appliance.engines.mock": ("appliance.engines.mock",),
    "tests.assistant.sabotage": ("tests.assistant.sabotage", *_ASSISTANT),
    "tests.fakes.faulty_gateway": ("tests.fakes.faulty_gateway", *_GATEWAY),
}
"""The modules that a program imports until it serves, by the first words after ``python -m``."""

LARGEST_REQUEST = 1 << 20
"""Bytes of the command line and the environment of one start."""


class ChildProcess(Protocol):
    """A process that a test started: a :class:`subprocess.Popen` or a :class:`ForkedProcess`."""

    pid: int

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class ForkedProcess:
    """A started program, with the methods of :class:`subprocess.Popen` that tests use."""

    def __init__(self, argv: Sequence[str], pid: int, ended: int) -> None:
        """Take the pipe ``ended``, through which the exit code arrives."""
        self.args = argv
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended
        self._lock = Lock()

    def poll(self) -> int | None:
        """Return the exit code, or ``None`` while the process runs."""
        return self._code(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code after the end of the process.

        Raises :class:`subprocess.TimeoutExpired` if that takes more than ``timeout`` seconds.
        """
        code = self._code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """Send the signal ``sig`` unless the process has ended."""
        if self.poll() is None:
            # It may end at this moment.
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _code(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            with self._lock:
                if self.returncode is None:
                    text = os.read(self._ended, 32)
                    assert text, f"the process that forked {self.args[:4]} is gone"
                    self.returncode = int(text)
        return self.returncode

    def __del__(self) -> None:
        os.close(self._ended)


class _ForkingProcess:
    """The process that has imported the modules of one program, seen from the test."""

    def __init__(self, program: str) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = Lock()
        with other:
            argv = [sys.executable, "-m", "tests.preloaded", str(other.fileno()), program]
            # Its output is not a terminal, as that of the started processes.
            self._process = subprocess.Popen(
                argv,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def start(
        self, argv: Sequence[str], output: IO[bytes], environment: Mapping[str, str], cwd: Path
    ) -> ForkedProcess:
        """Start the program with the words ``argv``, of which the first three are ``python -m MODULE``."""
        asked = json.dumps({"argv": argv[2:], "environment": dict(environment), "cwd": str(cwd)}).encode()
        ended, tell = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._socket, [asked], [output.fileno(), tell])
                response = self._socket.recv(64)
        finally:
            os.close(tell)
        assert response, f"the process that forks {argv[:4]} is gone"
        return ForkedProcess(argv, int(response), ended)

    def close(self) -> None:
        """End the process; the programs that it started go on."""
        self._socket.close()
        self._process.wait(60)


_forking: dict[str, _ForkingProcess] = {}
_forking_lock = Lock()


@atexit.register
def _close_all() -> None:
    while _forking:
        _forking.popitem()[1].close()


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have their effect before the first line of a program."""
    return {name: value for name, value in environment.items() if name.startswith(("LD_", "MALLOC_", "PYTHON"))}


def start_program(
    argv: Sequence[str], output: IO[bytes], environment: Mapping[str, str], cwd: Path = ROOT
) -> ChildProcess:
    """Start ``argv`` with its output in ``output``.

    A program of :data:`MODULES` is forked, unless ``environment`` has variables for the loader or for Python.
    """
    program = " ".join(argv[2:4] if argv[2:3] == ["appliance"] else argv[2:3])
    own = _read_early(environment) == _read_early({**os.environ, "PYTHONPATH": str(ROOT)})
    if argv[:2] != [sys.executable, "-m"] or program not in MODULES or not own:
        return subprocess.Popen(argv, stdout=output, stderr=output, cwd=cwd, env=dict(environment))
    with _forking_lock:
        if program not in _forking:
            _forking[program] = _ForkingProcess(program)
    return _forking[program].start(argv, output, environment, cwd)


class _Forks:
    """The process that forks: it waits for requests and for the ends of the processes that it started."""

    def __init__(self, requests: socket.socket) -> None:
        self.requests = requests
        self.ends: dict[int, tuple[int, int]] = {}
        """The pid and the pipe for the exit code, by the descriptor of the process."""

    def run(self) -> list[str] | None:
        """Fork until the test closes the socket. Returns the command line in each started process."""
        while True:
            asked = self.requests.fileno()
            ready, _, _ = select.select([asked, *self.ends], [], [])
            for one in ready:
                if one != asked:
                    self._report(one)
            if asked in ready:
                request, descriptors, _, _ = socket.recv_fds(self.requests, LARGEST_REQUEST, 2)
                if not request:
                    return None
                output, tell = descriptors
                pid = os.fork()
                if pid == 0:
                    return self._become(json.loads(request), output, tell)
                os.close(output)
                self.ends[os.pidfd_open(pid)] = (pid, tell)
                self.requests.send(str(pid).encode())

    def _report(self, descriptor: int) -> None:
        pid, tell = self.ends.pop(descriptor)
        os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        # The test may have stopped waiting for it.
        with suppress(BrokenPipeError):
            os.write(tell, str(code).encode())
        os.close(tell)

    def _become(self, request: dict[str, object], output: int, tell: int) -> list[str]:
        """Take the place of a process that was started with ``request``."""
        self.requests.close()
        for descriptor, (_, pipe) in self.ends.items():
            os.close(descriptor)
            os.close(pipe)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.close(tell)
        environment, argv = request["environment"], request["argv"]
        assert isinstance(environment, dict)
        assert isinstance(argv, list)
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        os.chdir(str(request["cwd"]))
        return argv


def main() -> None:
    """Import the modules of a program and fork it on request."""
    number, program = int(sys.argv[1]), sys.argv[2]
    for name in MODULES[program]:
        import_module(name)
    interrupted = signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A collection in a started process does not touch, and so does not copy, what it inherited.
    gc.collect()
    gc.freeze()
    argv = _Forks(socket.socket(fileno=number)).run()
    if argv is not None:
        signal.signal(signal.SIGINT, interrupted)
        sys.argv[:] = argv
        if argv[0] == "appliance":
            runpy.run_module("appliance", run_name="__main__", alter_sys=True)
        else:
            sys.exit(import_module(argv[0]).main())


if __name__ == "__main__":
    main()
