"""Single steps that a unit needs its sandbox for. It runs on a booted machine, under the sandbox of the unit.

It has no module of the repository, because the packages of a real engine are in its path instead.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib
import mmap
import os
import pwd
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
CALLS = {"mbind": 237, "set_mempolicy": 238, "get_mempolicy": 239, "migrate_pages": 256, "move_pages": 279}
"""Numbers of calls of x86_64 that the C library has no function for."""
PIDFD_OPEN, PIDFD_GETFD = 434, 438
GET_FLAGS, SET_FLAGS, IMMUTABLE = 0x80086601, 0x40086602, 0x10
"""ioctl(2) requests for the flags of a file."""


def call(number: int, *arguments: int) -> int:
    """Return the result of a system call; raise :class:`PermissionError` if the sandbox denies it."""
    result = int(LIBC.syscall(number, *arguments))
    if result < 0 and ctypes.get_errno() == errno.EPERM:
        raise PermissionError(errno.EPERM, f"system call {number}: {os.strerror(errno.EPERM)}")
    return result


def family(name: str) -> None:
    """Open a socket of an address family."""
    socket.socket(getattr(socket, name), socket.SOCK_DGRAM).close()


def interfaces() -> None:
    """List the network interfaces, as NCCL and Gloo do."""
    socket.if_nameindex()


def send(address: str) -> None:
    """Send a datagram."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(kind, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"", (address, 9))


def opens(node: str, mode: str) -> None:
    """Open a device node."""
    try:
        os.close(os.open(node, os.O_RDWR if mode == "rw" else os.O_RDONLY))
    except OSError as error:
        # The sandbox allows it, and the driver is absent.
        if error.errno not in {errno.ENXIO, errno.ENODEV}:
            raise


def read(file: str) -> None:
    """Read a file."""
    Path(file).read_bytes()


def write(folder: str) -> None:
    """Create a file in a folder."""
    tempfile.TemporaryFile(dir=folder).close()


def system_call(name: str) -> None:
    """Call the kernel with arguments that it refuses for another reason than the sandbox."""
    call(CALLS[name], -1, 0, 0, 0, 0, 0)


def share() -> None:
    """Take over the file of another process, as torch does for memory of another worker."""
    with tempfile.TemporaryFile() as file:
        call(PIDFD_GETFD, call(PIDFD_OPEN, os.getpid(), 0), file.fileno(), 0)


def affinity() -> None:
    """Bind this thread to its CPUs, as vLLM's workers do."""
    os.sched_setaffinity(0, os.sched_getaffinity(0))


def lock_memory() -> None:
    """Lock more memory than the default of systemd allows, which the test sets to 64 KiB."""
    size = 4 << 20
    memory = mmap.mmap(-1, size)
    if LIBC.mlock(ctypes.byref(ctypes.c_char.from_buffer(memory)), ctypes.c_size_t(size)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def many_files() -> None:
    """Open more files than systemd's default of 1024 allows; no limit is raised."""
    for _ in range(2000):
        os.open(os.devnull, os.O_RDONLY)


def immutable(folder: str) -> None:
    """Make a file immutable, as the kernel makes EFI variables, and change it back."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        flags = ctypes.c_long(0)
        fcntl.ioctl(file, GET_FLAGS, flags)
        for wanted in (flags.value | IMMUTABLE, flags.value & ~IMMUTABLE):
            fcntl.ioctl(file, SET_FLAGS, ctypes.c_long(wanted))


def compiled() -> None:
    """Compile and run a function in this process, as vLLM does with Numba for speculative tokens."""
    numba: Any = importlib.import_module("numba")
    if numba.njit(lambda number: number + 1)(1) != 2:
        raise OSError("the compiled function returned another value")


def public_file(folder: str) -> None:
    """Create a file that every user may read."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        path = f"{made}/probe"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
        if not Path(path).stat().st_mode & 0o004:
            raise PermissionError(errno.EACCES, f"{path} is private")


def owner(path: str, account: str) -> None:
    """Compare the owner of a file with an account, as the gateway compares processes that connect."""
    found = Path(path).stat().st_uid
    if found != pwd.getpwnam(account).pw_uid:
        raise OSError(f"{path} belongs to the uid {found}")


def process_name(pid_file: str) -> None:
    """Read the name of the process whose number is in a file."""
    Path(f"/proc/{Path(pid_file).read_text().strip()}/comm").read_text()


def signal_process(pid_file: str) -> None:
    """Send no signal to the process whose number is in a file, with the rights for one."""
    os.kill(int(Path(pid_file).read_text()), 0)


def program(*argv: str) -> None:
    """Run a program with its output; it must end with 0."""
    subprocess.run(argv, check=True)


PROBES: dict[str, Callable[..., None]] = {
    "affinity": affinity, "call": system_call, "compiled": compiled, "family": family, "files": many_files,
    "immutable": immutable, "interfaces": interfaces, "lock": lock_memory, "name": process_name, "open": opens,
    "owner": owner, "program": program, "public": public_file, "read": read, "send": send, "share": share,
    "signal": signal_process, "write": write,
}  # fmt: skip

if __name__ == "__main__":
    try:
        PROBES[sys.argv[1]](*sys.argv[2:])
    except (OSError, ImportError, subprocess.CalledProcessError) as failure:
        sys.exit(f"probe: {failure}")
