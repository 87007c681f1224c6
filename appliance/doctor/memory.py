"""Judges of memory and placement: huge pages, locked memory, the kernel's parameters, NUMA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.contract.machine import Cards, Memory
from appliance.contract.model import Gpu
from appliance.doctor.finding import Verdict, fail, ok, unknown, warn
from appliance.doctor.host import HostReader

TOO_MUCH_RESERVED = 0.5
"""Share of RAM above which reserved huge pages starve the page cache and pinned buffers (modules/memory.nix)."""

REBUILD = "nixos-rebuild boot --flake .#gpu && reboot"


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """What the kernel says about pages. ``None`` where it does not say."""

    reserved: int | None
    total_kib: int | None
    transparent: str | None
    max_map_count: int | None


@dataclass(frozen=True, slots=True)
class NumaPlacement:
    """Where an engine's process may run, and what it may lock. Limits in bytes, ``None`` for unlimited."""

    pid: int
    memlock: int | None
    cpus: frozenset[int]


def read_memory(host: HostReader) -> MemoryFacts:
    """Pages, as /proc and /sys have them."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", host.text("/proc/meminfo") or "", re.MULTILINE)
    mode = re.search(r"\[(\w+)]", host.text("/sys/kernel/mm/transparent_hugepage/enabled") or "")
    return MemoryFacts(
        host.number("/proc/sys/vm/nr_hugepages"),
        int(total[1]) if total else None,
        mode[1] if mode else None,
        host.number("/proc/sys/vm/max_map_count"),
    )


def judge_hugepages(expected: Memory, facts: MemoryFacts) -> Iterator[Verdict]:
    """As many as asked for and no more, the right mode, room for mappings."""
    if facts.reserved is None or facts.total_kib is None:
        yield unknown("the kernel does not say", "cat /proc/meminfo", "reserved")
    elif facts.reserved * 2048 > facts.total_kib * TOO_MUCH_RESERVED:
        yield fail(
            f"{facts.reserved / 512:.0f} GiB of {facts.total_kib / 2**20:.0f} GiB are reserved",
            "No engine on a card uses them; weights are read through the page cache, which has no room left.",
            f"sysctl vm.nr_hugepages={expected.hugepages}",
            "reserved",
        )
    elif facts.reserved != expected.hugepages:
        yield warn(
            f"{facts.reserved} pages of 2 MiB; the machine says {expected.hugepages}",
            "A kernel that has run for a while finds no whole pages any more."
            if facts.reserved < expected.hugepages
            else "This RAM is missing from the page cache.",
            f"sysctl vm.nr_hugepages={expected.hugepages}; if it stays, reboot",
            "reserved",
        )
    else:
        yield ok(f"{facts.reserved} pages of 2 MiB", "reserved")
    if facts.transparent is None:
        yield unknown("the kernel has none", "zgrep TRANSPARENT_HUGEPAGE /proc/config.gz", "transparent")
    elif facts.transparent != expected.transparent_hugepages:
        yield warn(
            f"{facts.transparent}; the machine says {expected.transparent_hugepages}",
            "llama.cpp gains about a tenth from madvise; always costs others memory and stalls.",
            f"echo {expected.transparent_hugepages} > /sys/kernel/mm/transparent_hugepage/enabled; {REBUILD}",
            "transparent",
        )
    else:
        yield ok(facts.transparent, "transparent")
    if facts.max_map_count is not None and facts.max_map_count < expected.max_map_count:
        yield warn(
            f"{facts.max_map_count}; the machine says {expected.max_map_count}",
            "Large checkpoints are mapped shard by shard; an engine may end with 'Cannot allocate memory'.",
            f"sysctl vm.max_map_count={expected.max_map_count}",
            "mappings",
        )
    elif facts.max_map_count is not None:
        yield ok(str(facts.max_map_count), "mappings")


def read_placement(host: HostReader, pid: int) -> NumaPlacement | None:
    """The limits and processors of ``pid``; ``None`` where it has ended."""
    limits, status = host.text(f"/proc/{pid}/limits"), host.text(f"/proc/{pid}/status")
    lock = re.search(r"^Max locked memory\s+(\w+)", limits or "", re.MULTILINE)
    cpus = re.search(r"^Cpus_allowed_list:\s+(\S+)", status or "", re.MULTILINE)
    if lock is None or cpus is None:
        return None
    return NumaPlacement(pid, None if lock[1] == "unlimited" else int(lock[1]), parse_cpus(cpus[1]))


def parse_cpus(text: str) -> frozenset[int]:
    """``0-3,8`` as numbers."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def judge_memlock(placements: Mapping[str, NumaPlacement | None]) -> Iterator[Verdict]:
    """Engines on cards may lock as much memory as they like: pinned host buffers need it."""
    if not placements:
        yield ok("no engine is loaded now")
    for name, placement in placements.items():
        subject = f"engine {name}"
        if placement is None:
            yield unknown("is not running, or not to be seen", "run `appliance doctor` as root", subject)
        elif placement.memlock is None:
            yield ok("unlimited", subject)
        else:
            yield fail(
                f"{placement.memlock // 1024} KiB",
                "Buffers that the cards read cannot be pinned: transfers are slow or fail.",
                f"its unit needs LimitMEMLOCK=infinity; systemctl restart appliance-engine-{name}",
                subject,
            )


