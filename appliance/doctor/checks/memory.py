"""Huge pages, mappings and locked memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from appliance.contract.machine import Memory
from appliance.doctor.check import (
    check,
    engines_on_cards,
    machine_part,
)
from appliance.doctor.checks.kernel import REBUILD
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown, warn
from appliance.doctor.host import HostReader
from appliance.doctor.placement import NumaPlacement
from appliance.engines.argv import EngineReplica

TOO_MUCH_RESERVED = 0.5
"""Share of RAM above which reserved huge pages starve the page cache and pinned buffers (modules/memory.nix)."""


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """The kernel's settings of pages; ``None`` if it does not report one."""

    reserved: int | None
    total_kib: int | None
    transparent: str | None
    max_map_count: int | None


def read_memory(host: HostReader) -> MemoryFacts:
    """Read /proc and /sys."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", host.text("/proc/meminfo") or "", re.MULTILINE)
    mode = re.search(r"\[(\w+)]", host.text("/sys/kernel/mm/transparent_hugepage/enabled") or "")
    return MemoryFacts(
        reserved=host.number("/proc/sys/vm/nr_hugepages"),
        total_kib=int(total[1]) if total else None,
        transparent=mode[1] if mode else None,
        max_map_count=host.number("/proc/sys/vm/max_map_count"),
    )


def judge_hugepages(expected: Memory, facts: MemoryFacts) -> Iterator[Finding]:
    """Judge the number of huge pages, the mode of transparent ones, and the limit of mappings."""
    if facts.reserved is None or facts.total_kib is None:
        yield unknown("the kernel does not report it", fix="cat /proc/meminfo", subject="reserved")
    elif facts.reserved * 2048 > facts.total_kib * TOO_MUCH_RESERVED:
        yield fail(
            f"{facts.reserved / 512:.0f} GiB of {facts.total_kib / 2**20:.0f} GiB are reserved",
            meaning=(
                "No engine on a card uses them. Weights are read through the page cache, which has no room left."
            ),
            fix=f"sysctl vm.nr_hugepages={expected.hugepages}",
            subject="reserved",
        )
    elif facts.reserved != expected.hugepages:
        yield warn(
            f"{facts.reserved} pages of 2 MiB; the machine's description has {expected.hugepages}",
            meaning="After some time the kernel finds no contiguous memory for them."
            if facts.reserved < expected.hugepages
            else "This RAM is missing from the page cache.",
            fix=f"sysctl vm.nr_hugepages={expected.hugepages}; reboot if it does not change",
            subject="reserved",
        )
    else:
        yield ok(f"{facts.reserved} pages of 2 MiB", subject="reserved")
    if facts.transparent is None:
        yield unknown(
            "the kernel does not support them",
            fix="zgrep TRANSPARENT_HUGEPAGE /proc/config.gz",
            subject="transparent",
        )
    elif facts.transparent != expected.transparent_hugepages:
        yield warn(
            f"{facts.transparent}; the machine's description has {expected.transparent_hugepages}",
            meaning="llama.cpp gains about a tenth from madvise; always costs others memory and stalls.",
            fix=f"echo {expected.transparent_hugepages} > /sys/kernel/mm/transparent_hugepage/enabled; {REBUILD}",
            subject="transparent",
        )
    else:
        yield ok(facts.transparent, subject="transparent")
    if facts.max_map_count is not None and facts.max_map_count < expected.max_map_count:
        yield warn(
            f"{facts.max_map_count}; the machine's description has {expected.max_map_count}",
            meaning="Large checkpoints are mapped shard by shard; an engine may end with 'Cannot allocate memory'.",
            fix=f"sysctl vm.max_map_count={expected.max_map_count}",
            subject="mappings",
        )
    elif facts.max_map_count is not None:
        yield ok(str(facts.max_map_count), subject="mappings")


@check(
    "hugepages",
    looks="reserved huge pages, transparent huge pages, vm.max_map_count",
    means="Engines on cards use no huge pages; half of the RAM reserved starves page cache and pinned buffers.",
    fix="`sysctl vm.nr_hugepages=…`",
    requires=machine_part(lambda machine: machine.memory, "its memory is not described"),
    fault_domain="generation",
)
def check_hugepages(context: CheckContext, expected: Memory) -> Iterator[Finding]:
    """Check huge pages and mappings."""
    yield from judge_hugepages(expected, read_memory(context.host))


def judge_memlock(placements: Mapping[str, NumaPlacement | None]) -> Iterator[Finding]:
    """Judge whether engines on cards may lock unlimited memory, which pinned host buffers need."""
    if not placements:
        yield ok("no engine is loaded now")
    for name, placement in placements.items():
        subject = f"engine {name}"
        if placement is None:
            yield unknown("does not run, or is not visible", fix="run `appliance doctor` as root", subject=subject)
        elif placement.memlock is None:
            yield ok("unlimited", subject=subject)
        else:
            yield fail(
                f"{placement.memlock // 1024} KiB",
                meaning="Buffers that the cards read cannot be pinned: transfers are slow or fail.",
                fix=f"its unit needs LimitMEMLOCK=infinity; systemctl restart appliance-engine-{name}",
                subject=subject,
            )


@check(
    "memlock",
    looks="the locked-memory limit of each running engine",
    means="Host buffers cannot be pinned: transfers are slow or fail.",
    fix="`LimitMEMLOCK=infinity` in its unit",
    requires=engines_on_cards,
    fault_domain="generation",
)
def check_memlock(context: CheckContext, _: list[EngineReplica]) -> Iterator[Finding]:
    """Check the locked memory of engines."""
    yield from judge_memlock(context.placements)
