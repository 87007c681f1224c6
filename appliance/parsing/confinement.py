"""The confinement of a process that parses one file. It applies each step to itself, before it parses:

1. It limits memory, processor time and core dumps, and ends with its parent.
2. It enters a network namespace of its own if the kernel allows that to this user.
3. It reads the file and loads everything that the one parser needs.
4. It renounces files: with a limit of zero open files, the kernel refuses each new file, socket and pipe. It also
   renounces new processes and writing to files.
5. Then it parses. Code of an attacker in the parser has the two pipes, memory and time, and nothing else.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from appliance.parsing.limits import ParseLimits, UnusableFileError
from appliance.parsing.text import ENCODINGS

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
NICE = 10
LIBRARY_ENCODINGS = ("ascii", "latin-1", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "cp437")
"""Encodings that the parsers' libraries use: PDF strings, names in archives."""


def parse_and_report(limits: ParseLimits, parse: Callable[[bytes], dict[str, Any]]) -> int:
    """Confine this process, call ``parse`` with the bytes of standard input, write its result as a line of JSON.

    An unusable file is reported with a code and a message. ``parse`` loads its parser and then calls
    :func:`renounce_files`.
    """
    limit_resources(limits)
    leave_network()
    try:
        found = parse(sys.stdin.buffer.read())
    except UnusableFileError as error:
        found = {"code": error.code, "message": str(error)}
    except MemoryError:
        found = {"code": "invalid_file", "message": "The file needs more memory than a file may use."}
    json.dump(found, sys.stdout, ensure_ascii=False, separators=(",", ":"))
    sys.stdout.flush()
    return 0


def load_encodings() -> None:
    """Load the codecs that parsers use: they are files, which are out of reach later."""
    for encoding in (*ENCODINGS, *LIBRARY_ENCODINGS):
        codecs.lookup(encoding)


def limit_resources(limits: ParseLimits) -> None:
    """Limit memory, processor time and core dumps of this process, and end it with its parent."""
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:
        # The parent ended before the call.
        sys.exit(1)
    library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    library.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    with contextlib.suppress(PermissionError):
        # A courtesy to chats; the filter of a unit may forbid it.
        os.nice(NICE)
    limit(resource.RLIMIT_AS, limits.memory_bytes)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.parse_cpu_s, limits.total_cpu_s + 1))
    limit(resource.RLIMIT_CORE, 0)


def leave_network() -> None:
    """Enter an empty network namespace. A kernel or a unit that forbids it leaves step 4 as the barrier."""
    ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET)


def renounce_files() -> None:
    """Renounce new files, sockets, pipes and processes, and writing to files."""
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_NPROC, 0)
    limit(resource.RLIMIT_NOFILE, 0)


def limit(kind: int, value: int) -> None:
    """Set the resource limit ``kind`` of this process to ``value``."""
    _, most = resource.getrlimit(kind)
    if kind == resource.RLIMIT_CPU:
        # The kernel sends SIGXCPU at the soft limit and SIGKILL at the hard one.
        resource.setrlimit(kind, (min(value, most), most))
    else:
        resource.setrlimit(kind, (value, value))
