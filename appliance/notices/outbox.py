"""The outbox: a folder with one file per notice, so that no message is lost over an outage of the line or a reboot.

Any number of processes put notices into it; one, the sender, takes them out.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.errors import StoreError
from appliance.notices.notice import Notice
from appliance.system.files import sync_folder

FOLDER = Path("/var/lib/appliance-notices")
"""The outbox of a machine. The sender's group owns the files, and the folder passes the group on."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """The outbox in ``folder``."""

    folder: Path = FOLDER

    def put(self, notice: Notice, *, tag: str = "") -> Path:
        """Write ``notice`` so that it survives a power cut, and return its file.

        The name begins with the time of the call, so that names in order are notices in order. ``tag`` identifies
        the event: the sender sends one notice of each tag. A caller that is not sure of an earlier call repeats it
        with the same tag. It consists of letters, digits and underscores. Without one, each notice is sent.

        Raises :class:`StoreError` if the file cannot be written.
        """
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}{'-' if tag else ''}{tag}.json"
        file, draft = self.folder / name, self.folder / f".{name}"
        try:
            self.folder.mkdir(mode=0o2770, parents=True, exist_ok=True)
            number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            try:
                with os.fdopen(number, "wb") as stream:
                    # The umask of a hardened unit hides the file from the sender's group.
                    os.fchmod(number, 0o640)
                    stream.write(msgspec.json.encode(notice))
                    stream.flush()
                    os.fsync(number)
                draft.rename(file)
            except OSError:
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StoreError.unwritable(file, error) from None
        sync_folder(self.folder)
        return file

    def waiting(self) -> list[Path]:
        """Return the files of the notices that were not taken out, oldest first.

        Raises :class:`StoreError` if the folder cannot be read.
        """
        try:
            return sorted(file for file in self.folder.iterdir() if is_notice(file.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError.unreadable(self.folder, error) from None


def is_notice(name: str) -> bool:
    """Return whether ``name`` is that of a notice's file: not a draft, a folder or the sender's own file."""
    return name.endswith(".json") and name[0].isdigit()


def tag_of(name: str) -> str:
    """Return the tag in the name of a notice's file, empty if it has none.

    Example::

        tag_of("01764250000000000000-5f0c11aa-trial_8.json") == "trial_8"
    """
    return name.removesuffix(".json").partition("-")[2].partition("-")[2]
