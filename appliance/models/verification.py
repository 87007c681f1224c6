"""Compares the files of a store with models.lock, and records those that match."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from appliance.models import verified
from appliance.models.hashing import digests
from appliance.models.lock import Entry
from appliance.models.transfer import held


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """One line for each file that differs, the number of hashed files, and whether the matches were recorded."""

    differences: tuple[str, ...]
    hashed: int
    recorded: bool


def differences(entries: Sequence[Entry], store: Path) -> Iterator[str]:
    """Yield one line for each file of ``entries`` that differs from the lock, the smallest files first."""
    for _, _, difference in _compare(entries, store):
        if difference:
            yield difference


def verify(entries: Sequence[Entry], store: Path, *, changed_only: bool = False) -> VerificationResult:
    """Hash the files of ``entries``; with ``changed_only`` only those that changed since their last hash.

    The result is recorded if ``store`` can be written: engines start with recorded files only. Raises
    :class:`StoreError` if another run holds the store, or if its record is not valid.
    """
    writable = os.access(store, os.W_OK)
    with held(store) if writable else nullcontext():
        record = verified.read(store)
        compared = [one for one in entries if not (changed_only and verified.is_unchanged(one, store, record))]
        found = []
        for entry, state, difference in _compare(compared, store):
            if difference:
                found.append(difference)
                record.pop(verified.key(entry), None)
            elif state is not None:
                record[verified.key(entry)] = verified.HashedFile(entry.sha256, state)
        if writable:
            verified.write(store, record)
    return VerificationResult(tuple(found), len(compared), writable)


def _compare(entries: Sequence[Entry], store: Path) -> Iterator[tuple[Entry, verified.FileState | None, str]]:
    """Yield each entry with the state of its file before the hash, and how it differs, empty if it does not."""
    states: dict[Entry, verified.FileState] = {}
    for entry in sorted(entries, key=lambda entry: entry.size):
        path, name = entry.path(store), _name(entry)
        try:
            states[entry] = verified.state_of(path)
        except FileNotFoundError:
            yield entry, None, f"{name}: is missing in {store}; fetch it"
        except OSError as error:
            yield entry, None, _unreadable(entry, store, error.strerror or str(error))
        else:
            if states[entry].size != entry.size:
                size = states.pop(entry).size
                yield entry, None, f"{name}: {size} bytes, the lock has {entry.size}; fetch it again"
    for entry, sha256 in digests(list(states), store):
        if isinstance(sha256, OSError):
            yield entry, None, _unreadable(entry, store, sha256.strerror or str(sha256))
        elif sha256 != entry.sha256:
            yield entry, None, f"{_name(entry)}: its SHA-256 is not the lock's; remove it and fetch it again"
        else:
            yield entry, states[entry], ""


def _name(entry: Entry) -> str:
    return f"{entry.repository}@{entry.revision[:12]} {entry.file}"


def _unreadable(entry: Entry, store: Path, reason: str) -> str:
    return f"{_name(entry)}: cannot be read ({reason}); check the disk and the permissions of {store}"
