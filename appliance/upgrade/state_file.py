"""The trial record on disk: one JSON file, replaced whole, safe against a power cut at any point."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from appliance.errors import StoreError
from appliance.upgrade.state import TrialState

FOLDER = Path("/var/lib/appliance/trial")
NAME = "record.json"
UNSENT = "unsent"
"""A file that is there while alerts wait. systemd looks for it whenever the sender has ended; a change of the
record while the sender runs it would miss."""


@dataclass(frozen=True, slots=True)
class Record:
    """The record in ``folder``."""

    folder: Path = FOLDER

    def load(self) -> TrialState:
        """The state; an empty one where nothing was ever written.

        A record that cannot be understood is put aside and said so in an alert that stays until it was sent:
        without it the machine stays where it is, and the loader's default entry, which no record is needed for,
        stays the proven one.
        """
        file = self.folder / NAME
        try:
            return msgspec.json.decode(file.read_bytes(), type=TrialState)
        except FileNotFoundError:
            return TrialState()
        except OSError as error:
            raise StoreError(f"{file} cannot be read ({error.strerror}); run as root") from None
        except msgspec.DecodeError as error:
            aside = file.with_suffix(".broken")
            line = f"{file} was broken ({error}) and is now {aside.name}; what is proven has to be found anew"
            state = TrialState(last=line, unsent=(line,))
            try:
                aside.unlink(missing_ok=True)
                aside.hardlink_to(file)
                # Only now, and whole: whoever looks next has to find the alert, not an empty record.
                self.save(state)
            except (OSError, StoreError):
                line = f"{file} is broken ({error}); delete it: what is proven has to be found anew"
                return TrialState(last=line, unsent=(line,))
            return state

    def save(self, state: TrialState) -> None:
        """Write ``state``; a power cut leaves the old record or the new one. Raises :class:`StoreError`."""
        file, draft = self.folder / NAME, self.folder / f"{NAME}.new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if state.unsent:
                # Before the record: an alert that nobody looks for would wait for the next one.
                (self.folder / UNSENT).touch()
            replace_file(file, draft, msgspec.json.format(msgspec.json.encode(state), indent=1))
            if not state.unsent:
                (self.folder / UNSENT).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError.unwritable(file, error) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One decision at a time: a verdict and a deadline may come together."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise StoreError.unwritable(self.folder, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def sent(self, line: str) -> None:
        """The alert ``line`` was delivered: forget it."""
        with self.locked():
            state = self.load()
            rest = list(state.unsent)
            if line in rest:
                rest.remove(line)
                self.save(replace(state, unsent=tuple(rest)))

    def settle(self) -> None:
        """Take the mark away where no alert waits: a power cut may have left it, and it starts the sender for ever.

        Raises :class:`StoreError` where it cannot be taken away.
        """
        with self.locked():
            if not self.load().unsent:
                try:
                    (self.folder / UNSENT).unlink(missing_ok=True)
                except OSError as error:
                    raise StoreError.unwritable(self.folder / UNSENT, error) from None


def replace_file(file: Path, draft: Path, content: bytes) -> None:
    """Put ``content`` into ``file`` by way of ``draft`` beside it: whole or not at all, and on the disk."""
    with draft.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    draft.rename(file)
    entry = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
