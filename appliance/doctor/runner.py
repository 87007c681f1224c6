"""Every check, in the order in which an operator would fix its failures, and their run on one host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import ModuleType

from appliance.contract.violation import suggest
from appliance.doctor.check import Check
from appliance.doctor.checks import (
    assistant,
    backup,
    cards,
    certificate,
    clock,
    database,
    disk,
    driver,
    edge,
    firewall,
    fit,
    gateway,
    kernel,
    memory,
    notices,
    numa,
    ports,
    telegram,
    tunnel,
    units,
    ups,
    versions,
    weights,
    xid,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import DoctorReport, Finding, Skipped, unknown
from appliance.doctor.host import CannotLookError
from appliance.errors import UsageError

SUBJECTS: tuple[ModuleType, ...] = (
    versions,
    driver,
    cards,
    xid,
    kernel,
    memory,
    numa,
    clock,
    disk,
    weights,
    database,
    firewall,
    tunnel,
    ports,
    units,
    notices,
    ups,
    fit,
    gateway,
    assistant,
    telegram,
    certificate,
    edge,
    backup,
)
"""The modules of the checks, in the order of the report. Within a module the order is that of its functions."""

CHECKS: tuple[Check, ...] = tuple(
    member for subject in SUBJECTS for member in vars(subject).values() if isinstance(member, Check)
)


def examine(context: CheckContext, only: Iterable[str] = ()) -> DoctorReport:
    """Run all checks that apply to this host, or those named in ``only``.

    Raises :class:`UsageError` if a name is not that of a check, or if no named check applies to this host.
    """
    wanted = tuple(dict.fromkeys(only))
    names = [check.name for check in CHECKS]
    for name in wanted:
        if name not in names:
            raise UsageError(f"--only {name}: there is no such check; {suggest(name, names)}")
    results, skipped = examine_named(context, wanted or names)
    if wanted and not results:
        raise UsageError("; ".join(f"--only {one.name}: {one.why}" for one in skipped))
    return DoctorReport(context.name, results, skipped)


def examine_named(context: CheckContext, names: Iterable[str]) -> tuple[tuple[Finding, ...], tuple[Skipped, ...]]:
    """Run the checks ``names`` in the order of the report; return their findings, and those that do not apply."""
    wanted = set(names)
    results: list[Finding] = []
    skipped: list[Skipped] = []
    for check in CHECKS:
        if check.name not in wanted:
            continue
        why = check.why_skipped(context)
        if why is not None:
            skipped.append(Skipped(check.name, why))
        else:
            results += [_completed(check, finding) for finding in _findings(check, context)]
    return tuple(results), tuple(skipped)


def _findings(check: Check, context: CheckContext) -> Iterator[Finding]:
    silent = True
    try:
        # One by one: findings before a failed inspection still count.
        for finding in check.findings(context):
            silent = False
            yield finding
    except CannotLookError as error:
        yield unknown(str(error), fix=error.fix)
    else:
        if silent:
            yield unknown(
                "found nothing to inspect", fix="is the description of this host complete? `appliance check`"
            )


def _completed(check: Check, finding: Finding) -> Finding:
    """Return ``finding`` with the check's name and fault domain, and in printable text."""
    return replace(
        finding,
        name=check.name,
        subject=_printable(finding.subject),
        seen=_printable(finding.seen),
        meaning=_printable(finding.meaning),
        fix=_printable(finding.fix),
        fault_domain=finding.fault_domain or check.fault_domain,
    )


def _printable(text: str) -> str:
    """Replace control characters: any program can choose the name of its process and the text of its log lines."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
