"""systemd-boot as NixOS sets it up: entry files on the EFI system partition, and the loader's EFI variables.

The loader chooses the entry by this order (systemd-boot(7), "EFI Variables"):

1. LoaderEntryOneShot, which it deletes before it starts anything;
2. LoaderEntryDefault;
3. ``default`` of loader.conf.

NixOS's builder writes only the third, on every ``nixos-rebuild boot`` and ``switch``, and to the newest generation.
So the second keeps a machine at its known good generation, also while the builder runs. The third gets the same
value, in case the firmware loses its variables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import LoaderError
from appliance.upgrade.command import run
from appliance.upgrade.state_file import replace_file

VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
"""systemd's vendor id of the loader's variables (Boot Loader Interface)."""


@dataclass(frozen=True, slots=True)
class Loader:
    """The loader of this machine; its folders are parameters for tests."""

    boot: Path = Path("/boot")
    variables: Path = Path("/sys/firmware/efi/efivars")

    def entry(self, init_of: Path) -> str:
        """Return the entry that boots the system at ``init_of``; raises :class:`LoaderError` if there is none.

        Search by content, not by number. A system in two profiles has two entries, and NixOS deletes the oldest
        entries of a profile above its limit.
        """
        try:
            found = [
                file.name
                for file in (self.boot / "loader" / "entries").glob("nixos*.conf")
                if re.search(rf"\binit={re.escape(str(init_of))}/init(\s|$)", file.read_text(errors="replace"))
            ]
        except OSError as error:
            what = f"{error.filename or self.boot} cannot be read ({error.strerror})"
            raise LoaderError(f"{what}; check that file system with fsck, and run as root") from None
        if not found:
            raise LoaderError(f"no boot entry starts {init_of}; `nixos-rebuild boot` writes the entries again")
        # Prefer the system profile to a named profile, then the newest entry.
        return min(found, key=lambda name: (not name.startswith("nixos-generation-"), -_number(name), name))

    def variable(self, name: str) -> str | None:
        """Return the text of a variable of the loader, ``None`` if it is not set."""
        try:
            # Four bytes of attributes, then UTF-16 with a final NUL (UEFI 2.10, 8.2).
            raw = (self.variables / f"{name}-{VENDOR}").read_bytes()[4:]
        except OSError:
            return None
        return raw.decode("utf-16-le", errors="replace").rstrip("\0") or None

    def set_default(self, entry: str) -> None:
        """Make ``entry`` the default entry, in the variable and in loader.conf."""
        # Each write wears out the firmware's memory; write only a change.
        if self.variable("LoaderEntryDefault") != entry:
            self._bootctl("set-default", entry)
        self._write_conf(entry)

    def release_default(self, entry: str) -> None:
        """Let loader.conf alone decide, as NixOS does, with ``entry`` as its default."""
        self._write_conf(entry)
        if self.variable("LoaderEntryDefault") is not None:
            self._bootctl("set-default", "")

    def set_oneshot(self, entry: str) -> None:
        """Make ``entry`` boot at the next boot only."""
        self._bootctl("set-oneshot", entry)

    def clear_oneshot(self) -> None:
        """Clear the one-shot entry."""
        if self.variable("LoaderEntryOneShot") is not None:
            self._bootctl("set-oneshot", "")

    def _write_conf(self, entry: str) -> None:
        file = self.boot / "loader" / "loader.conf"
        try:
            before = file.read_text()
            lines = [line for line in before.splitlines() if not re.match(r"default\s", line)]
            after = "\n".join([f"default {entry}", *lines, ""])
            if sorted(after.split("\n")) != sorted(before.split("\n")):
                replace_file(file, file.with_name("loader.conf.new"), after.encode())
        except OSError as error:
            raise LoaderError(f"{file} cannot be changed ({error.strerror}); is {self.boot} mounted?") from None
        except UnicodeDecodeError:
            raise LoaderError(
                f"{file} is damaged; check {self.boot} with fsck, then `nixos-rebuild boot`"
            ) from None

    def _bootctl(self, *words: str) -> None:
        run(["bootctl", f"--esp-path={self.boot}", *words], hint="trial boots need systemd-boot and EFI")


def _number(name: str) -> int:
    digits = re.search(r"-generation-(\d+)", name)
    return int(digits[1]) if digits else -1
