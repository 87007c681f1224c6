"""Brings the files of a lock into a store, from any source.

A file appears in the store only after its SHA-256 matched the lock. Until then its bytes are in
``partial/SHA256``, where an interrupted transfer resumes. A file whose content the store has already, under another
revision, becomes a second name of it. One run at a time writes into a store.

A transfer of one file, from the size of its partial file:

| state | event | next state |
|---|---|---|
| partial | blocks until the whole size | hashed |
| partial | the source begins at byte 0 | partial, from zero |
| partial | interrupted, retries left | partial, after a wait |
| partial | interrupted, no retries left | failed; the partial file remains |
| hashed | SHA-256 of the lock | in the store, recorded as verified |
| hashed | another SHA-256, resumed file | partial, from zero, once |
| hashed | another SHA-256 | failed; the partial file is removed |
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from appliance.errors import InterruptedTransferError, StoreError
from appliance.models import verified
from appliance.models.hashing import digests
from appliance.models.lock import Entry
from appliance.models.progress import size_text
from appliance.models.source import BLOCK, WeightSource
from appliance.system import files, lock_file

PARTIAL = "partial"
"""Folder of a store with incomplete files, by the SHA-256 that they will have."""

RETRY_WAITS_S = (1.0, 5.0, 15.0, 30.0, 60.0)
"""Waits before the retries of a file that brought no new byte, in seconds. Any new byte begins them again."""

UNLINKABLE = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})
"""Reasons for which a file system gives a file no second name (errno(3))."""


class TransferWatcher(Protocol):
    """Shows a transfer to the user. :meth:`advance` is called by several threads."""

    def begin(self, total: int, present: int) -> None:
        """Note that ``present`` of ``total`` bytes are there."""

    def start_file(self, line: str) -> None:
        """Note the start of a file."""

    def advance(self, count: int) -> None:
        """Count ``count`` bytes; negative if they are transferred again."""


@dataclass(frozen=True, slots=True)
class TransferResult:
    """Number of files from the source, and of those that the store had under another name."""

    fetched: int = 0
    linked: int = 0


@contextmanager
def held(store: Path) -> Iterator[None]:
    """Hold ``store`` for writing; raises :class:`StoreError` if another run holds it."""
    files.make_folder(store / PARTIAL)
    try:
        lock = lock_file.take(store / PARTIAL / "lock")
    except lock_file.HeldError as error:
        pid = f" (pid {error.note['pid']})" if "pid" in error.note else ""
        raise StoreError(f"{store}: another run{pid} writes into this store; wait for its end") from None
    try:
        lock.note()
        yield
    finally:
        lock.release()


def bring(
    entries: Sequence[Entry],
    source: WeightSource,
    store: Path,
    watcher: TransferWatcher,
    *,
    threads: int = 1,
    waits_s: Sequence[float] = RETRY_WAITS_S,
) -> TransferResult:
    """Copy each file of ``entries`` that ``store`` lacks from ``source``, ``threads`` files at once.

    Raises :class:`StoreError` if another run holds the store, the room is too small, or a file is missing, differs
    from the lock or stays interrupted. Files that were complete before that remain.
    """
    with held(store):
        return bring_held(entries, source, store, watcher, threads=threads, waits_s=waits_s)


def bring_held(
    entries: Sequence[Entry],
    source: WeightSource,
    store: Path,
    watcher: TransferWatcher,
    *,
    threads: int = 1,
    waits_s: Sequence[float] = RETRY_WAITS_S,
) -> TransferResult:
    """Do the same as :func:`bring` in a store that the caller holds."""
    record = verified.read(store)
    missing = _missing(entries, store, record)
    by_digest: dict[str, list[Entry]] = {}
    for entry in missing:
        by_digest.setdefault(entry.sha256, []).append(entry)
    known = _known_files(record, store)
    absent = {sha256: group for sha256, group in by_digest.items() if sha256 not in known}
    _require_room([group[0] for group in absent.values()], store)
    linked = 0
    for sha256, group in by_digest.items():
        if sha256 in known:
            linked += _link(known[sha256], group, store, record)
    # A file system without second names leaves copies to do.
    left = [entry for entry in missing if entry.sha256 in known and not entry.path(store).exists()]
    fetched = _fetch_all(
        [*absent.values(), *([entry] for entry in left)],
        store,
        record,
        _Transfer(source, store, watcher, tuple(waits_s)),
        threads,
    )
    return TransferResult(fetched, linked + sum(len(group) - 1 for group in absent.values()))


def _missing(entries: Sequence[Entry], store: Path, record: verified.Record) -> list[Entry]:
    """Return the entries without a verified file; a file that the record lacks is hashed and recorded."""
    changed = [entry for entry in entries if not verified.is_unchanged(entry, store, record)]
    present = [entry for entry in changed if _size(entry.path(store)) == entry.size]
    states = {entry: verified.state_of(entry.path(store)) for entry in present}
    found = set()
    for entry, sha256 in digests(present, store):
        if isinstance(sha256, OSError):
            raise StoreError.unreadable(entry.path(store), sha256)
        if sha256 == entry.sha256:
            found.add(entry)
            record[verified.key(entry)] = verified.HashedFile(sha256, states[entry])
    if found:
        verified.write(store, record)
    return [entry for entry in changed if entry not in found]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError.unreadable(path, error) from None


def _known_files(record: verified.Record, store: Path) -> dict[str, Path]:
    """Return a verified file of ``store`` for each SHA-256 of the record."""
    known = {}
    for name, hashed in record.items():
        revision, _, file = name.partition("  ")
        repository, _, commit = revision.partition("@")
        path = Entry(repository, commit, file, hashed.state.size, hashed.sha256).path(store)
        with suppress(OSError):
            if verified.state_of(path) == hashed.state:
                known[hashed.sha256] = path.resolve()
    return known


def partial_of(sha256: str, store: Path) -> Path:
    """Return the path of the incomplete file with this SHA-256."""
    return store / PARTIAL / sha256


def _tag_of(partial: Path) -> Path:
    return partial.with_suffix(".tag")


def _present(entry: Entry, store: Path) -> int:
    return min(_size(partial_of(entry.sha256, store)) or 0, entry.size)


def _require_room(absent: list[Entry], store: Path) -> None:
    needed = sum(entry.size - _present(entry, store) for entry in absent)
    free = shutil.disk_usage(store).free
    if needed > free:
        raise StoreError(
            f"{store}: the transfer needs {needed} bytes ({size_text(needed)}), its disk has {free} "
            f"({size_text(free)}); free some, such as with `appliance models gc`, and try again"
        )


def _link(twin: Path, group: list[Entry], store: Path, record: verified.Record) -> int:
    """Give the verified file ``twin`` the names of ``group``; return how many it got."""
    linked = 0
    for entry in group:
        draft = store / PARTIAL / f"{entry.sha256}.link"
        try:
            draft.unlink(missing_ok=True)
            os.link(twin, draft)
        except OSError as error:
            if error.errno in UNLINKABLE:
                continue
            raise StoreError.unwritable(draft, error) from None
        _place(draft, entry, store, record)
        linked += 1
    return linked


def _link_all(twin: Path, group: list[Entry], store: Path, record: verified.Record) -> None:
    if _link(twin, group, store, record) < len(group):
        raise StoreError(
            f"{store}: its file system has no hard links, which {twin.name} needs; use ext4, XFS or tmpfs"
        )


def _place(draft: Path, entry: Entry, store: Path, record: verified.Record) -> None:
    """Move the hashed file ``draft`` to its name in the store, and record it."""
    target = entry.path(store)
    files.make_folder(target.parent)
    files.move(draft, target)
    files.sync_folder(target.parent)
    record[verified.key(entry)] = verified.HashedFile(entry.sha256, verified.state_of(target))
    verified.write(store, record)


def _fetch_all(
    groups: list[list[Entry]], store: Path, record: verified.Record, transfer: _Transfer, threads: int
) -> int:
    firsts = [group[0] for group in groups]
    transfer.watcher.begin(sum(one.size for one in firsts), sum(_present(one, store) for one in firsts))
    with ThreadPoolExecutor(threads, thread_name_prefix="transfer") as pool:
        running = {
            pool.submit(transfer.fetch, group[0], f"{number} of {len(groups)}"): group
            for number, group in enumerate(groups, 1)
        }
        try:
            for done in as_completed(running):
                done.result()
                first, *others = running[done]
                _place(partial_of(first.sha256, store), first, store, record)
                _tag_of(partial_of(first.sha256, store)).unlink(missing_ok=True)
                _link_all(first.path(store), others, store, record)
        except BaseException:
            # The partial files remain for the next run.
            transfer.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(groups)


@dataclass
class _Transfer:
    """The transfer of single files, one thread each."""

    source: WeightSource
    store: Path
    watcher: TransferWatcher
    waits_s: tuple[float, ...]
    stop: threading.Event = field(default_factory=threading.Event)

    def fetch(self, entry: Entry, number: str) -> None:
        """Complete the partial file of ``entry`` and compare its SHA-256."""
        self.watcher.start_file(f"{number}: {entry.repository} {entry.file}, {size_text(entry.size)}")
        partial = partial_of(entry.sha256, self.store)
        resumed = _present(entry, self.store) > 0
        if self._fill(entry, partial) == entry.sha256:
            return
        self._discard(partial)
        if resumed:
            # A power cut may have damaged the bytes of the earlier run.
            self.watcher.advance(-entry.size)
            if self._fill(entry, partial) == entry.sha256:
                return
            self._discard(partial)
        raise StoreError(
            f"{entry.repository}@{entry.revision[:12]} {entry.file}: the SHA-256 of the copy is not the lock's; "
            "try again, then use another source"
        )

    def _discard(self, partial: Path) -> None:
        partial.unlink()
        _tag_of(partial).unlink(missing_ok=True)

    def _fill(self, entry: Entry, partial: Path) -> str:
        """Append to ``partial`` the bytes that it lacks; return the SHA-256 of the result."""
        try:
            with partial.open("a+b") as into:
                writer = _PartialWriter(entry, into, _tag_of(partial), self.watcher.advance)
                self._read_until_whole(entry, writer)
                into.flush()
                os.fsync(into.fileno())
        except OSError as error:
            raise StoreError.unwritable(partial, error) from None
        return writer.hashed.hexdigest()

    def _read_until_whole(self, entry: Entry, writer: _PartialWriter) -> None:
        failures, furthest = 0, writer.position
        while writer.position < entry.size:
            try:
                self._read(entry, writer)
            except InterruptedTransferError:
                if writer.position > furthest:
                    failures, furthest = 0, writer.position
                if failures == len(self.waits_s) or self.stop.wait(self.waits_s[failures]):
                    raise
                failures += 1

    def _read(self, entry: Entry, writer: _PartialWriter) -> None:
        """Read until the end of the file or of the connection; raises :class:`InterruptedTransferError`."""
        with self.source.open(entry, writer.position, writer.tag) as opened:
            writer.begin(opened.offset, opened.tag)
            for block in opened.blocks:
                if self.stop.is_set():
                    raise InterruptedTransferError(
                        f"{entry.file}: stopped, since another file failed; run it again"
                    )
                writer.append(block)
        if writer.position < entry.size:
            raise InterruptedTransferError(
                f"{entry.repository} {entry.file}: the connection ended after {writer.position} of "
                f"{entry.size} bytes; run the command again to resume"
            )


class _PartialWriter:
    """A partial file that grows: its position, its SHA-256 so far, the tag of its content."""

    def __init__(self, entry: Entry, into: BinaryIO, tag_file: Path, advance: Callable[[int], None]) -> None:
        self._entry = entry
        self._into = into
        self._tag_file = tag_file
        self._advance = advance
        self.tag = (files.read(tag_file) or b"").decode("latin1")
        self.hashed = hashlib.sha256()
        self.position = 0
        if into.tell() > entry.size:
            into.truncate(0)
        into.seek(0)
        while block := into.read(BLOCK):
            self.hashed.update(block)
            self.position += len(block)

    def begin(self, offset: int, tag: str) -> None:
        """Continue at ``offset``, which is the position or 0, with content that ``tag`` names."""
        if offset != self.position:
            self._into.truncate(0)
            self._into.seek(0)
            self._advance(-self.position)
            self.hashed, self.position = hashlib.sha256(), 0
        if tag != self.tag:
            files.replace(self._tag_file, tag)
            self.tag = tag

    def append(self, block: bytes) -> None:
        """Append ``block``; raises :class:`StoreError` for bytes after the size of the lock."""
        if self.position + len(block) > self._entry.size:
            raise StoreError(
                f"{self._entry.repository} {self._entry.file}: the source has more than the lock's "
                f"{self._entry.size} bytes; use the source of the locked revision"
            )
        self._into.write(block)
        self.hashed.update(block)
        self.position += len(block)
        self._advance(len(block))
