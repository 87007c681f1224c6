"""What a check says: data only, and how the worst of it becomes an exit code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "unknown", "fail"]

FaultDomain = Literal["generation", "external"]
"""On which side of the system's boundary a fault lies (internal and external faults of Avizienis, Laprie, Randell
and Landwehr, 2004). ``generation``: a generation can cause it or be what lacks to mend it, by its kernel, driver,
parameters, units, rules or site. ``external``: none can; heat, power, a disk full of data, the other end of a line.
"""

EXIT_CODES: dict[Level, int] = {"ok": 0, "fail": 1, "warn": 3, "unknown": 4}
"""By the worst level. 2 is a wrong command line or configuration, as everywhere in ``appliance``."""

ORDER: tuple[Level, ...] = ("ok", "warn", "unknown", "fail")
"""From best to worst. What could not be looked at may hide a failure, so it is worse than a warning."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's answer: how it is, what was seen, what that means, the command that mends it.

    ``cause`` is a stable code where this alone keeps requests from being answered (:mod:`.causes`).
    ``fault_domain`` is said where it is not the check's own (:class:`.catalogue.Check`).
    """

    level: Level
    seen: str
    meaning: str = ""
    fix: str = ""
    subject: str = ""
    cause: str = ""
    fault_domain: FaultDomain | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One verdict of one check, by the check's name. ``fault_domain``: whose fault it is where it is one."""

    name: str
    subject: str
    level: Level
    seen: str
    meaning: str
    fix: str
    cause: str = ""
    fault_domain: FaultDomain = "generation"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A check that does not concern this host, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Everything that was looked at on one host."""

    host: str
    results: tuple[Finding, ...]
    left_out: tuple[Skipped, ...]

    @property
    def worst(self) -> Level:
        """The worst level among the results."""
        return worst(result.level for result in self.results)

    @property
    def exit_code(self) -> int:
        """What the command ends with, see :data:`EXIT_CODES`."""
        return EXIT_CODES[self.worst]


def worst(levels: Iterable[Level]) -> Level:
    """The worst of ``levels``; ok when there is none."""
    return max(levels, key=ORDER.index, default="ok")


def ok(seen: str, subject: str = "") -> Verdict:
    """Nothing to do."""
    return Verdict("ok", seen, subject=subject)


def warn(seen: str, meaning: str, fix: str, subject: str = "") -> Verdict:
    """It works, and will or may stop to."""
    return Verdict("warn", seen, meaning, fix, subject)


def fail(
    seen: str,
    meaning: str,
    fix: str,
    subject: str = "",
    cause: str = "",
    fault_domain: FaultDomain | None = None,
) -> Verdict:
    """It does not work, or is not safe."""
    return Verdict("fail", seen, meaning, fix, subject, cause, fault_domain)


def unknown(seen: str, fix: str, subject: str = "") -> Verdict:
    """It could not be looked at."""
    return Verdict("unknown", seen, "This check could not look, so nothing is known.", fix, subject)
