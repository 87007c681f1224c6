"""The systemd units of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.doctor.check import (
    check,
    machine_part,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, warn
from appliance.doctor.host import CannotLookError, HostReader

PROPERTIES = (
    "Id", "LoadState", "ActiveState", "Result", "Type", "RemainAfterExit", "ConditionResult", "ConditionTimestamp",
    "ExecMainExitTimestamp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SystemdUnit:
    """The state of a unit in systemd."""

    name: str
    load: str
    active: str
    result: str
    done: bool
    """Correctly inactive: it ran once and succeeded, or its condition was not met."""


def read_units(host: HostReader, names: Sequence[str]) -> list[SystemdUnit]:
    """Read the state of each unit, in that order; raises :class:`CannotLookError` if systemd does not respond."""
    wanted = f"--property={','.join(PROPERTIES)}"
    done = host.run("systemctl", "show", "--no-pager", wanted, "--", *names)
    if done.code != 0:
        raise CannotLookError(f"systemctl: {done.first_error}", "run `appliance doctor` on the host itself")
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in done.out.split("\n\n")
    ]
    by_name = {block["Id"]: block for block in blocks if "Id" in block}
    return [
        SystemdUnit(
            name=name,
            load=found.get("LoadState", "not-found"),
            active=found.get("ActiveState", "inactive"),
            result=found.get("Result", ""),
            done=_is_done(found),
        )
        for name in names
        for found in [by_name.get(name, {})]
    ]


def _is_done(found: Mapping[str, str]) -> bool:
    def happened(stamp: str) -> bool:
        return found.get(stamp, "") not in {"", "n/a", "0"}

    # A unit that was never started has Result=success and ConditionResult=no as well, but no times.
    once = found.get("Type") == "oneshot" and found.get("RemainAfterExit") == "no"
    ended = once and happened("ExecMainExitTimestamp")
    unneeded = found.get("ConditionResult") == "no" and happened("ConditionTimestamp")
    return found.get("Result") == "success" and (ended or unneeded)


UNIT_CAUSES = {"nftables.service": "firewall-not-loaded", "nginx.service": "edge-down"}


def judge_units(units: Sequence[SystemdUnit]) -> Iterator[Finding]:
    """Judge whether every unit of the machine is active."""
    bad = 0
    for unit in units:
        short = unit.name.removesuffix(".service")
        if unit.load == "not-found":
            bad += 1
            yield fail(
                f"{unit.name} does not exist",
                meaning="The running system is older than the machine's description.",
                fix="nixos-rebuild switch --flake .#<this host>",
                subject=short,
                cause=UNIT_CAUSES.get(unit.name, ""),
            )
        elif unit.active == "failed":
            bad += 1
            yield fail(
                f"failed ({unit.result})",
                meaning="Its task is not done.",
                fix=f"journalctl -u {short} -b; systemctl restart {short}",
                subject=short,
                cause=UNIT_CAUSES.get(unit.name, ""),
            )
        elif unit.active != "active" and not unit.done:
            bad += 1
            level = warn if unit.active in {"activating", "reloading"} else fail
            yield level(
                unit.active,
                meaning="It is still starting." if level is warn else "It was stopped, and is not started again.",
                fix=f"systemctl status {short}" if level is warn else f"systemctl start {short}",
                subject=short,
            )
    if not bad:
        yield ok(f"{len(units)} units are active, or done")


@check(
    "units",
    looks="systemd's state of every unit that has to be active",
    means="A failed unit did not do its task: power limits, verification, the smoke test.",
    fix="`journalctl -u UNIT -b`",
    requires=machine_part(lambda machine: machine.units, "no units are described"),
    fault_domain="generation",
)
def check_units(context: CheckContext, expected: tuple[str, ...]) -> Iterator[Finding]:
    """Check the state of the units."""
    yield from judge_units(read_units(context.host, expected))
