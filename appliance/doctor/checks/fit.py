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
    means="An engine ends with out-of-memory, at its start or when busy.",
    fix="what the planner says",
    requires=described_site,
    fault_domain="generation",
)
def check_fit(_context: CheckContext, site: Site) -> Iterator[Finding]:
    """The planner's word on the site."""
    broken = fit(site)
    for violation in broken:
        yield fail(
            violation.what,
            meaning="The engine will not start, or runs out of memory.",
            fix=violation.fix,
            subject=violation.where,
        )
    if not broken:
        yield ok("every engine fits its cards and RAM")
