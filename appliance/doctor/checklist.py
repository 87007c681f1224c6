"""The ten points of the operator: ``appliance doctor --checklist``.

| point | source |
|---|---|
| 1 driver and CUDA versions | the checks ``pins`` and ``driver`` |
| 2 huge pages as chosen | the check ``hugepages`` |
| 3 tensor parallel | the cards on which the processes of each engine compute |
| 4 speculative decoding | the counters of each engine |
| 5 attention backend | the log of each engine since the boot |
| 6 utilisation at a full batch | Prometheus, the last seven days |
| 7 temperature and power limit | nvidia-smi, the checks ``throttle``, ``power`` and ``cooling`` |
| 8 the public address | a request through the Internet, or on a VPS the check ``edge`` |
| 9 the watchdog and heat | a drill of its decisions, and its state of this minute |
| 10 backup and restore drill | the check ``backup`` |

A point that does not apply to a host is skipped with the reason; a point of several findings has the worst level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from appliance.contract.model import Site
from appliance.doctor.acceleration import (
    find_attention,
    find_speculation,
    find_tensor_parallel,
    find_utilisation,
)
from appliance.doctor.card_watch import CardWatch, read_card_watch
from appliance.doctor.check import NotApplicable, cards_of_site
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import DoctorReport, Finding, Level, fail, ok, unknown, warn, worst
from appliance.doctor.host import CannotLookError
from appliance.doctor.nvidia import GpuStatus
from appliance.doctor.runner import examine_named
from appliance.system.http_request import NO_RESPONSE, send_request

HIGHEST_C = 85
"""Temperature in °C that no card may reach."""

SILENT_S = 60.0
"""Age of the watchdog's state from which on it counts as stopped; it writes it every few seconds."""

PUBLIC_TIMEOUT_S = 15.0

HeatDrillRun = Callable[[Site, str], tuple[tuple[str, ...], tuple[str, ...]]]
"""Runs the drill for a site's host: what failed, and what the watchdog did (appliance/watch/gpu/heat_drill.py)."""


@dataclass(frozen=True, slots=True)
class ChecklistPoint:
    """One point: its findings, or why it does not apply to this host."""

    number: int
    title: str
    findings: tuple[Finding, ...]
    skipped: str = ""

    @property
    def level(self) -> Level:
        """Return the worst level of its findings."""
        return worst(one.level for one in self.findings)


def run_checklist(context: CheckContext, drill: HeatDrillRun) -> tuple[ChecklistPoint, ...]:
    """Return the ten points for the host of ``context``; ``drill`` simulates heat."""
    points: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("driver and CUDA versions", lambda: _named(context, "pins", "driver")),
        ("huge pages as chosen", lambda: _named(context, "hugepages")),
        ("tensor parallel active where configured", lambda: find_tensor_parallel(_with_cards(context))),
        ("speculative decoding active where configured", lambda: find_speculation(_with_cards(context))),
        ("attention backend chosen", lambda: find_attention(_with_cards(context))),
        (
            "GPU utilisation at a full batch",
            lambda: find_utilisation(_with_cards(context), _prometheus_port(context)),
        ),
        (f"temperature below {HIGHEST_C} °C, and the power limit", lambda: _heat(_with_cards(context))),
        ("health through the public address", lambda: _public(context)),
        ("the watchdog reacts to heat (drill, report only)", lambda: _watchdog(_with_cards(context), drill)),
        ("backup and restore drill passed", lambda: _named(context, "backup")),
    )
    return tuple(_point(number, title, find) for number, (title, find) in enumerate(points, 1))


def as_report(host: str, points: tuple[ChecklistPoint, ...]) -> DoctorReport:
    """Return the findings of all points as one report, for the exit code."""
    return DoctorReport(host, tuple(finding for point in points for finding in point.findings), ())


class _NotHereError(Exception):
    """The point does not apply to this host; the text is the reason."""


def _point(number: int, title: str, find: Callable[[], Iterator[Finding]]) -> ChecklistPoint:
    findings: list[Finding] = []
    try:
        findings.extend(find())
    except _NotHereError as error:
        return ChecklistPoint(number, title, (), str(error))
    except CannotLookError as error:
        findings.append(unknown(str(error), fix=error.fix))
    return ChecklistPoint(number, title, tuple(findings))


