"""Runs a confined process that parses one file (:mod:`appliance.parsing.confinement`), within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from appliance.parsing.limits import ParseLimits, UnusableFileError

LOADER_FAILED = 127
"""Exit code of a program whose shared libraries are missing (ld.so(8))."""
_PIECE = 1 << 18
_SLOW = "The file takes too long to process."
_Result = TypeVar("_Result")


async def run_confined(
    content: BinaryIO,
    program: Sequence[str],
    read_report: Callable[[Mapping[str, Any]], _Result],
    *,
    limits: ParseLimits,
) -> _Result:
    """Return what ``program`` reports of the open file ``content``, as ``read_report`` reads it in a thread.

    The process ends with this call in all cases, cancellation included.

    Raises:
        UnusableFileError: The file cannot be used, or it exceeds a limit.
        OSError: The process cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *program,
        stdin=content,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=_environment(),
        cwd="/",
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(limits.wall_s):
            output = await _read(process.stdout, limits.output_bytes)
            code = await process.wait()
    except TimeoutError:
        raise UnusableFileError("invalid_file", _SLOW) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code != 0:
        raise _failure(code)
    return await asyncio.to_thread(_report, output, read_report)


async def _read(stream: asyncio.StreamReader | None, most: int) -> bytes:
    pieces, size = [], 0
    while stream is not None and (piece := await stream.read(_PIECE)):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise UnusableFileError("invalid_file", "The file has more text than a file may have; split it.")
    return b"".join(pieces)


def _report(output: bytes, read_report: Callable[[Mapping[str, Any]], _Result]) -> _Result:
    try:
        found = json.loads(output)
        if "code" in found:
            raise UnusableFileError(found["code"], str(found["message"]))
        return read_report(found)
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise UnusableFileError("server_error", "The parser returned an unreadable result.") from None


def _failure(code: int) -> UnusableFileError:
    """Return the error for a process that ended with ``code``, negative for a signal, and without a result."""
    if code == -signal.SIGXCPU:
        return UnusableFileError("invalid_file", _SLOW)
    if code == -signal.SIGKILL:
        # The kernel ended it: the hard limit of processor time, or no free memory.
        return UnusableFileError("server_error", "The process that parsed the file was killed; try again.")
    if code == LOADER_FAILED:
        return UnusableFileError("server_error", "The parser does not start on this host.")
    return UnusableFileError("invalid_file", "The file is damaged: its parser failed.")


def _environment() -> Mapping[str, str]:
    """Return the environment: where Python's library and the modules are, and nothing else of this process."""
    folder = Path(__file__).resolve().parents[2]
    library = os.environ.get("LD_LIBRARY_PATH")
    found = {"PYTHONPATH": os.pathsep.join([str(folder), *filter(os.path.isabs, sys.path)]), "LC_ALL": "C.UTF-8"}
    return {**found, "LD_LIBRARY_PATH": library} if library else found
