"""The driver's XID errors in the kernel's log, and the recovery that the driver requests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.contract.model import Gpu
from appliance.doctor.check import (
    cards_of_site,
    check,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import FaultDomain, Finding, fail, ok, warn
from appliance.doctor.host import CannotLookError, HostReader
from appliance.system.nvidia_smi import parse_row, query_command

HARDWARE_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120})
"""What a restart of the engine does not mend: double-bit ECC, row remapping failed, NVLink, off the bus,
uncontained ECC, GSP. The list of the alert rule of nvidia_gpu_exporter."""


MEMORY_XIDS = frozenset({48, 64, 95})
"""Of these, faults of the card's own memory: no driver and no parameter makes them. The others can come of a
driver, its GSP firmware or a parameter of the kernel as well as of a card, a slot or a cable."""


APPLICATION_XIDS = frozenset({13, 31, 43, 45})
"""A program's own fault or its end: illegal access, page fault, stopped channel, clean-up."""


RECOVERY_FIELDS = ("index", "gpu_recovery_action")


@dataclass(frozen=True, slots=True)
class Xid:
    """One complaint of the driver in the kernel's log."""

    bus: str
    number: int
    text: str


def read_recovery(host: HostReader) -> dict[int, str]:
    """What the driver wants done with each card, by index; empty where nvidia-smi does not know the field."""
    done = host.run(*query_command(RECOVERY_FIELDS))
    rows = (parse_row(line, RECOVERY_FIELDS) for line in done.out.splitlines() if done.code == 0)
    return {int(row.text("index")): row.text("gpu_recovery_action") for row in rows if row is not None}


def read_xids(host: HostReader) -> list[Xid]:
    """The driver's complaints since boot. Raises :class:`CannotLookError` where the log cannot be read."""
    done = host.run("journalctl", "--dmesg", "--boot", "--output=cat", "--no-pager", "--quiet", timeout_s=30)
    if done.code != 0:
        raise CannotLookError(f"journalctl: {done.first_error}", "run `appliance doctor` as root")
    if not done.out.strip():
        # A kernel that says nothing at all while it boots does not exist: the log is withheld or gone.
        raise CannotLookError("the kernel's log of this boot is empty", "run `appliance doctor` as root")
    return parse_xids(done.out)


def parse_xids(text: str) -> list[Xid]:
    """``NVRM: Xid (PCI:0000:41:00): 79, …``, oldest first."""
    pattern = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),?\s*(.*)")
    return [Xid(m[1].lower(), int(m[2]), m[3].strip()) for m in pattern.finditer(text)]


def judge_xids(xids: Sequence[Xid], recovery: Mapping[int, str]) -> Iterator[Finding]:
    """What the driver complained about since boot, and what it wants done."""
    numbers = {xid.number for xid in xids if xid.number in HARDWARE_XIDS}
    # It asks for a reset after any of them, so it is whose they all are.
    asked_by: FaultDomain = "external" if numbers and numbers <= MEMORY_XIDS else "generation"
    for index, action in recovery.items():
        if action not in {"None", "[N/A]", "N/A"}:
            yield fail(
                f"the driver asks for: {action}",
                meaning="The card has a fault that it does not leave by itself.",
                fix=f"systemctl stop 'appliance-engine-*'; nvidia-smi --gpu-reset -i {index}"
                if "Reset" in action
                else "reboot",
                subject=f"card {index}",
                fault_domain=asked_by,
            )
    counts = Counter(xid.number for xid in xids)
    last = {xid.number: xid for xid in xids}
    for number, times in sorted(counts.items()):
        said = f"XID {number}, {times} times; last at {last[number].bus}: {last[number].text[:60]}"
        if number in HARDWARE_XIDS:
            yield fail(
                said,
                meaning="A fault of the card, its memory or its slot: an engine's restart does not mend it.",
                fix="systemctl stop 'appliance-engine-*'; reboot; if it returns, have the card exchanged",
                subject=f"XID {number}",
                fault_domain="external" if number in MEMORY_XIDS else "generation",
            )
        elif number not in APPLICATION_XIDS:
            yield warn(
                said,
                meaning="The driver complained; one that repeats deserves a look.",
                fix="journalctl --dmesg --boot | grep Xid; NVIDIA's XID catalogue explains the number",
                subject=f"XID {number}",
            )
        else:
            yield ok(f"{said} (an engine's own fault)", subject=f"XID {number}")
    if not counts and all(action in {"None", "[N/A]", "N/A"} for action in recovery.values()):
        yield ok("none since boot")


@check(
    "xid",
    looks="the driver's complaints in the kernel's log since boot, and the recovery that it asks for",
    means="48, 62, 64, 74, 79, 95, 119, 120 are faults of the card or its slot; 13, 31, 43, 45 of a program.",
    fix="reset the card or `reboot`; have it exchanged if it returns",
    requires=cards_of_site,
    fault_domain="generation",
    exceptions="faults of the card's own memory (48, 64, 95), and the recovery asked for after nothing else",
)
def check_xid(context: CheckContext, _: tuple[Gpu, ...]) -> Iterator[Finding]:
    """The kernel's log, and what the driver wants done."""
    recovery = read_recovery(context.host)
    yield from judge_xids(read_xids(context.host), recovery)
