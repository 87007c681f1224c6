"""A machine in namespaces: a Debian 13 below a layer of its own, with its systemd as process 1.

The machine has namespaces and a cgroup of its own, and all files that it writes are in one folder. Its systemd
applies each line of a unit's sandbox: system calls, devices, addresses, capabilities, users.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.booted import debian
from tests.conftest import wait_until
from tests.nix import checker
from tests.nix.unitfile import UnitFile

SOURCE = "/opt/appliance"
"""Folder of the repository on the machine: a sandbox hides /root and /tmp."""
PYTHON = "/opt/python"
"""Folder of the Python that runs the tests."""
NIX = "/opt/nix"
"""Folder of Nix, as nix-check keeps it."""
PACKAGES = "/opt/packages"
"""Folder of the packages of that Python, which may be outside the repository."""
ENGINE = "/opt/engine"
"""Folder of the packages of a real engine, if the repository has it."""
ENGINE_PACKAGES = next((checker.ROOT / ".venv-engine").glob("lib/python*/site-packages"), None)

BOOT = Path(__file__).with_name("boot.sh")
DRIVERS: Mapping[str, int] = {"nvidia": 195, "nvidiactl": 195, "nvidia-uvm": 390, "nvidia-caps": 391}
"""Character devices of NVIDIA's driver by name. The kernel chooses the last two numbers when the driver loads."""
NODES: Mapping[str, tuple[int, int]] = {
    "nvidia0": (195, 0),
    "nvidia1": (195, 1),
    "nvidiactl": (195, 255),
    "nvidia-uvm": (390, 0),
    "nvidia-uvm-tools": (390, 1),
    "nvidia-caps/nvidia-cap1": (391, 1),
    "nvidia-caps/nvidia-cap2": (391, 2),
}
"""Major and minor number of its nodes in /dev."""


