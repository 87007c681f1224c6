"""The kernel's log: the driver's errors as they are logged, each of them once over restarts of the reader."""

from __future__ import annotations

import errno
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.catalog.xids import Xid, parse_xids
from appliance.errors import StoreError
from appliance.system import files

LOG = logging.getLogger(__name__)

KMSG = Path("/dev/kmsg")

RECORD_BYTES = 16384
"""More than the longest record; the kernel refuses a read into a smaller buffer."""

RECORDS_A_CALL = 20_000
"""Records of one :meth:`KernelLog.read`, so that a flood of messages does not stop the caller."""

KERNEL = 0
"""Facility of the kernel's own messages. Processes of root can write messages of the others."""

_RECORD = re.compile(rb"(\d+),(\d+),\d+,[^;]*;([^\n]*)")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record: its facility, its sequence number in this boot, its text."""

    facility: int
    sequence: int
    text: str


class ReadMark(msgspec.Struct, frozen=True):
    """The last record that was handled. Its file is on a file system that a reboot empties."""

    sequence: int


def parse_record(raw: bytes) -> LogRecord | None:
    """Parse a record of ``/dev/kmsg``, such as ``6,1032,84123,-;NVRM: Xid …``; ``None`` if it is not one."""
    match = _RECORD.match(raw)
    if match is None:
        return None
    text = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), match[3].decode("utf-8", "replace"))
    return LogRecord(int(match[1]) >> 3, int(match[2]), text)


class KernelLog:
    """The driver's errors in the kernel's log, without waiting for any.

    Args:
        path: The log.
        mark: File with the last handled record, so that a restarted reader handles none twice and misses none.
            Without it, the log is read from its beginning.
        any_facility: Accept messages of processes as well, for tests.
    """

    def __init__(self, path: Path = KMSG, mark: Path | None = None, *, any_facility: bool = False) -> None:
        self._mark = mark
        self._any_facility = any_facility
        self._handled = self._read_mark()
        self.overruns = 0
        """Times that the kernel dropped records before they were read."""
        try:
            self._number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError.unreadable(path, error) from None

    def fileno(self) -> int:
        """Return the descriptor, which is readable while records wait."""
        return self._number

    def close(self) -> None:
        """Close the log."""
        os.close(self._number)

    def read(self) -> list[Xid]:
        """Return the errors since the last call, oldest first."""
        found: list[Xid] = []
        for _ in range(RECORDS_A_CALL):
            try:
                raw = os.read(self._number, RECORD_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                # EPIPE: the kernel has overwritten records; the next read returns the oldest that is left.
                if error.errno != errno.EPIPE:
                    LOG.warning("the kernel's log cannot be read: %s", error.strerror)
                    break
                self.overruns += 1
                continue
            if not raw:
                break
            record = parse_record(raw)
            if record is None or record.sequence <= self._handled:
                continue
            self._handled = record.sequence
            if self._any_facility or record.facility == KERNEL:
                found += parse_xids(record.text)
        return found

    def save(self) -> None:
        """Write the mark: all errors that were read have been handled. A failure costs a repetition at most."""
        if self._mark is None:
            return
        try:
            files.replace(self._mark, msgspec.json.encode(ReadMark(self._handled)).decode(), mode=0o600)
        except StoreError as error:
            LOG.warning("%s", error)

    def _read_mark(self) -> int:
        try:
            content = files.read(self._mark) if self._mark is not None else None
            return msgspec.json.decode(content, type=ReadMark).sequence if content else -1
        except (StoreError, msgspec.DecodeError):
            return -1
