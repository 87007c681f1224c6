"""The trial state on disk: one JSON file that is replaced as a whole, safe against a power cut at any point."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from appliance.errors import StoreError
from appliance.upgrade.state import TrialState

FOLDER = Path("/var/lib/appliance/trial")
NAME = "record.json"
UNSENT = "unsent"
"""A file that exists while alerts are unsent. systemd looks for it whenever the sender has ended. It would miss a
change of the state file while the sender runs."""


@dataclass(frozen=True, slots=True)
class StateFile:
    """The state file in ``folder``."""

    folder: Path = FOLDER

    def load(self) -> TrialState:
        """Return the state; an empty one if the file does not exist.

        A file that cannot be parsed is renamed and reported in an alert that stays until it is sent. Without state
        the machine stays where it is. The default entry of the loader, which needs no state, stays known good.
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
            line = (
                f"{file} was damaged ({error}) and is now {aside.name}; the next pass after a boot records a known "
                "good generation"
            )
            state = TrialState(last=line, unsent=(line,))
            try:
                aside.unlink(missing_ok=True)
                aside.hardlink_to(file)
                # After the link, and as a whole: the next reader has to find the alert, not an empty state.
                self.save(state)
            except (OSError, StoreError):
                line = f"{file} is damaged ({error}); delete it: the known good generation has to be found anew"
                return TrialState(last=line, unsent=(line,))
            return state

    def save(self, state: TrialState) -> None:
        """Write ``state``; a power cut leaves the old file or the new one. Raises :class:`StoreError`."""
        file, draft = self.folder / NAME, self.folder / f"{NAME}.new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if state.unsent:
                # Before the file: an alert without the mark would wait until the next alert.
                (self.folder / UNSENT).touch()
            replace_file(file, draft, msgspec.json.format(msgspec.json.encode(state), indent=1))
            if not state.unsent:
                (self.folder / UNSENT).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError.unwritable(file, error) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the state: a verdict and a deadline may arrive at the same time."""
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

    def next_alert(self) -> tuple[str, str] | None:
        """Return the oldest unsent alert and its tag, ``None`` if there is none.

        The tag is saved first and stays the same until the alert is removed. Raises :class:`StoreError`.
        """
        with self.locked():
            state = self.load()
            if not state.unsent:
                return None
            if state.handover is None or state.handover[0] not in state.unsent:
                state = replace(state, handover=(state.unsent[0], f"trial_{secrets.token_hex(12)}"))
                self.save(state)
            return state.handover

    def remove_alert(self, line: str) -> None:
        """Remove the alert ``line``, which was sent."""
        with self.locked():
            state = self.load()
            rest = list(state.unsent)
            if line in rest:
                rest.remove(line)
                handed = state.handover is not None and state.handover[0] == line
                self.save(replace(state, unsent=tuple(rest), handover=None if handed else state.handover))

    def remove_stale_mark(self) -> None:
        """Remove the mark of unsent alerts if there are none.

        A power cut may have left the mark, which would start the sender forever.

        Raises :class:`StoreError` if it cannot be removed.
        """
        with self.locked():
            if not self.load().unsent:
                try:
                    (self.folder / UNSENT).unlink(missing_ok=True)
                except OSError as error:
                    raise StoreError.unwritable(self.folder / UNSENT, error) from None


def replace_file(file: Path, draft: Path, content: bytes) -> None:
    """Write ``content`` into ``file`` through ``draft`` in the same folder: as a whole or not at all, and synced.

    Raises :class:`OSError`.
    """
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
