"""Rules for an engine over several hosts (``nodes``).

Pure. :func:`appliance.contract.rules.violations` includes them.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.contract.model import Engine, Site
from appliance.contract.violation import Violation, suggest

RANK_FLAGS = ("distributed-executor-backend", "data-parallel-size", "data-parallel-backend")
"""Flags of vLLM that contradict ``nodes``."""


def watch_port(engine: Engine) -> int:
    """Return the port of the first host at which the watchers of the ranks meet."""
    return engine.master_port + 1


def across_hosts(site: Site) -> Iterator[Violation]:
    """Yield the violations of all engines that span hosts, and of keys that only they may have."""
    for name, engine in site.engines.items():
        where = f"engines.{name}"
        if engine.spans_hosts:
            yield from _kind(where, engine)
            yield from _hosts(site, where, engine)
            yield from _cards(site, where, engine)
        elif engine.distributed != "native":
            yield Violation(
                f"{where}.distributed", "concerns an engine over several hosts", "remove it, or set nodes"
            )
        if engine.pipeline_parallel > 1 and engine.kind not in ("vllm", "mock"):
            yield Violation(f"{where}.pipeline_parallel", f"{engine.kind} has no such layout", "remove it")
        if engine.pipeline_parallel > 1 and engine.device == "cpu":
            what = "vLLM on the CPU ends at its first request with it"
            yield Violation(f"{where}.pipeline_parallel", what, "remove it, and raise tensor_parallel")
        if engine.pipeline_parallel > 1 and engine.options.get("speculative-config"):
            what = "is not possible with pipeline_parallel (vllm-project/vllm#50098)"
            yield Violation(f"{where}.options.speculative-config", what, "remove it")
    yield from _ports(site)


def _kind(where: str, engine: Engine) -> Iterator[Violation]:
    if engine.kind != "vllm":
        yield Violation(f"{where}.nodes", f"{engine.kind} computes on one host", 'remove it, or set kind = "vllm"')
    if engine.replicas > 1:
        yield Violation(
            f"{where}.replicas", "is more than 1 though nodes is set", "remove it: write an engine for each copy"
        )
    if engine.sleep:
        yield Violation(f"{where}.sleep", "reaches the first host only", "remove it: the engine is stopped instead")
    for flag in RANK_FLAGS:
        if flag in engine.options:
            yield Violation(f"{where}.options.{flag}", "contradicts nodes", "remove it")
    if engine.distributed == "ray" and engine.command is None:
        what = "is ray, and the locked environment of vLLM does not contain Ray"
        yield Violation(
            f"{where}.distributed", what, "set command to the Python of an environment with Ray, or remove it"
        )


def _hosts(site: Site, where: str, engine: Engine) -> Iterator[Violation]:
    nodes = engine.nodes
    if len(nodes) == 1:
        yield Violation(f"{where}.nodes", "names one host", "name two or more, or remove it")
    for node in dict.fromkeys(nodes):
        if node not in site.hosts:
            yield Violation(f"{where}.nodes", f"host {node!r} does not exist", suggest(node, list(site.hosts)))
        elif site.hosts[node].link is None:
            what = f"is missing, and {where} spans it"
            yield Violation(
                f"hosts.{node}.link", what, 'add it, such as link = { address = "10.88.0.1", interface = "lan0" }'
            )
    for node in sorted({node for node in nodes if nodes.count(node) > 1}):
        yield Violation(f"{where}.nodes", f"names {node} twice", "name each host once")
    if engine.host != nodes[0]:
        yield Violation(
            f"{where}.host", f"is {engine.host}, and nodes begins with {nodes[0]}", f'set host = "{nodes[0]}"'
        )
    links = [link for node in dict.fromkeys(nodes) if node in site.hosts and (link := site.hosts[node].link)]
    addresses = [link.address for link in links]
    for address in sorted({one for one in addresses if addresses.count(one) > 1}):
        yield Violation(
            f"{where}.nodes", f"two of its hosts have the link address {address}", "give each host its own"
        )


def _cards(site: Site, where: str, engine: Engine) -> Iterator[Violation]:
    cards, hosts = engine.cards_per_replica, len(engine.nodes)
    if cards % hosts:
        what = f"tensor_parallel {engine.tensor_parallel} x pipeline_parallel {engine.pipeline_parallel} is {cards}"
        yield Violation(
            where, f"{what}, which {hosts} hosts cannot share equally", f"make it a multiple of {hosts}"
        )
        return
    if engine.device == "cpu":
        if engine.gpus:
            yield Violation(f"{where}.gpus", "names cards though device is cpu", "remove it")
        return
    if len(engine.gpus) != cards:
        what = f"names {len(engine.gpus)} cards; tensor_parallel x pipeline_parallel over all nodes is {cards}"
        yield Violation(f"{where}.gpus", what, f"list {cards // hosts} indices for each node")
        return
    for node in dict.fromkeys(engine.nodes):
        used = engine.cards_on(node)
        have = [gpu.index for gpu in site.hosts[node].gpus] if node in site.hosts else list(used)
        for index in used:
            if index not in have:
                fix = f"it has: {', '.join(map(str, have)) or 'none'}"
                yield Violation(f"{where}.gpus", f"host {node} has no card {index}", fix)
        if len(set(used)) != len(used):
            yield Violation(f"{where}.gpus", f"names a card of {node} twice", "name each card once")


def _ports(site: Site) -> Iterator[Violation]:
    """The ports of the first host are its own: other engines and the gateway may not have them."""
    taken: dict[tuple[str, int], str] = {
        (engine.host, port): f"engines.{name}"
        for name, engine in site.engines.items()
        if engine.is_started
        for port in engine.ports
    }
    for name, engine in site.engines.items():
        if not engine.spans_hosts:
            continue
        for port in (engine.master_port, watch_port(engine)):
            where = f"engines.{name}.master_port"
            other = "gateway" if port == site.gateway.port else taken.get((engine.host, port))
            if port > 65535:
                yield Violation(where, f"the watchers would need port {port}", "set it to 65534 or lower")
            elif other is not None:
                yield Violation(
                    where, f"port {port} is already used by {other}", "choose two free ports, such as 29503"
                )
                break
            taken[engine.host, port] = f"engines.{name}"
