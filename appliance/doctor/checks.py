"""Each check: where it applies, and how it is made. They read first, then judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from appliance.contract.machine import Edge, Firewall, Machine, Memory, Tunnel, Weights
from appliance.doctor import (
    certificate,
    clock,
    firewall,
    gpu,
    memory,
    nvidia,
    pins,
    ports,
    service,
    storage,
    tunnel,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Verdict, fail, ok, unknown, warn
from appliance.doctor.host import CannotLookError, TimedOutError
from appliance.planner.fit import fit

# Where a check applies.


def has_cards(scene: CheckContext) -> str:
    """Nothing, where this host has cards; else why the check does not concern it. So do all the next."""
    return "" if scene.gpus or scene.on_cards else "there are no cards on this host"


def has_engines_on_cards(scene: CheckContext) -> str:
    """Engines that compute on cards."""
    return "" if scene.on_cards else "no engine of this host runs on a card"


def has_site(scene: CheckContext) -> str:
    """A site."""
    return "" if scene.site is not None else "no site is described on this host"


def has_gateway(scene: CheckContext) -> str:
    """A gateway on this host."""
    return has_site(scene) or ("" if scene.has_gateway else "the gateway runs on another host")


def needs(part: str, what: str) -> Callable[[CheckContext], str]:
    """A part of the machine's description; ``what`` is said where it is absent."""

    def applies(scene: CheckContext) -> str:
        if scene.machine is None:
            return "no machine is described (--machine)"
        return "" if getattr(scene.machine, part) else what

    return applies


def has_sockets(scene: CheckContext) -> str:
    """A description to hold sockets against."""
    return "" if scene.site is not None or scene.machine is not None else "nothing is described"


def always(_: CheckContext) -> str:
    """Every host."""
    return ""


def _machine(scene: CheckContext) -> Machine:
    assert scene.machine is not None  # noqa: S101 - `applies` asked first
    return scene.machine


# The checks themselves: read, then judge.


def check_pins(scene: CheckContext) -> Iterator[Verdict]:
    """Kernel, driver and environment of a GPU host; nginx of an edge; the booted system of both."""
    machine = _machine(scene)
    if machine.cards is not None:
        command = next((r.engine.command for r in scene.on_cards if r.engine.kind == "vllm"), None)
        found = pins.read_versions(scene.host, command)
        yield from pins.judge_versions(machine.cards.pins, found, environment=command is not None)
    yield from pins.judge_booted(pins.read_booted(scene.host))
    if machine.edge is not None:
        version = pins.read_nginx(scene.host, scene.listeners, machine.edge.https_port)
        yield pins.judge_nginx(machine.edge, version)


def has_pins(scene: CheckContext) -> str:
    """Something pinned."""
    if scene.machine is None:
        return "no machine is described (--machine)"
    return "" if scene.machine.cards or scene.machine.edge else "nothing is pinned on this host"


def check_driver(scene: CheckContext) -> Iterator[Verdict]:
    """The kernel module and whether programs agree with it; a driver that hangs is a failure."""
    module = nvidia.read_module(scene.host)
    if module is None:
        yield from gpu.judge_driver(None, nvidia.Userland(()))
        return
    try:
        yield from gpu.judge_driver(module, scene.userland)
    except TimedOutError as error:
        yield fail(str(error), "The driver hangs: engines do too.", "reboot", "userland", "driver-mismatch")


def check_cards(scene: CheckContext) -> Iterator[Verdict]:
    """Each card of the site."""
    yield from gpu.judge_cards(scene.gpus, scene.cards)


def check_power(scene: CheckContext) -> Iterator[Verdict]:
    """Power limits."""
    yield from gpu.judge_power(scene.gpus, scene.cards)


def check_throttle(scene: CheckContext) -> Iterator[Verdict]:
    """What holds cards back."""
    yield from gpu.judge_throttle(scene.cards)


def check_memlock(scene: CheckContext) -> Iterator[Verdict]:
    """Locked memory of engines."""
    yield from memory.judge_memlock(scene.placements)


def check_xid(scene: CheckContext) -> Iterator[Verdict]:
    """The kernel's log, and what the driver wants done."""
    recovery = nvidia.read_recovery(scene.host)
    yield from gpu.judge_xids(nvidia.read_xids(scene.host), recovery)


