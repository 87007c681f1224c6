"""Whether every engine fits its cards and RAM."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.contract.model import Site
from appliance.doctor.check import (
    check,
    described_site,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok
from appliance.planner.fit import fit


@check(
    "fit",
    looks="the planner's check that every engine fits its cards and RAM",
    means="An engine runs out of memory, at its start or under load.",
    fix="as reported by the planner",
    requires=described_site,
    fault_domain="generation",
)
def check_fit(_context: CheckContext, site: Site) -> Iterator[Finding]:
    """Check the site with the planner."""
    violations = fit(site)
    for violation in violations:
        yield fail(
            violation.what,
            meaning="The engine will not start, or runs out of memory.",
            fix=violation.fix,
            subject=violation.where,
        )
    if not violations:
        yield ok("every engine fits its cards and RAM")
