"""One machine of the test network: a network, mount and host-name namespace of its own, and what runs in it.

Nothing has a name in the kernel, so nothing can be left behind: the namespaces live as long as a process in them,
and every process is told by the kernel to end when the tests do, also when these are killed.
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
_LIBC = ctypes.CDLL(None, use_errno=True)


class CommandError(Exception):
    """A command in a machine failed."""


def _enter(descriptor: int) -> None:
    """Put the calling thread into a network namespace: ``setns(2)``."""
    if _LIBC.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class NetworkMachine:
    """A machine. ``/run`` and ``/var/lib`` are its own; everything else is that of the machine it runs on.

    ``/var/lib`` outlives it, as a disk does: a machine of the same name finds it again.
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
        # /sys shows the network that its mounter had.
        own = ["mount -t sysfs sys /sys", "mount -t tmpfs run /run"]
        mounts = " && ".join([*own, f"mount --bind {shlex.quote(str(self.disk))} /var/lib"])
        script = f"{mounts} && hostname {name} && ip link set lo up && touch /run/up && exec sleep infinity"
        self._holder = subprocess.Popen([*argv, "sh", "-c", script])
        wait_until(self._is_up, f"machine {name} is there")

    def _is_up(self) -> bool:
        if self._holder.poll() is not None:
            raise CommandError(f"machine {self.name}: no namespaces (unshare ended with {self._holder.returncode})")
        return self.path("/run/up").exists() and "sleep" in Path(f"/proc/{self.pid}/cmdline").read_text()

    @property
    def pid(self) -> int:
        """The process that keeps the namespaces."""
        return self._holder.pid

    def path(self, inside: str) -> Path:
        """Where the file ``inside`` of the machine is found from here."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o600) -> str:
        """Put a file into the machine; the path it has there."""
        file = self.path(inside)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode)
        file.write_text(text)
        return inside

    def _inside(self, argv: list[str]) -> list[str]:
        spaces = f"/proc/{self.pid}/ns"
        return ["nsenter", f"--net={spaces}/net", f"--mount={spaces}/mnt", f"--uts={spaces}/uts", "--", *argv]

    def said(self, *argv: str, given: str | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever that is."""
        return subprocess.run(
            self._inside([*argv]), input=given, capture_output=True, text=True, check=False, timeout=timeout
        )

    def do(self, *argv: str, given: str | None = None, timeout: float = 60) -> str:
        """Run a command that has to succeed; what it prints."""
        done = self.said(*argv, given=given, timeout=timeout)
        if done.returncode != 0:
            raise CommandError(f"{self.name}: {' '.join(argv)}: {done.stderr or done.stdout}")
        return done.stdout

    def log(self, name: str) -> Path:
        """The file that holds what the process ``name`` says."""
        return self.logs / f"{self.name}-{name}.log"

    def start(self, name: str, argv: list[str], environment: Mapping[str, str] | None = None) -> Any:
        """Start a daemon; it ends with the machine. Only from the main thread, whose end would end it too."""
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
        """Sockets that are made meanwhile belong to this machine, for good. The whole thread is there: be brief."""
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
        """A new socket of this machine."""
        with self.inside():
            return socket.socket(family, kind, protocol)

    def listens(self, port: int, kind: str = "-t") -> bool:
        """Whether something of this machine listens on ``port``."""
        return bool(self.do("ss", "-Hln", kind, f"sport = :{port}").strip())

    def stop(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
        """End one daemon and wait for it."""
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
        """End everything at once. Its network goes with it, so nobody hears a FIN if the cable went first."""
        for process in [*reversed(self.processes), self._holder]:
            if process.poll() is None:
                process.kill()
        for process in [*self.processes, self._holder]:
            process.wait()
        self.processes.clear()

    def close(self) -> None:
        """End it in good order: nginx and the gateway have children and last words."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in [*self.processes]:
            self.stop(process)
        self.power_off()
