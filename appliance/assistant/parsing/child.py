"""The confined process that parses one file: ``python -m appliance.assistant.parsing.child ARGUMENTS``.

It reads the file from its standard input and writes one line of JSON: passages, or a code and a message. Steps:

1. It limits memory, processor time and core dumps, and ends with its parent.
2. It enters a network namespace of its own if the kernel allows that to this user.
3. It reads the file, decides its format and loads the one parser that this needs.
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
from dataclasses import asdict, dataclass
from typing import Any

from appliance.assistant.parsing.documents import parse, parser_for
from appliance.assistant.parsing.file_type import format_of
from appliance.assistant.parsing.limits import ParseLimits, UnusableFileError
from appliance.assistant.parsing.passages import passages_of
from appliance.assistant.parsing.text import ENCODINGS
from appliance.assistant.retrieval.chunking import ChunkSettings
from appliance.assistant.retrieval.terms import term_counts

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
NICE = 10
LIBRARY_ENCODINGS = ("ascii", "latin-1", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "cp437")
"""Encodings that the parsers' libraries use: PDF strings, names in archives."""


@dataclass(frozen=True, slots=True)
class ParseOrder:
    """The arguments of the confined process: the extension of the file, chunk sizes in tokens, limits."""

    extension: str
    max_tokens: int
    overlap_tokens: int
    limits: ParseLimits

    def as_argument(self) -> str:
        """Return the order as one argument of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> ParseOrder:
        """Return the order in ``text``."""
        found = json.loads(text)
        return cls(**{**found, "limits": ParseLimits(**found["limits"])})


def main() -> int:
    """Parse the file on standard input; return 0 if a result was written."""
    order = ParseOrder.from_argument(sys.argv[1])
    _limit_resources(order.limits)
    _leave_network()
    try:
        found: dict[str, Any] = {"passages": _passages(order)}
    except UnusableFileError as error:
        found = {"code": error.code, "message": str(error)}
    except MemoryError:
        found = {"code": "invalid_file", "message": "The file needs more memory than a file may use."}
    json.dump(found, sys.stdout, ensure_ascii=False, separators=(",", ":"))
    sys.stdout.flush()
    return 0


def _passages(order: ParseOrder) -> list[dict[str, Any]]:
    content = sys.stdin.buffer.read()
    parser = parser_for(format_of(content, order.extension))
    # The stemmers and the codecs read files at their first use.
    term_counts("Проверка words 2026-01-02")
    for encoding in (*ENCODINGS, *LIBRARY_ENCODINGS):
        codecs.lookup(encoding)
    _renounce_files()
    document = parse(parser, content, order.extension, order.limits)
    _limit(resource.RLIMIT_CPU, order.limits.total_cpu_s)
    settings = ChunkSettings(order.max_tokens, order.overlap_tokens)
    return [passage.as_json() for passage in passages_of(document, settings)]


def _limit_resources(limits: ParseLimits) -> None:
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
    _limit(resource.RLIMIT_AS, limits.memory_bytes)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.parse_cpu_s, limits.total_cpu_s + 1))
    _limit(resource.RLIMIT_CORE, 0)


def _leave_network() -> None:
    """Enter an empty network namespace. A kernel or a unit that forbids it leaves step 4 as the barrier."""
    ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET)


def _renounce_files() -> None:
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_NOFILE, 0)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    if kind == resource.RLIMIT_CPU:
        # The kernel sends SIGXCPU at the soft limit and SIGKILL at the hard one.
        resource.setrlimit(kind, (min(value, most), most))
    else:
        resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    sys.exit(main())