def read_kernel_words(host: HostReader) -> list[str]:
    """What the running kernel was started with."""
    return (host.text("/proc/cmdline") or "").split()


def judge_kernel_words(
    expected: Sequence[str], words: Sequence[str], cards: Cards | None, hmm_off: str | None
) -> Iterator[Verdict]:
    """Every parameter of the machine is on the kernel's command line, and HMM is off where that was chosen."""
    missing = [word for word in expected if word not in words]
    if missing:
        yield fail(
            f"started without {', '.join(missing)}",
            "Links may drop under load, or cards hang at the first all-reduce: the running system is another one.",
            REBUILD,
        )
    else:
        yield ok(f"all {len(expected)} parameters" if expected else "none asked for")
    if (
        cards is not None
        and cards.peer_to_peer == "iommu-off"
        and hmm_off is not None
        and hmm_off not in {"1", "Y"}
    ):
        yield fail(
            "nvidia_uvm runs with HMM",
            "Cards may hang at the first all-reduce.",
            REBUILD,
            "uvm_disable_hmm",
        )


def read_nodes(
    host: HostReader, buses: Mapping[int, str]
) -> tuple[dict[int, int | None], dict[int, frozenset[int]]]:
    """The NUMA node of each card by its index, and the processors of each node."""
    of_card = {index: host.number(f"/sys/bus/pci/devices/{bus}/numa_node") for index, bus in buses.items()}
    of_node = {
        int(name[4:]): parse_cpus(host.text(f"/sys/devices/system/node/{name}/cpulist") or "")
        for name in host.folder("/sys/devices/system/node")
        if re.fullmatch(r"node\d+", name)
    }
    return of_card, of_node


def judge_nodes(
    expected: Sequence[Gpu], of_card: Mapping[int, int | None], of_node: Mapping[int, frozenset[int]]
) -> Iterator[Verdict]:
    """Each card sits on the node that the site says."""
    for gpu in expected:
        node, subject = of_card.get(gpu.index), f"card {gpu.index}"
        if node is None:
            continue  # `cards` says that it is missing
        if node < 0:
            level = warn if len(of_node) > 1 else None
            if level is None:
                yield ok("one node", subject)
            else:
                yield level(
                    f"its slot names no node, of {len(of_node)}",
                    "Engines cannot be placed beside their card.",
                    "look for NUMA or NPS settings in the firmware",
                    subject,
                )
        elif gpu.numa_node is None and len(of_node) > 1:
            yield warn(
                f"node {node} of {len(of_node)}; the site names none",
                "Engines run on any processor; tensor parallelism and offload cross the sockets.",
                f"set numa_node = {node} for card {gpu.index} in appliance.settings.hosts",
                subject,
            )
        elif gpu.numa_node is not None and gpu.numa_node != node:
            yield warn(
                f"node {node}; the site says {gpu.numa_node}",
                "Engines are kept on the wrong side of the machine: each transfer crosses the sockets.",
                f"set numa_node = {node} for card {gpu.index} in appliance.settings.hosts",
                subject,
            )
        else:
            yield ok(f"node {node} of {len(of_node)}", subject)


def judge_placement(
    node_of_engine: Mapping[str, int],
    placements: Mapping[str, NumaPlacement | None],
    of_node: Mapping[int, frozenset[int]],
) -> Iterator[Verdict]:
    """Engines that are pinned run on their node's processors only."""
    for name, node in node_of_engine.items():
        placement, subject = placements.get(name), f"engine {name}"
        if placement is None:
            continue  # `memlock` and `engines` say so
        if placement.cpus <= of_node.get(node, frozenset()):
            yield ok(f"on node {node}", subject)
        else:
            yield warn(
                f"may run on processors outside node {node}",
                "Its threads and memory may be on the other socket than its card.",
                f"systemctl restart appliance-engine-{name}",
                subject,
            )
