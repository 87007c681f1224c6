"""Unit files of systemd: the settings of a rendered unit, and the commands that it runs."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class UnitCommand:
    """A command line of a unit."""

    argv: tuple[str, ...]
    may_fail: bool


@dataclass(frozen=True)
class UnitFile:
    """A rendered unit."""

    name: str
    text: str
    enabled: bool = True
    """Whether the unit can start; a disabled one is a link to /dev/null."""
    wanted_by: tuple[str, ...] = ()
    required_by: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    upstream: bool = False
    """Whether systemd itself has the unit, so that the text extends it."""

    @property
    def kind(self) -> str:
        """Return the type of the unit: ``service``, ``timer``, …"""
        return self.name.rpartition(".")[2]

    @property
    def drop_in(self) -> bool:
        """Return whether the text extends a unit of systemd or of another package: it starts nothing by itself."""
        started = {"service": "ExecStart", "socket": "ListenStream"}.get(self.kind)
        return self.upstream or (started is not None and not self.values(started))

    @cached_property
    def settings(self) -> tuple[tuple[str, str, str], ...]:
        """Return section, key and value of each line."""
        section, found = "", []
        for line in self.text.replace("\\\n", " ").splitlines():
            stripped = line.strip()
            if head := re.fullmatch(r"\[(.+)\]", stripped):
                section = head[1]
            elif stripped and stripped[0] not in "#;":
                key, _, value = stripped.partition("=")
                found.append((section, key.strip(), value.strip()))
        return tuple(found)

    def values(self, key: str) -> list[str]:
        """Return the values of ``key``; an empty value resets the list, as in systemd."""
        found: list[str] = []
        for _, name, value in self.settings:
            if name == key:
                found = [*found, value] if value else []
        return found

    def value(self, key: str, default: str = "") -> str:
        """Return the last value of ``key``."""
        return (self.values(key) or [default])[-1]

    def words(self, *keys: str) -> list[str]:
        """Return all words of the values of ``keys``."""
        return [word for key in keys for value in self.values(key) for word in value.split()]

    def commands(self, key: str) -> list[UnitCommand]:
        """Return the commands of ``ExecStart``, ``ExecStartPre`` and others."""
        found = []
        for value in self.values(key):
            prefix = re.match(r"[-@:+!]*", value)
            assert prefix
            words = shlex.split(value[prefix.end() :])
            if "@" in prefix[0]:
                # The second word is the name that the process shows.
                del words[1]
            found.append(UnitCommand(tuple(words), "-" in prefix[0]))
        return found

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables of ``Environment``."""
        pairs = (word.partition("=") for value in self.values("Environment") for word in shlex.split(value))
        return {name: value for name, _, value in pairs}