def _named(context: CheckContext, *names: str) -> Iterator[Finding]:
    results, skipped = examine_named(context, names)
    if not results:
        raise _NotHereError("; ".join(one.why for one in skipped))
    yield from results


def _with_cards(context: CheckContext) -> CheckContext:
    found = cards_of_site(context)
    if isinstance(found, NotApplicable):
        raise _NotHereError(found.why)
    return context


def _prometheus_port(context: CheckContext) -> int | None:
    observed = context.machine.observed if context.machine is not None else None
    return observed.prometheus if observed is not None else None


def judge_temperature(card: GpuStatus) -> Finding:
    """Judge the temperature of a card against the operator's limit."""
    subject = f"card {card.index}"
    if card.temperature_c is None:
        fix = f"nvidia-smi -q -i {card.index} -d TEMPERATURE"
        return unknown("reports no temperature", fix=fix, subject=subject)
    if card.temperature_c >= HIGHEST_C:
        return fail(
            f"{card.temperature_c} °C",
            meaning=f"The limit is {HIGHEST_C} °C: the card ages, and soon lowers its clock.",
            fix="clean the filters, cool the room, lower power_limit_w",
            subject=subject,
            fault_domain="external",
        )
    return ok(f"{card.temperature_c} °C", subject=subject)


def _heat(context: CheckContext) -> Iterator[Finding]:
    for card in context.cards:
        yield judge_temperature(card)
    results, _ = examine_named(context, ("power", "throttle", "cooling"))
    # The temperature was judged above; of these checks, only a finding that is not ok adds something.
    yield from (one for one in results if one.level != "ok" or one.name == "power")


def _public(context: CheckContext) -> Iterator[Finding]:
    machine = context.machine
    if machine is not None and machine.edge is not None:
        yield from _named(context, "edge")
        return
    url = machine.observed.public_url if machine is not None and machine.observed is not None else None
    if url is None:
        yield unknown("no public address is described", fix="set appliance.observe.publicUrl")
        return
    try:
        status = send_request(url, "/v1/models", timeout_s=PUBLIC_TIMEOUT_S).status
    except NO_RESPONSE as error:
        yield fail(
            f"{url}: no response ({error})",
            meaning="No client outside of this house can connect.",
            fix="appliance doctor --only tunnel; then on the VPS: appliance doctor",
            fault_domain="external",
        )
        return
    yield judge_public(url, status)


def judge_public(url: str, status: int) -> Finding:
    """Judge the ``status`` of a request without a key through the public address; 401 is the gateway's."""
    if status == 401:
        return ok(f"{url} reaches the gateway: a request without a key gets its 401")
    return fail(
        f"{url}/v1/models without a key gets {status}, not 401",
        meaning="nginx does not reach the gateway, or another server responds.",
        fix="appliance doctor --only tunnel; then on the VPS: appliance doctor",
        fault_domain="external",
    )


def _watchdog(context: CheckContext, drill: HeatDrillRun) -> Iterator[Finding]:
    yield judge_card_watch(read_card_watch(context.host), context.now)
    if context.site is None:
        return
    failed, steps = drill(context.site, context.name)
    for text in failed:
        yield fail(
            f"drill: {text}",
            meaning="A card that overheats stays as it is until its hardware stops it.",
            fix="appliance check; journalctl -u appliance-gpu-watch -n 20",
        )
    if not failed:
        yield ok(f"drill: {'; '.join(steps)}; all of it back when cool")


def judge_card_watch(watch: CardWatch | None, now: float) -> Finding:
    """Judge whether the watchdog runs and acts; ``now`` is in Unix seconds."""
    fix = "systemctl status appliance-gpu-watch; journalctl -u appliance-gpu-watch -n 20"
    meaning = "No program reacts to a hot card."
    if watch is None:
        return fail("the watchdog does not run", meaning=meaning, fix=fix)
    age_s = now - watch.at
    if age_s > SILENT_S:
        return fail(f"the watchdog has been silent for {age_s:.0f} s", meaning=meaning, fix=fix)
    if not watch.act:
        return warn(
            "the watchdog runs, and reports only",
            meaning="It sends a notice about a hot card, and changes nothing.",
            fix="after a week without false notices: appliance.gpuWatch.act = true",
        )
    return ok("the watchdog runs, and acts")
