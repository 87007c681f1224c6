"""One machine of the test network: its own network, mount and host-name namespaces, and the processes in them.

The namespaces have no name in the kernel, so none of them can remain: they exist as long as a process in them. The
kernel ends every process when the tests end, even if these are killed.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, wait_until

CLONE_NEWNET = 0x40000000
OWN = ("/run", "/var/cache", "/var/log")
"""Folders that are empty at each boot."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class CommandError(Exception):
    """A command in a machine failed."""


def _enter(descriptor: int) -> None:
    """Move the calling thread into a network namespace: ``setns(2)``."""
    if _LIBC.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class NetworkMachine:
    """A machine. It has its own ``/run``, ``/var/lib``, ``/var/cache`` and ``/var/log``; it shares everything else.

    ``/var/lib`` remains like a disk: a later machine of the same name has the same files.
    """

    def __init__(self, name: str, logs: Path) -> None:
        self.name = name
        self.logs = logs
        self.processes: list[subprocess.Popen[bytes]] = []
        argv = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--net",
            "--mount",
            "--uts",
            "--propagation",
            "private",
        ]
        self.disk = logs / f"disk-{name}"
        self.disk.mkdir(exist_ok=True)
        # /sys shows the network of the process that mounted it.
        own = ["mount -t sysfs sys /sys", *(f"mount -t tmpfs own {folder}" for folder in OWN)]
        mounts = " && ".join([*own, f"mount --bind {shlex.quote(str(self.disk))} /var/lib"])
        script = f"{mounts} && hostname {name} && ip link set lo up && touch /run/up && exec sleep infinity"
        self._holder = subprocess.Popen([*argv, "sh", "-c", script])
        wait_until(self._is_up, f"machine {name} is up")

    def _is_up(self) -> bool:
        if self._holder.poll() is not None:
            raise CommandError(f"machine {self.name}: no namespaces (unshare ended with {self._holder.returncode})")
        return self.path("/run/up").exists() and "sleep" in Path(f"/proc/{self.pid}/cmdline").read_text()

    @property
    def pid(self) -> int:
        """Return the process that holds the namespaces."""
        return self._holder.pid

    def path(self, inside: str) -> Path:
        """Return the path outside the machine of its file ``inside``."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o600) -> str:
        """Write a file of the machine; return its path inside."""
        file = self.path(inside)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode)
        file.write_text(text)
        return inside

    def _inside(self, argv: list[str]) -> list[str]:
        spaces = f"/proc/{self.pid}/ns"
        return ["nsenter", f"--net={spaces}/net", f"--mount={spaces}/mnt", f"--uts={spaces}/uts", "--", *argv]

    def try_run(
        self, *argv: str, stdin: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; the caller checks its exit code."""
        return subprocess.run(
            self._inside([*argv]), input=stdin, capture_output=True, text=True, check=False, timeout=timeout
        )

    def run(self, *argv: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run a command and return its output; raise :class:`CommandError` if it fails."""
        done = self.try_run(*argv, stdin=stdin, timeout=timeout)
        if done.returncode != 0:
            raise CommandError(f"{self.name}: {' '.join(argv)}: {done.stderr or done.stdout}")
        return done.stdout

    def log(self, name: str) -> Path:
        """Return the log file of the process ``name``."""
        return self.logs / f"{self.name}-{name}.log"

    def start(self, name: str, argv: list[str], environment: Mapping[str, str] | None = None) -> Any:
        """Start a daemon, which ends with the machine and with the calling thread: call this in the main one."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        with self.log(name).open("ab") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *self._inside(argv)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env,
            )  # fmt: skip
        self.processes.append(process)
        return process

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Create sockets of this machine. The whole thread is in its namespace, so keep the block short."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            _enter(there)
            try:
                yield
            finally:
                _enter(own)
        finally:
            os.close(own)
            os.close(there)

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """Return a new socket of this machine."""
        with self.inside():
            return socket.socket(family, kind, protocol)

    def listens(self, port: int, kind: str = "-t") -> bool:
        """Return whether a process listens on ``port``; ``kind`` is ``-t`` for TCP, ``-u`` for UDP."""
        return bool(self.run("ss", "-Hln", kind, f"sport = :{port}").strip())

    def stop(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
        """Send ``number`` to a daemon and return its exit code; kill it after 20 s."""
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            self.processes = [other for other in self.processes if other is not process]

    def power_off(self) -> None:
        """Kill all processes. The network ends with them: if it was unplugged before, no peer gets a FIN."""
        for process in [*reversed(self.processes), self._holder]:
            if process.poll() is None:
                process.kill()
        for process in [*self.processes, self._holder]:
            process.wait()
        self.processes.clear()

    def close(self) -> None:
        """Terminate all processes in order: nginx and the gateway have children, and write at their end."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in [*self.processes]:
            self.stop(process)
        self.power_off()
