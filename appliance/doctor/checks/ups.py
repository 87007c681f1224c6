"""The UPS: whether NUT reads it, its load and its battery. The check of the units covers the power agent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from appliance.contract.machine import MonitoredUps
from appliance.doctor.check import check, machine_part
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, warn
from appliance.doctor.host import HostReader

HIGH_LOAD = 80.0
"""Load in percent above which an old battery fails within seconds."""
LOW_CHARGE = 50.0
FULL_CHARGE = 90.0


@dataclass(frozen=True, slots=True)
class UpsFacts:
    """The variables of the UPS, or the error of upsc."""

    variables: dict[str, str]
    error: str

    def number(self, name: str) -> float | None:
        """Return a variable as a number; ``None`` if the UPS does not report it."""
        try:
            return float(self.variables[name])
        except (KeyError, ValueError):
            return None


def read_ups(host: HostReader, ups: MonitoredUps) -> UpsFacts:
    """Read the UPS with upsc."""
    done = host.run("upsc", f"{ups.name}@127.0.0.1:{ups.port}")
    variables = dict(line.split(": ", 1) for line in done.out.splitlines() if ": " in line)
    return UpsFacts(variables, "") if done.code == 0 else UpsFacts({}, done.first_error)


def judge_ups(facts: UpsFacts, ups: MonitoredUps) -> Iterator[Finding]:
    """Judge whether the host survives the next power cut."""
    if facts.error:
        yield fail(
            f"cannot be read: {facts.error}",
            meaning="A power cut is not noticed, and the host stops without a shutdown.",
            fix=f"check its cable; systemctl restart upsdrv; journalctl -u upsdrv -u upsd ({ups.driver})",
        )
    else:
        yield from _judge_battery(facts)


def _judge_battery(facts: UpsFacts) -> Iterator[Finding]:
    status = set(facts.variables.get("ups.status", "").split())
    charge, load = facts.number("battery.charge"), facts.number("ups.load")
    bad = False
    if "OB" in status and not status & {"OL", "CAL", "TEST"}:
        bad = True
        yield warn(
            "runs on battery",
            meaning="The power is cut; the engines stop until it is back.",
            fix="appliance power status",
        )
    if "RB" in status:
        bad = True
        yield warn(
            "requests a new battery (RB)",
            meaning="Its runtime is shorter than it reports.",
            fix="replace the battery, then upscmd -u appliance ups@127.0.0.1 test.battery.start.quick",
        )
    if "LB" in status and charge is not None and charge >= FULL_CHARGE:
        bad = True
        yield warn(
            f"reports a low battery at {charge:.0f} % charge",
            meaning="The next power cut ends in a shutdown at once.",
            fix="set appliance.power.ups.lowChargePercent = 20",
        )
    elif charge is not None and charge < LOW_CHARGE:
        bad = True
        yield warn(
            f"battery at {charge:.0f} %",
            meaning="The next power cut may end in a shutdown soon.",
            fix="wait for some hours; a battery that stays low is old: replace it",
        )
    if load is not None and load > HIGH_LOAD:
        bad = True
        yield warn(
            f"load {load:.0f} %",
            meaning="Above 80 % the UPS may fail at the cut, and its runtime is a few minutes.",
            fix="lower power_limit_w of the cards, or take a larger UPS",
        )
    if not bad:
        shown = [facts.variables.get("ups.status", "no status")]
        shown += [] if charge is None else [f"charge {charge:.0f} %"]
        shown += [] if load is None else [f"load {load:.0f} %"]
        runtime = facts.number("battery.runtime")
        shown += [] if runtime is None else [f"runtime {runtime / 60:.0f} min"]
        yield ok(", ".join(shown))


@check(
    "ups",
    looks="the UPS through NUT: status, charge, load, battery",
    means="A UPS that NUT does not read means a stop without a shutdown at the next power cut.",
    fix="`appliance power status`",
    requires=machine_part(lambda machine: machine.ups, "no UPS is described"),
    fault_domain="external",
)
def check_ups(context: CheckContext, ups: MonitoredUps) -> Iterator[Finding]:
    """Check the UPS."""
    yield from judge_ups(read_ups(context.host, ups), ups)
