"""The driver's XID errors in the kernel's log, and the recovery that the driver requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from appliance.catalog.xids import APPLICATION_XIDS, HARDWARE_XIDS, MEMORY_XIDS, Xid, parse_xids
from appliance.contract.model import Gpu
from appliance.doctor.check import (
    cards_of_site,
    check,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import FaultDomain, Finding, fail, ok, warn
from appliance.doctor.host import CannotLookError, HostReader
from appliance.system.nvidia_smi import parse_row, query_command

RECOVERY_FIELDS = ("index", "gpu_recovery_action")
NO_RECOVERY = frozenset({"None", "[N/A]", "N/A"})


def read_recovery(host: HostReader) -> dict[int, str]:
    """Read the recovery that the driver requests, by card; empty if nvidia-smi does not have the field."""
    done = host.run(*query_command(RECOVERY_FIELDS))
    rows = (parse_row(line, RECOVERY_FIELDS) for line in done.out.splitlines() if done.code == 0)
    return {int(row.text("index")): row.text("gpu_recovery_action") for row in rows if row is not None}


def read_xids(host: HostReader) -> list[Xid]:
    """Read the driver's errors since boot; raises :class:`CannotLookError` if the log cannot be read."""
    done = host.run("journalctl", "--dmesg", "--boot", "--output=cat", "--no-pager", "--quiet", timeout_s=30)
    if done.code != 0:
        raise CannotLookError(f"journalctl: {done.first_error}", "run `appliance doctor` as root")
    if not done.out.strip():
        # Every kernel logs messages while it boots, so an empty log is not readable or was deleted.
        raise CannotLookError("the kernel's log of this boot is empty", "run `appliance doctor` as root")
    return parse_xids(done.out)


def judge_xids(xids: Sequence[Xid], recovery: Mapping[int, str]) -> Iterator[Finding]:
    """Judge the driver's errors since boot, and the recovery that it requests."""
    numbers = {xid.number for xid in xids if xid.number in HARDWARE_XIDS}
    # The driver requests a recovery after any of them, so the request has the domain of all of them.
    requested_by: FaultDomain = "external" if numbers and numbers <= MEMORY_XIDS else "generation"
    for index, action in recovery.items():
        if action not in NO_RECOVERY:
            yield fail(
                f"the driver requests: {action}",
                meaning="The card has an error from which it does not recover by itself.",
                fix=f"systemctl stop 'appliance-engine-*'; nvidia-smi --gpu-reset -i {index}"
                if "Reset" in action
                else "reboot",
                subject=f"card {index}",
                fault_domain=requested_by,
            )
    counts = Counter(xid.number for xid in xids)
    last = {xid.number: xid for xid in xids}
    for number, times in sorted(counts.items()):
        summary = f"XID {number}, {times} times; last at {last[number].bus}: {last[number].text[:60]}"
        if number in HARDWARE_XIDS:
            yield fail(
                summary,
                meaning="An error of the card, its memory or its slot; a restart of the engine does not fix it.",
                fix="systemctl stop 'appliance-engine-*'; reboot; if it returns, replace the card",
                subject=f"XID {number}",
                fault_domain="external" if number in MEMORY_XIDS else "generation",
            )
        elif number not in APPLICATION_XIDS:
            yield warn(
                summary,
                meaning="The driver reported an error; if it repeats, find its cause.",
                fix="journalctl --dmesg --boot | grep Xid; NVIDIA's XID catalogue explains the number",
                subject=f"XID {number}",
            )
        else:
            yield ok(f"{summary} (an error of an engine)", subject=f"XID {number}")
    if not counts and all(action in NO_RECOVERY for action in recovery.values()):
        yield ok("none since boot")


def _numbers(xids: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(xids)))


@check(
    "xid",
    looks="the driver's errors in the kernel's log since boot, and the recovery that it requests",
    means=f"{_numbers(HARDWARE_XIDS)} are errors of the card or its slot; {_numbers(APPLICATION_XIDS)} of a "
    "program.",
    fix="reset the card or `reboot`; replace the card if the error returns",
    requires=cards_of_site,
    fault_domain="generation",
    exceptions="errors of the card's own memory (48, 64, 95), and the recovery requested after only these",
)
def check_xid(context: CheckContext, _: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Check the kernel's log, and the recovery that the driver requests."""
    recovery = read_recovery(context.host)
    yield from judge_xids(read_xids(context.host), recovery)
