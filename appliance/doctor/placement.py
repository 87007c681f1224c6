"""Reads the processors and the locked-memory limit of a process."""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.doctor.host import HostReader


@dataclass(frozen=True, slots=True)
class NumaPlacement:
    """The processors on which an engine may run, and its limit of locked memory in bytes, ``None`` for none."""

    pid: int
    memlock: int | None
    cpus: frozenset[int]


def read_placement(host: HostReader, pid: int) -> NumaPlacement | None:
    """Read limits and processors of ``pid``; ``None`` if it has ended."""
    limits, status = host.text(f"/proc/{pid}/limits"), host.text(f"/proc/{pid}/status")
    lock = re.search(r"^Max locked memory\s+(\w+)", limits or "", re.MULTILINE)
    cpus = re.search(r"^Cpus_allowed_list:\s+(\S+)", status or "", re.MULTILINE)
    if lock is None or cpus is None:
        return None
    return NumaPlacement(pid, None if lock[1] == "unlimited" else int(lock[1]), parse_cpus(cpus[1]))


def parse_cpus(text: str) -> frozenset[int]:
    """Parse a list such as ``0-3,8`` into numbers."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)