def check_kernel(scene: CheckContext) -> Iterator[Verdict]:
    """The command line of the running kernel."""
    machine = _machine(scene)
    hmm_off = (scene.host.text("/sys/module/nvidia_uvm/parameters/uvm_disable_hmm") or "").strip() or None
    words = memory.read_kernel_words(scene.host)
    yield from memory.judge_kernel_words(machine.kernel_parameters, words, machine.cards, hmm_off)


def check_hugepages(scene: CheckContext) -> Iterator[Verdict]:
    """Huge pages and mappings."""
    part = _machine(scene).memory
    assert isinstance(part, Memory)  # noqa: S101 - `applies` asked first
    yield from memory.judge_hugepages(part, memory.read_memory(scene.host))


def check_numa(scene: CheckContext) -> Iterator[Verdict]:
    """The nodes of cards, and of engines that are kept on theirs."""
    of_card, of_node = memory.read_nodes(scene.host, {card.index: card.bus for card in scene.cards})
    yield from memory.judge_nodes(scene.gpus, of_card, of_node)
    if scene.machine is not None and scene.machine.cards is not None and scene.machine.cards.numa_pinned:
        node_of = {gpu.index: gpu.numa_node for gpu in scene.gpus}
        pinned = {}
        for replica in scene.on_cards:
            nodes = {node_of.get(index) for index in replica.engine.cards(replica.index)}
            node = nodes.pop() if len(nodes) == 1 else None
            if node is not None:
                pinned[replica.name] = node
        yield from memory.judge_placement(pinned, scene.placements, of_node)


def check_clock(scene: CheckContext) -> Iterator[Verdict]:
    """The kernel's clock."""
    yield from clock.judge_clock(clock.read_clock(scene.host), scene.now)


def check_disk(scene: CheckContext) -> Iterator[Verdict]:
    """The file systems that fill."""
    folders = [scene.host.path("/")]
    if scene.site is not None:
        folders.append(scene.data)
    if scene.machine is not None and scene.machine.weights is not None:
        folders.append(scene.host.path(scene.machine.weights.store))
    if scene.host.path("/boot").is_dir():
        folders.append(scene.host.path("/boot"))
    yield from storage.judge_disks([storage.read_disk(folder) for folder in folders])


def check_models(scene: CheckContext) -> Iterator[Verdict]:
    """Folders of models, and models.lock."""
    if scene.site is not None:
        used = {r.engine.model for r in scene.replicas if r.engine.kind != "mock"}
        models = {name: model for name, model in scene.site.models.items() if name in used}
        yield from storage.judge_folders(scene.host, models, scene.base)
    weights = scene.machine.weights if scene.machine is not None else None
    if isinstance(weights, Weights):
        yield _weights(scene, weights)


VERIFY_UNIT = "appliance-models-verify.service"


def _weights(scene: CheckContext, weights: Weights) -> Verdict:
    if weights.lock is None:
        return warn(
            "there is no models.lock",
            "Weights are taken as they lie on the disk: bit rot and half-written files go unnoticed.",
            f"appliance models lock --store {weights.store} > models.lock; set appliance.models.lock",
            "lock",
        )
    try:
        state = service.read_units(scene.host, [VERIFY_UNIT])[0].active
    except CannotLookError:
        state = ""  # then nothing vouches for the hashes, and the verdict says so
    facts = storage.read_weights(scene.host, weights.store, weights.lock, state, hashes=scene.hashes)
    return storage.judge_weights(facts)


def has_models(scene: CheckContext) -> str:
    """Models that lie in folders, or a lock for them."""
    has_weights = scene.machine is not None and scene.machine.weights is not None
    folders = scene.site is not None and any(scene.site.models[r.engine.model].is_folder for r in scene.replicas)
    return "" if folders or has_weights else "no folder and no models.lock to check against"


def check_database(scene: CheckContext) -> Iterator[Verdict]:
    """Keys and usage."""
    assert scene.site is not None  # noqa: S101 - `applies` asked first
    yield storage.judge_database(storage.read_database(scene.data, scene.now))


def has_database(scene: CheckContext) -> str:
    """Keys and usage in SQLite."""
    if scene.site is not None and scene.site.gateway.database_url is not None:
        return "keys and usage are in PostgreSQL; the gateway's own check speaks for it"
    return has_gateway(scene)


