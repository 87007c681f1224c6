"""The files that a run leaves: opened before it, or an hour of load ends with one that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.errors import StoreError, UsageError
from appliance.system.stopping import Stop
from loadtests.report import Report

_REASONS = {
    errno.ENOENT: "its folder is missing",
    errno.EISDIR: "it is a folder",
    errno.EACCES: "its folder is missing or cannot be written",
    errno.EROFS: "its disk is read-only",
}


@dataclass(slots=True)
class _Output:
    path: Path
    descriptor: int
    made: bool
    """The file was not there before."""
    regular: bool
    written: bool = False


class Outputs:
    """Open files by the flags that name them. What was there stays as it is until something is written."""

    def __init__(self, paths: Mapping[str, Path | None], stop: Stop) -> None:
        self._paths = {flag: path for flag, path in paths.items() if path is not None}
        self._stop = stop
        self._open: dict[str, _Output] = {}
        self.refused: StoreError | None = None
        """The first write that failed."""

    def __enter__(self) -> Self:
        """Open all of them. Raises :class:`UsageError` for one that cannot be written."""
        try:
            for flag, path in self._paths.items():
                self._open[flag] = self._opened(flag, path)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._close()

    def __contains__(self, flag: str) -> bool:
        return flag in self._open

    def write(self, flag: str, content: bytes | Path) -> None:
        """Make ``content``, or that of a file, the content of the file of ``flag``, whatever was written before.

        A pipe takes what its reader takes until the run has to end, and is written once. A disk that refuses
        is noted in :attr:`refused`, so that the other files are written all the same.
        """
        output = self._open[flag]
        if output.written and not output.regular:
            return
        output.written = True
        try:
            if output.regular:
                os.ftruncate(output.descriptor, 0)
                os.lseek(output.descriptor, 0, os.SEEK_SET)
            for piece in _pieces(content):
                self._write(output, piece)
        except BrokenPipeError:
            # The reader has what it wanted.
            return
        except OSError as error:
            self.refused = self.refused or StoreError.unwritable(output.path, error)

    def _write(self, output: _Output, data: bytes) -> None:
        while data and (output.regular or self._takes(output.descriptor)):
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(output.descriptor, data) :]

    def _opened(self, flag: str, path: Path) -> _Output:
        try:
            made = not os.path.lexists(path)
            # A pipe opens once it has a reader.
            with self._stop.until(1) if path.is_fifo() else contextlib.nullcontext():
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            why = _REASONS.get(error.errno or 0, error.strerror or str(error))
            raise UsageError(f"{flag} {path} cannot be written: {why}; name another file") from None
        output = _Output(path, descriptor, made, stat.S_ISREG(os.fstat(descriptor).st_mode))
        if not output.regular:
            os.set_blocking(descriptor, False)
        for other, before in self._open.items():
            if output.regular and os.path.sameopenfile(before.descriptor, descriptor):
                os.close(descriptor)
                raise UsageError(f"{other} and {flag} both name {path}; give each a file of its own")
        return output

    def _takes(self, descriptor: int) -> bool:
        """Wait until a pipe takes more; whether it does before the run has to end."""
        if select.select([], [descriptor], [], 0)[1]:
            return True
        return bool(select.select([self._stop], [descriptor], [])[1])

    def _close(self) -> None:
        for output in self._open.values():
            if output.made and output.regular and not output.written:
                # An empty file would look like a report.
                output.path.unlink(missing_ok=True)
            os.close(output.descriptor)
        self._open.clear()


def deliver(
    report: Report,
    outputs: Outputs,
    stop: Stop,
    renderers: Mapping[str, Callable[[], str]],
    show: Callable[[bool], object],
) -> None:
    """Write the report by the ``renderers`` of its flags and show it; ``show`` gets whether that is the first time.

    A signal that comes meanwhile marks the report as interrupted, and it is written again: so the files, the last
    line and the exit code always agree. Raises :class:`Stopped` at a second signal, and :class:`StoreError` if a
    file could not be written, after everything else was.
    """
    shown = False
    while not shown or (stop.requested and not report.interrupted):
        if stop.requested:
            report.interrupt(stop.reason)
        for flag, render in renderers.items():
            if flag in outputs:
                with stop.until(2):
                    text = render()
                outputs.write(flag, text.encode())
        with stop.until(2):
            show(not shown)
        shown = True
    if outputs.refused is not None:
        raise outputs.refused


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece
