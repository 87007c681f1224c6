"""Findings of the checks and the report: data only, with the exit code of the worst finding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "unknown", "fail"]

FaultDomain = Literal["generation", "external"]
"""The side of the system's boundary that causes a failure (after Avizienis, Laprie, Randell and Landwehr, 2004).

``generation``: a generation can cause it or lack its fix, by its kernel, driver, parameters, units, rules or site.
``external``: no generation can; heat, power, a disk full of data, the other end of a line.
"""

EXIT_CODES: dict[Level, int] = {"ok": 0, "fail": 1, "warn": 3, "unknown": 4}
"""Exit code by the worst level. 2 is an invalid command line or configuration, as everywhere in ``appliance``."""

ORDER: tuple[Level, ...] = ("ok", "warn", "unknown", "fail")
"""Levels from best to worst. An unknown result may hide a failure, so it is worse than a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of a check: its level, what was seen, what that means and the command that fixes it.

    Judges build it. The runner adds the check's ``name``, and its ``fault_domain`` unless the judge has set one.
    ``cause`` is a stable code if this failure alone stops requests (:mod:`.causes`). The fields in this order are
    an entry of ``checks`` in the JSON report.
    """

    name: str = ""
    subject: str = ""
    level: Level
    seen: str
    meaning: str = ""
    fix: str = ""
    cause: str = ""
    fault_domain: FaultDomain | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A check that does not apply to this host, and the reason."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """All findings on one host, and the checks that do not apply to it."""

    host: str
    results: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]

    @property
    def worst(self) -> Level:
        """Return the worst level of the findings."""
        return worst(result.level for result in self.results)

    @property
    def exit_code(self) -> int:
        """Return the exit code of the command, one of :data:`EXIT_CODES`."""
        return EXIT_CODES[self.worst]


def worst(levels: Iterable[Level]) -> Level:
    """Return the worst of ``levels``; ok if there is none."""
    return max(levels, key=ORDER.index, default="ok")


def ok(seen: str, *, subject: str = "") -> Finding:
    """Return a finding without anything to do."""
    return Finding(level="ok", seen=seen, subject=subject)


def warn(seen: str, *, meaning: str, fix: str, subject: str = "") -> Finding:
    """Return a finding about something that works, and will or may stop."""
    return Finding(level="warn", seen=seen, meaning=meaning, fix=fix, subject=subject)


def fail(
    seen: str,
    *,
    meaning: str,
    fix: str,
    subject: str = "",
    cause: str = "",
    fault_domain: FaultDomain | None = None,
) -> Finding:
    """Return a finding about something that does not work, or is not safe."""
    return Finding(
        level="fail",
        seen=seen,
        meaning=meaning,
        fix=fix,
        subject=subject,
        cause=cause,
        fault_domain=fault_domain,
    )


def unknown(seen: str, *, fix: str, subject: str = "") -> Finding:
    """Return a finding about something that could not be inspected."""
    return Finding(
        level="unknown",
        seen=seen,
        meaning="This check could not inspect it, so its state is unknown.",
        fix=fix,
        subject=subject,
    )
