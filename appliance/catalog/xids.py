"""XID errors of NVIDIA's driver: what each one means for the card, and the driver's lines in the kernel's log.

Sources: NVIDIA's XID catalogue and the alert rules of nvidia_gpu_exporter. The catalogue has no column for
workstation cards. Xid 8 differs from it: on them it is the halt of the GPU's own processor
(https://github.com/NVIDIA/open-gpu-kernel-modules/issues/1159).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class XidClass(StrEnum):
    """The effect of an error on the card."""

    PROGRAM = "program"
    """An error of a program, or its end: the engine's unit restarts itself."""
    RESTART = "restart"
    """A contained memory error: the engine has to restart."""
    RESET = "reset"
    """The card does not compute until it is reset: its engines have to stop."""
    LOST = "lost"
    """The card has left the bus: only a reboot may help."""
    REPLACE = "replace"
    """The memory has no spare rows left."""
    PLUG = "plug"
    """The auxiliary power of the card is missing."""
    VERDICT = "verdict"
    """The driver's own verdict, in words."""
    COUNT = "count"
    """An event that needs no action by itself."""
    OTHER = "other"
    """NVLink, a coherent processor, or a number that this table lacks: report the text."""


XID_CLASSES: dict[int, XidClass] = {
    **dict.fromkeys((13, 31, 32, 43, 45, 69), XidClass.PROGRAM),
    94: XidClass.RESTART,
    **dict.fromkeys((8, 46, 48, 62, 95, 109, 110, 119, 120, 140, 143, 156, 158), XidClass.RESET),
    79: XidClass.LOST,
    64: XidClass.REPLACE,
    54: XidClass.PLUG,
    154: XidClass.VERDICT,
    **dict.fromkeys((63, 92, 160, 161, 168, 171, 172), XidClass.COUNT),
}
"""The class of each known error; :func:`xid_class` has one for all."""

APPLICATION_XIDS = frozenset(number for number, one in XID_CLASSES.items() if one is XidClass.PROGRAM)
"""Errors of a program, or its end: illegal access, page fault, stopped channel, clean-up."""

HARDWARE_XIDS = frozenset(
    {74} | {n for n, one in XID_CLASSES.items() if one in (XidClass.RESET, XidClass.LOST, XidClass.REPLACE)}
)
"""Errors that a restart of the engine does not fix: memory, off the bus, GSP, and NVLink (74)."""

MEMORY_XIDS = frozenset({48, 64, 95})
"""Those of them that are errors of the card's own memory, which no driver and no parameter causes. A driver, its
GSP firmware or a parameter of the kernel can cause the others, as well as a card, a slot or a cable."""


class Recovery(StrEnum):
    """The recovery that the driver requests for a card."""

    NONE = "none"
    RESET = "reset"
    REBOOT = "reboot"


@dataclass(frozen=True, slots=True)
class Xid:
    """One error of the driver in the kernel's log; ``bus`` as in the log, in lower case."""

    bus: str
    number: int
    text: str

    @property
    def xid_class(self) -> XidClass:
        """Its effect on the card."""
        return XID_CLASSES.get(self.number, XidClass.OTHER)

    @property
    def verdict(self) -> Recovery:
        """The recovery that it requests, if it is a verdict of the driver."""
        return recovery_of(self.text.rpartition(" to ")[2]) if self.xid_class is XidClass.VERDICT else Recovery.NONE


_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),?\s*(.*)")


def parse_xids(text: str) -> list[Xid]:
    """Parse lines like ``NVRM: Xid (PCI:0000:41:00): 79, …``, oldest first."""
    return [Xid(m[1].lower(), int(m[2]), m[3].strip()) for m in _XID.finditer(text)]


def recovery_of(words: str) -> Recovery:
    """Return the recovery in the driver's words: of an Xid 154, or of nvidia-smi's ``gpu_recovery_action``.

    Example::

        recovery_of("0x2 (Node Reboot Required)") == recovery_of("Reboot") == Recovery.REBOOT
    """
    lower = words.lower()
    if "reboot" in lower:
        return Recovery.REBOOT
    return Recovery.RESET if "reset" in lower or "drain" in lower else Recovery.NONE


def same_slot(bus: str, other: str) -> bool:
    """Return whether two addresses name the same slot, in any of the forms of the log, of nvidia-smi and of sysfs.

    Example::

        same_slot("0000:41:00", "00000000:41:00.0")
    """
    return _slot(bus) == _slot(other)


def _slot(bus: str) -> tuple[int, ...]:
    parts = bus.lower().partition(".")[0].split(":")
    try:
        domain, number, device = (int(part, 16) for part in ["0", *parts][-3:])
    except ValueError:
        return ()
    return domain & 0xFFFF, number, device
