"""The decorator that makes a check of a function, and the requirements under which a check applies to a host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from appliance.contract.machine import Machine
from appliance.contract.model import Gpu, Site
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import FaultDomain, Finding
from appliance.engines.argv import EngineReplica

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NotApplicable:
    """The result of a requirement that a host does not meet: the reason, which the report shows."""

    why: str


Requirement: TypeAlias = Callable[[CheckContext], T | NotApplicable]
"""A function that returns the part of the description which a check needs, or why the check does not apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check; ``looks``, ``means`` and ``fix`` are texts of docs/doctor.md and of ``--list``.

    ``fault_domain`` is that of its failures. ``exceptions`` describes those of its failures that are of the other
    domain, as their findings are marked. Only failures of a generation fail its smoke test
    (docs/decisions/0011-fault-domains.md).
    """

    name: str
    looks: str
    means: str
    fix: str
    requires: Requirement[Any]
    run: Callable[[CheckContext, Any], Iterable[Finding]]
    fault_domain: FaultDomain
    exceptions: str = ""

    def why_skipped(self, context: CheckContext) -> str | None:
        """Return why the check does not apply to this host, ``None`` if it does."""
        found = self.requires(context)
        return found.why if isinstance(found, NotApplicable) else None

    def findings(self, context: CheckContext) -> Iterable[Finding]:
        """Run the check; call it only if :meth:`why_skipped` returns ``None``."""
        return self.run(context, self.requires(context))


def check(
    name: str,
    *,
    looks: str,
    means: str,
    fix: str,
    requires: Requirement[T],
    fault_domain: FaultDomain,
    exceptions: str = "",
) -> Callable[[Callable[[CheckContext, T], Iterable[Finding]]], Check]:
    """Make a :class:`Check` of a function that takes the context and what ``requires`` returned.

    Example::

        @check("clock", looks="…", means="…", fix="…", requires=always, fault_domain="external")
        def check_clock(context: CheckContext, _: None) -> Iterator[Finding]:
            yield from judge_clock(read_clock(context.host), context.now)
    """

    def decorate(function: Callable[[CheckContext, T], Iterable[Finding]]) -> Check:
        return Check(
            name=name,
            looks=looks,
            means=means,
            fix=fix,
            requires=requires,
            run=function,
            fault_domain=fault_domain,
            exceptions=exceptions,
        )

    return decorate


def always(_: CheckContext) -> None:
    """Require nothing: the check applies to every host."""


def described_machine(context: CheckContext) -> Machine | NotApplicable:
    """Require the machine's description."""
    return context.machine or NotApplicable("no machine is described (--machine)")


def machine_part(part: Callable[[Machine], T | None], missing: str) -> Requirement[T]:
    """Require a ``part`` of the machine's description; ``missing`` is the reason shown if it is absent."""

    def requirement(context: CheckContext) -> T | NotApplicable:
        machine = described_machine(context)
        return machine if isinstance(machine, NotApplicable) else part(machine) or NotApplicable(missing)

    return requirement


def described_site(context: CheckContext) -> Site | NotApplicable:
    """Require a site."""
    return context.site or NotApplicable("no site is described on this host")


def site_with_gateway(context: CheckContext) -> Site | NotApplicable:
    """Require a site whose gateway runs on this host."""
    site = described_site(context)
    if isinstance(site, NotApplicable) or context.has_gateway:
        return site
    return NotApplicable("the gateway runs on another host")


def cards_of_site(context: CheckContext) -> tuple[Gpu, ...] | NotApplicable:
    """Require cards: named by the site, or used by an engine of this host."""
    if context.gpus or context.on_cards:
        return context.gpus
    return NotApplicable("there are no cards on this host")


def engines_on_cards(context: CheckContext) -> list[EngineReplica] | NotApplicable:
    """Require engines that compute on cards."""
    return context.on_cards or NotApplicable("no engine of this host runs on a card")
