"""The output files of a run: opened before the load, so that a path error is found before an hour of load."""

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
    """The file did not exist before."""
    regular: bool
    written: bool = False


class Outputs:
    """Open files by the flags that name them. A file keeps its content until the first write."""

    def __init__(self, paths: Mapping[str, Path | None], stop: Stop) -> None:
        self._paths = {flag: path for flag, path in paths.items() if path is not None}
        self._stop = stop
        self._open: dict[str, _Output] = {}
        self.refused: StoreError | None = None
        """The first write that failed."""

    def __enter__(self) -> Self:
        """Open all files. Raises :class:`UsageError` for a file that cannot be written."""
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
        """Replace the content of the file of ``flag`` by ``content``, or by that of the file ``content``.

        A pipe is written once, as fast as its reader reads, until the run has to end. An error of the disk is
        recorded in :attr:`refused`, so that the other files are written nevertheless.
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
            # The reader of the pipe has read enough.
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
            # Opening a pipe waits for its reader.
            with self._stop.until(1) if path.is_fifo() else contextlib.nullcontext():
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
            raise UsageError(f"{flag} {path} cannot be written: {reason}; name another file") from None
        output = _Output(path, descriptor, made=made, regular=stat.S_ISREG(os.fstat(descriptor).st_mode))
        if not output.regular:
            os.set_blocking(descriptor, False)
        for other, before in self._open.items():
            if output.regular and os.path.sameopenfile(before.descriptor, descriptor):
                os.close(descriptor)
                raise UsageError(f"{other} and {flag} both name {path}; give each a file of its own")
        return output

    def _takes(self, descriptor: int) -> bool:
        """Wait until a pipe accepts data; return whether it does before the run has to end."""
        if select.select([], [descriptor], [], 0)[1]:
            return True
        return bool(select.select([self._stop], [descriptor], [])[1])

    def _close(self) -> None:
        for output in self._open.values():
            if output.made and output.regular and not output.written:
                # An empty file could be taken for a report.
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
    """Write the report with the ``renderers`` of its flags and show it.

    ``show`` is called with whether it is the first time. A signal in the meantime marks the report as interrupted,
    and it is written again: files, last line and exit code always agree. Raises :class:`Stopped` at a second
    signal, and :class:`StoreError` if a file could not be written, after all others are written.
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
