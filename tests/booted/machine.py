"""A machine in namespaces: this machine's Debian below a layer of its own, with its systemd as process 1.

The machine has namespaces and a cgroup of its own, and all files that it writes are in one folder. Its systemd
applies each line of a unit's sandbox: system calls, devices, addresses, capabilities, users.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.nix import checker

SOURCE = "/opt/appliance"
"""Folder of the repository on the machine: a sandbox hides /root and /tmp."""
PYTHON = "/opt/python"
"""Folder of the Python that runs the tests."""
NIX = "/opt/nix"
"""Folder of Nix, as nix-check keeps it."""

BOOT = Path(__file__).with_name("boot.sh")


class BootedMachine:
    """A machine under ``folder``. Write its files below :attr:`root`, then :meth:`boot` it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "upper"
        for part in ("upper", "work", "merged"):
            (folder / part).mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup: Path | None = None
        # Only the units of a test start.
        for unit in (
            "multi-user.target.wants",
            "timers.target.wants",
            "sockets.target.wants",
            "getty.target.wants",
        ):
            self._hide(f"etc/systemd/system/{unit}")
        self.write("etc/hostname", "booted\n")

    def write(self, path: str, text: str, *, executable: bool = False) -> None:
        """Write a file of the machine before it boots."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if executable else 0o644)

    def boot(self) -> None:
        """Boot, and wait until systemd accepts commands."""
        self._cgroup = _cgroups() / f"appliance-test-{os.getpid()}-{self.folder.name}"
        self._cgroup.mkdir()
        enter = f'echo $$ > "{self._cgroup}/cgroup.procs"; exec "$@"'
        namespaces = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--uts",
            "--ipc",
            "--net",
            "--cgroup",
        ]
        binds = {checker.CACHE / "nix": NIX, Path(sys.base_prefix): PYTHON, checker.ROOT: SOURCE}
        argv = ["sh", "-c", enter, "sh", *namespaces, "bash", BOOT, self.folder]
        argv += [f"{source}:{target}" for source, target in binds.items()]
        with (self.folder / "console").open("wb") as log:
            self._process = subprocess.Popen(
                [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        wait_until(self._is_up, "systemd is up", 60)

    def run(self, *argv: str, check: bool = True) -> str:
        """Return the output of a command on the machine."""
        enter = ["nsenter", "--target", str(self._leader()), "--all", "--root", "--wd"]
        done = subprocess.run([*enter, *argv], capture_output=True, text=True, check=False, timeout=120)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, unit: str) -> None:
        """Start a unit; fail with its messages if it does not start."""
        try:
            self.run("systemctl", "start", unit)
        except AssertionError:
            pytest.fail(f"{unit} did not start: {self.journal(unit)}")

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, unit: str) -> str:
        """Return the messages of a unit."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def stop(self) -> None:
        """End every process of the machine, and remove its cgroup."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._cgroup is not None:
            wait_until(self._has_ended, "the kernel has ended the processes of the machine", 20)

    def _has_ended(self) -> bool:
        """Remove the cgroup; return whether no process was left in it."""
        assert self._cgroup is not None
        try:
            for folder, _, _ in os.walk(self._cgroup, topdown=False):
                Path(folder).rmdir()
        except OSError:
            return False
        return True

    def _hide(self, path: str) -> None:
        """Put an opaque folder over one of this machine."""
        folder = self.root / path
        folder.mkdir(parents=True)
        os.setxattr(folder, "trusted.overlay.opaque", b"y")

    def _leader(self) -> int:
        """Return the process number of the machine's systemd on this machine."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0])

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"the machine ended: {(self.folder / 'console').read_text()}")
        try:
            state = self.run("systemctl", "is-system-running", check=False).strip()
        except (IndexError, FileNotFoundError):
            return False
        return state in {"running", "degraded"}


def appliance_program() -> str:
    """Return our program on the machine."""
    python = f"{PYTHON}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    packages = Path(sysconfig.get_path("purelib")).resolve().relative_to(checker.ROOT)
    # A Python with a shared library would find Debian's: its own RUNPATH is hidden.
    variables = f"LD_LIBRARY_PATH={PYTHON}/lib PYTHONPATH={SOURCE}:{SOURCE}/{packages}"
    return f'#!/bin/sh\n{variables} exec {python} -m appliance "$@"\n'


def nix_program(name: str) -> str:
    """Return a program of Nix on the machine: nix-env, nix-daemon and others are one binary."""
    libraries = f"{NIX}/root/usr/lib/x86_64-linux-gnu"
    return (
        f"#!/bin/sh\nexec {libraries}/ld-linux-x86-64.so.2 --argv0 {name} --library-path {libraries} "
        f'{NIX}/root/usr/bin/nix "$@"\n'
    )


def require() -> None:
    """Skip the test unless this machine can boot one in namespaces."""
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: booting a machine in namespaces needs root")
    for program in ("unshare", "nsenter"):
        checker.require(program)
    if not Path("/lib/systemd/systemd").exists() or shutil.which("systemctl") is None:
        pytest.skip("NOT CHECKED: systemd is not installed")
    _cgroups()


def _cgroups() -> Path:
    """Return the folder of cgroups of version 2."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(folder)
    pytest.skip("NOT CHECKED: no writable cgroup2 is mounted")
