"""The NUMA nodes of cards and of the engines that are pinned to them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from appliance.contract.model import Gpu
from appliance.doctor.check import (
    cards_of_site,
    check,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, ok, warn
from appliance.doctor.host import HostReader
from appliance.doctor.placement import NumaPlacement, parse_cpus


def read_nodes(
    host: HostReader, buses: Mapping[int, str]
) -> tuple[dict[int, int | None], dict[int, frozenset[int]]]:
    """Read the NUMA node of each card by its index, and the processors of each node."""
    of_card = {index: host.number(f"/sys/bus/pci/devices/{bus}/numa_node") for index, bus in buses.items()}
    of_node = {
        int(name[4:]): parse_cpus(host.text(f"/sys/devices/system/node/{name}/cpulist") or "")
        for name in host.folder("/sys/devices/system/node")
        if re.fullmatch(r"node\d+", name)
    }
    return of_card, of_node


def judge_nodes(
    expected: Sequence[Gpu], of_card: Mapping[int, int | None], of_node: Mapping[int, frozenset[int]]
) -> Iterator[Finding]:
    """Judge whether each card is on the node of the site."""
    for gpu in expected:
        node, subject = of_card.get(gpu.index), f"card {gpu.index}"
        if node is None:
            continue  # `cards` reports that it is missing
        if node < 0:
            if len(of_node) <= 1:
                yield ok("one node", subject=subject)
            else:
                yield warn(
                    f"its slot has no node, of {len(of_node)}",
                    meaning="Engines cannot be placed near their card.",
                    fix="check the NUMA or NPS settings in the firmware",
                    subject=subject,
                )
        elif gpu.numa_node is None and len(of_node) > 1:
            yield warn(
                f"node {node} of {len(of_node)}; the site has none",
                meaning="Engines run on any processor; tensor parallelism and offload cross the sockets.",
                fix=f"set numa_node = {node} for card {gpu.index} in appliance.settings.hosts",
                subject=subject,
            )
        elif gpu.numa_node is not None and gpu.numa_node != node:
            yield warn(
                f"node {node}; the site has {gpu.numa_node}",
                meaning="Engines are pinned to the other socket: each transfer crosses the sockets.",
                fix=f"set numa_node = {node} for card {gpu.index} in appliance.settings.hosts",
                subject=subject,
            )
        else:
            yield ok(f"node {node} of {len(of_node)}", subject=subject)


def judge_placement(
    node_of_engine: Mapping[str, int],
    placements: Mapping[str, NumaPlacement | None],
    of_node: Mapping[int, frozenset[int]],
) -> Iterator[Finding]:
    """Judge whether pinned engines run on their node's processors only."""
    for name, node in node_of_engine.items():
        placement, subject = placements.get(name), f"engine {name}"
        if placement is None:
            continue  # `memlock` and `engines` report it
        if placement.cpus <= of_node.get(node, frozenset()):
            yield ok(f"on node {node}", subject=subject)
        else:
            yield warn(
                f"may run on processors outside node {node}",
                meaning="Its threads and memory may be on another socket than its card.",
                fix=f"systemctl restart appliance-engine-{name}",
                subject=subject,
            )


@check(
    "numa",
    looks="the node of each card's slot against the site, and where pinned engines may run",
    means="Transfers cross the sockets. It matters for offload, tensor parallelism and llama.cpp.",
    fix="set `numa_node` in the site",
    requires=cards_of_site,
    fault_domain="generation",
)
def check_numa(context: CheckContext, expected: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Check the nodes of cards, and of engines that are pinned to them."""
    of_card, of_node = read_nodes(context.host, {card.index: card.bus for card in context.cards})
    yield from judge_nodes(expected, of_card, of_node)
    if context.machine is not None and context.machine.cards is not None and context.machine.cards.numa_pinned:
        node_of = {gpu.index: gpu.numa_node for gpu in expected}
        pinned = {}
        for replica in context.on_cards:
            nodes = {node_of.get(index) for index in replica.engine.cards(replica.index)}
            node = nodes.pop() if len(nodes) == 1 else None
            if node is not None:
                pinned[replica.name] = node
        yield from judge_placement(pinned, context.placements, of_node)