class BootedMachine:
    """A machine under ``folder``. Write its files below :attr:`root`, then :meth:`boot` it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "upper"
        folder.mkdir(exist_ok=True)
        for part in ("upper", "work", "merged", "nix-upper", "nix-work"):
            (folder / part).mkdir()
        characters, blocks = Path("/proc/devices").read_text().split("\n\n")
        drivers = [f"{major} {name}" for name, major in DRIVERS.items()]
        (folder / "devices").write_text("\n".join([characters, *drivers, "", blocks]))
        nodes = [f"{name} {major} {minor}\n" for name, (major, minor) in NODES.items()]
        (folder / "nodes").write_text("".join(nodes))
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup: Path | None = None
        # Only the units of a test start.
        for unit in (
            "multi-user.target.wants",
            "timers.target.wants",
            "sockets.target.wants",
            "getty.target.wants",
        ):
            self.hide(f"etc/systemd/system/{unit}")
        # The console is a file and needs no login.
        self.link("etc/systemd/system/getty.target", "/dev/null")
        self.write("etc/hostname", f"{folder.name}\n")
        # Otherwise systemd takes this boot for the first one and enables every unit of Debian.
        self.write("etc/machine-id", f"{1:032x}\n")

    def write(self, path: str, text: str, *, executable: bool = False) -> None:
        """Write a file of the machine before it boots."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if executable else 0o644)

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link of the machine before it boots."""
        top, _, rest = path.partition("/")
        link = self.folder / "nix-upper" / rest if top == "nix" else self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)

    def install(self, unit: UnitFile, text: str) -> None:
        """Write a unit with this text, and its links, as NixOS does; :meth:`boot` does not start it."""
        self.write(f"etc/systemd/system/{unit.name}", text)
        for relation, others in (("wants", unit.wanted_by), ("requires", unit.required_by)):
            for other in others:
                self.link(f"etc/systemd/system/{other}.{relation}/{unit.name}", f"../{unit.name}")

    def boot(self, timeout_s: float = 300) -> None:
        """Boot to the basic target, and wait until systemd accepts commands; fail with one line if it does not."""
        self._cgroup = _cgroups() / f"appliance-test-{os.getpid()}-{self.folder.name}"
        self._cgroup.mkdir()
        enter = f'echo $$ > "{self._cgroup}/cgroup.procs"; exec "$@"'
        namespaces = [
            # The machine ends with the tests, even if these are killed.
            "setpriv",
            "--pdeathsig",
            "KILL",
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
        binds[Path(sysconfig.get_path("purelib")).resolve()] = PACKAGES
        if ENGINE_PACKAGES is not None:
            binds[ENGINE_PACKAGES.resolve()] = ENGINE
        argv = ["sh", "-c", enter, "sh", *namespaces, "bash", BOOT, self.folder, debian.ROOT.folder]
        argv += [f"{source}:{target}" for source, target in binds.items()]
        with (self.folder / "console").open("wb") as log:
            self._process = subprocess.Popen(
                [str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_until(lambda: self._has_ended_early() or self._is_up(), "systemd is up", timeout_s)
        except pytest.fail.Exception:
            how = f"did not boot within {timeout_s:g} s"
        else:
            how = "ended before it had booted" if self._has_ended_early() else ""
        if how:
            self.stop()
            lines = (self.folder / "console").read_text(errors="replace").strip().splitlines()
            last = f": {lines[-1].strip()}" if lines else "; its console is empty"
            pytest.fail(f"the machine {self.folder.name} {how}{last}", pytrace=False)

    def run(self, *argv: str, check: bool = True) -> str:
        """Return the output of a command on the machine."""
        enter = ["nsenter", "--target", str(self.leader()), "--all", "--root", "--wd"]
        done = subprocess.run([*enter, *argv], capture_output=True, text=True, check=False, timeout=600)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def cable(self, device: str, own: str, space: str, far: str) -> None:
        """Make ``device`` with the address ``own``, and at its other end the namespace ``space`` with ``far``."""
        self.run("ip", "netns", "add", space)
        self.run("ip", "link", "add", device, "type", "veth", "peer", "name", "far", "netns", space)
        self.run("ip", "address", "add", own, "dev", device)
        self.run("ip", "link", "set", device, "up")
        self.run("ip", "-n", space, "address", "add", far, "dev", "far")
        for end in ("lo", "far"):
            self.run("ip", "-n", space, "link", "set", end, "up")

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
            wait_until(self._has_ended, "the kernel has ended the processes of the machine", 200)

    def wait_for_end(self, timeout_s: float) -> str:
        """Wait until the machine ends itself; return ``reboot`` or ``power off``.

        The kernel ends the process 1 of namespaces with a signal that names the request.
        """
        assert self._process is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the machine {self.folder.name} did not end within {timeout_s:g} s", pytrace=False)
        return {-signal.SIGHUP: "reboot", -signal.SIGINT: "power off"}.get(code, f"exit code {code}")

    def kept_journal(self) -> str:
        """Return the messages of a machine that has ended, if it had a folder /var/log/journal from the start."""
        argv = ["journalctl", "--no-pager", "--output=cat", "--directory", self.root / "var/log/journal"]
        return checker.output_of(argv)

    def _has_ended(self) -> bool:
        """Remove the cgroup; return whether no process was left in it."""
        assert self._cgroup is not None
        try:
            for folder, _, _ in os.walk(self._cgroup, topdown=False):
                Path(folder).rmdir()
        except OSError:
            return False
        return True

    def hide(self, path: str) -> None:
        """Hide a file or the content of a folder of the Debian, if it has that."""
        hidden = self.root / path
        if (debian.ROOT.folder / path).is_dir():
            hidden.mkdir(parents=True)
            os.setxattr(hidden, "trusted.overlay.opaque", b"y")
        elif os.path.lexists(debian.ROOT.folder / path):
            hidden.parent.mkdir(parents=True, exist_ok=True)
            # The mark of a removed file in an overlay.
            os.mknod(hidden, stat.S_IFCHR)

    def leader(self) -> int:
        """Return the process number of the machine's systemd on this machine."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0])

    def _has_ended_early(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _is_up(self) -> bool:
        try:
            state = self.run("systemctl", "is-system-running", check=False).strip()
        except (IndexError, FileNotFoundError):
            return False
        return state in {"running", "degraded"}


def python_program(arguments: str = "", *folders: str) -> str:
    """Return a program that runs the tests' Python with ``arguments`` and packages from ``folders``."""
    python = f"{PYTHON}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    # A Python with a shared library would find Debian's: its own RUNPATH is hidden.
    variables = f"LD_LIBRARY_PATH={PYTHON}/lib PYTHONPATH={':'.join(folders)}"
    return f'#!/bin/sh\n{variables} exec {python} {arguments} "$@"\n'


def appliance_program() -> str:
    """Return our program on the machine."""
    return python_program("-m appliance", SOURCE, PACKAGES)


def require() -> None:
    """Skip the test unless this machine can boot one in namespaces."""
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: booting a machine in namespaces needs root")
    for program in ("unshare", "nsenter"):
        checker.require(program)
    debian.require()
    _cgroups()


def found(program: str) -> str | None:
    """Return the path of a program of the machine's Debian."""
    folders = ("usr/sbin", "usr/bin")
    return next((f"/{one}/{program}" for one in folders if (debian.ROOT.folder / one / program).exists()), None)


def _cgroups() -> Path:
    """Return the folder of cgroups of version 2."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(folder)
    pytest.skip("NOT CHECKED: no writable cgroup2 is mounted")