def check_firewall(scene: CheckContext) -> Iterator[Verdict]:
    """The loaded ruleset."""
    expected = _machine(scene).firewall
    assert isinstance(expected, Firewall)  # noqa: S101 - `applies` asked first
    ruleset = firewall.read_ruleset(scene.host, expected.family, expected.table)
    yield from firewall.judge_firewall(expected, ruleset)


def check_tunnel(scene: CheckContext) -> Iterator[Verdict]:
    """Key, interface, peers."""
    expected = _machine(scene).tunnel
    assert isinstance(expected, Tunnel)  # noqa: S101 - `applies` asked first
    state = tunnel.read_state(scene.host, expected.interface)
    try:
        key = tunnel.read_key_file(scene.host, expected.private_key_file)
    except CannotLookError as error:
        # The smoke test may not see the key's folder; the handshake it may.
        yield unknown(str(error), error.fix, "private key")
    else:
        yield from tunnel.judge_key(expected, key, state)
    yield from tunnel.judge_tunnel(expected, state, scene.now)


def check_ports(scene: CheckContext) -> Iterator[Verdict]:
    """Every listening socket."""
    of_engines = {replica.port: replica.name for replica in scene.replicas}
    known = set(of_engines)
    yield from ports.judge_engines(of_engines, scene.listeners)
    if scene.site is not None and scene.has_gateway:
        gateway = scene.site.gateway
        known.add(gateway.port)
        yield from ports.judge_gateway(gateway.host, gateway.port, scene.listeners)
    if scene.machine is not None:
        yield from ports.judge_others(scene.machine, known, scene.listeners, _tunnel_port(scene))


def _tunnel_port(scene: CheckContext) -> int | None:
    expected = _machine(scene).tunnel
    if expected is None:
        return None
    try:
        state = tunnel.read_state(scene.host, expected.interface)
    except CannotLookError:
        return None  # `tunnel` says so; here its port then counts as a stranger's
    return state.listen_port if state is not None else None


def check_units(scene: CheckContext) -> Iterator[Verdict]:
    """systemd's word on the units."""
    yield from service.judge_units(service.read_units(scene.host, _machine(scene).units))


def check_fit(scene: CheckContext) -> Iterator[Verdict]:
    """The planner's word on the site."""
    assert scene.site is not None  # noqa: S101 - `applies` asked first
    broken = fit(scene.site)
    for violation in broken:
        yield fail(
            violation.what, "The engine will not start, or runs out of memory.", violation.fix, violation.where
        )
    if not broken:
        yield ok("every engine fits its cards and RAM")


def check_gateway(scene: CheckContext) -> Iterator[Verdict]:
    """The gateway of this host."""
    assert scene.site is not None  # noqa: S101 - `applies` asked first
    yield service.judge_gateway(f"{scene.site.gateway.host}:{scene.site.gateway.port}", scene.ready)


def check_engines(scene: CheckContext) -> Iterator[Verdict]:
    """Each replica, by the gateway's canary."""
    if scene.ready.error:
        raise CannotLookError("the gateway does not answer, so nobody asks them", "appliance doctor --only gateway")
    yield from service.judge_engines(scene.ready)


def _edge_of(scene: CheckContext) -> Edge:
    edge = _machine(scene).edge
    assert isinstance(edge, Edge)  # noqa: S101 - `applies` asked first
    return edge


def check_gateways(scene: CheckContext) -> Iterator[Verdict]:
    """Each gateway behind this edge."""
    answers = {}
    for address in _edge_of(scene).gateways:
        name, _, port = address.rpartition(":")
        answers[address] = service.read_ready(name, int(port))
    yield from service.judge_gateways(answers)


def check_certificate(scene: CheckContext) -> Iterator[Verdict]:
    """The file, and what nginx serves."""
    edge = _edge_of(scene)
    served = certificate.read_served(edge.domain, edge.https_port)
    found = certificate.read_certificate(scene.host, edge.certificate)
    yield from certificate.judge_certificate(edge, found, served, scene.now)


def check_front(scene: CheckContext) -> Iterator[Verdict]:
    """One request through the whole way in."""
    edge = _edge_of(scene)
    yield certificate.judge_front(edge, certificate.read_front(edge.domain, edge.https_port))
