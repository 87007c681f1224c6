"""Every check by name, in the order in which one would mend, and how they are made one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from appliance.contract.rules import suggest
from appliance.doctor import checks
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import DoctorReport, FaultDomain, Finding, Skipped, Verdict, unknown
from appliance.doctor.host import CannotLookError
from appliance.errors import UsageError


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``looks`` and ``mend`` are for docs/doctor.md and ``--list``.

    ``applies`` says why it does not concern a host, or nothing where it does. ``fault_domain`` is whose fault its
    failures are; ``otherwise`` says which of them are the other's, as their verdicts say. Only a generation's own
    fail its smoke test (docs/decisions/0011-fault-domains.md).
    """

    name: str
    looks: str
    means: str
    mend: str
    applies: Callable[[CheckContext], str]
    run: Callable[[CheckContext], Iterable[Verdict]]
    fault_domain: FaultDomain
    otherwise: str = ""


def examine(scene: CheckContext, only: Iterable[str] = ()) -> DoctorReport:
    """Make every check of this host, or those named.

    Raises :class:`UsageError` for a name that is none or does not concern this host.
    """
    wanted = tuple(dict.fromkeys(only))
    names = [check.name for check in CHECKS]
    for name in wanted:
        if name not in names:
            raise UsageError(f"--only {name}: there is no such check; {suggest(name, names)}")
    results: list[Finding] = []
    left_out: list[Skipped] = []
    for check in CHECKS:
        if wanted and check.name not in wanted:
            continue
        if why := check.applies(scene):
            left_out.append(Skipped(check.name, why))
        else:
            results += [_named(check, verdict) for verdict in _made(check, scene)]
    if wanted and not results:
        raise UsageError("; ".join(f"--only {one.name}: {one.why}" for one in left_out))
    return DoctorReport(scene.name, tuple(results), tuple(left_out))


def _made(check: Check, scene: CheckContext) -> Iterator[Verdict]:
    silent = True
    try:
        # Not all at once: what was found before it could look no further still counts.
        for verdict in check.run(scene):
            silent = False
            yield verdict
    except CannotLookError as error:
        yield unknown(str(error), error.fix)
    else:
        if silent:
            yield unknown("found nothing to look at", "is the description of this host complete? `appliance check`")


def _named(check: Check, v: Verdict) -> Finding:
    said = (_plain(v.seen), _plain(v.meaning), _plain(v.fix))
    return Finding(check.name, _plain(v.subject), v.level, *said, v.cause, v.fault_domain or check.fault_domain)


def _plain(text: str) -> str:
    """Without control characters: names of processes and words of the kernel's log are anybody's to choose."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


_NO_EDGE = checks.needs("edge", "this host is no edge")

CHECKS: tuple[Check, ...] = (
    Check(
        "pins",
        "kernel, driver, CUDA, Python, torch, vLLM against their pins; nginx on a VPS; a newer kernel",
        "What runs is the tested set, or a mixture nobody tested.",
        "`nixos-rebuild boot --flake .#gpu && reboot`",
        checks.has_pins,
        checks.check_pins,
        "generation",
    ),
    Check(
        "driver",
        "/proc/driver/nvidia/version and nvidia-smi: loaded, open, 580 or newer, the same for kernel and programs",
        "Without it no engine starts; after a driver update without a reboot none starts either.",
        "`reboot`",
        checks.has_cards,
        checks.check_driver,
        "generation",
    ),
    Check(
        "cards",
        "nvidia-smi: each card of the site is there, is that card, with its memory, whole PCIe link, persistence",
        "A missing card takes its engines along; a narrow link makes loading and tensor parallelism slow.",
        "look at the kernel's log, then at cable and slot",
        checks.has_cards,
        checks.check_cards,
        "generation",
    ),
    Check(
        "power",
        "the power limit of each card against `power_limit_w`",
        "Too high: heat, and less time on the UPS. Too low: slower prefill.",
        "`systemctl restart appliance-gpu-power`",
        checks.has_cards,
        checks.check_power,
        "generation",
    ),
    Check(
        "throttle",
        "whether heat or the power supply holds a card back now; its temperature",
        "The card runs at a fraction of its speed. Its own power limit at work is no fault.",
        "cool the room, clean filters, check power cables, lower `power_limit_w`",
        checks.has_cards,
        checks.check_throttle,
        "external",
    ),
    Check(
        "xid",
        "the driver's complaints in the kernel's log since boot, and the recovery that it asks for",
        "48, 62, 64, 74, 79, 95, 119, 120 are faults of the card or its slot; 13, 31, 43, 45 of a program.",
        "reset the card or `reboot`; have it exchanged if it returns",
        checks.has_cards,
        checks.check_xid,
        "generation",
        "faults of the card's own memory (48, 64, 95), and the recovery asked for after nothing else",
    ),
    Check(
        "kernel",
        "the parameters that the machine asks for, on the running kernel's command line",
        "Links that drop under load, or a hang at the first all-reduce.",
        "`nixos-rebuild boot --flake .#gpu && reboot`",
        checks.needs("kernel_parameters", "no kernel parameters are asked for"),
        checks.check_kernel,
        "generation",
    ),
    Check(
        "hugepages",
        "reserved huge pages, transparent huge pages, vm.max_map_count",
        "Engines on cards use no huge pages: half of the RAM reserved starves the page cache and pinned buffers.",
        "`sysctl vm.nr_hugepages=…`",
        checks.needs("memory", "its memory is not described"),
        checks.check_hugepages,
        "generation",
    ),
    Check(
        "memlock",
        "the locked-memory limit of each running engine",
        "Host buffers cannot be pinned: transfers are slow or fail.",
        "`LimitMEMLOCK=infinity` in its unit",
        checks.has_engines_on_cards,
        checks.check_memlock,
        "generation",
    ),
    Check(
        "numa",
        "the node of each card's slot against the site, and where pinned engines may run",
        "Transfers cross the sockets. It matters for offload, tensor parallelism and llama.cpp.",
        "set `numa_node` in the site",
        checks.has_cards,
        checks.check_numa,
        "generation",
    ),
    Check(
        "clock",
        "the kernel's own word on who sets the clock, and whether it went back",
        "A clock that went back keeps the tunnel down and certificates invalid.",
        "`systemctl restart systemd-timesyncd`",
        checks.always,
        checks.check_clock,
        "external",
    ),
    Check(
        "disk",
        "room and inodes on the root, the gateway's, the models' and the boot file system",
        "Rows and new keys cannot be kept on a full disk. Warns below 10 %, fails below 3 %.",
        "`nix-collect-garbage -d`",
        checks.always,
        checks.check_disk,
        "external",
    ),
    Check(
        "models",
        "sizes of every file of models.lock, the hashes checked at boot, or now with `--hashes`; folders of models",
        "An engine refuses to start, or answers nonsense.",
        "fetch the model again",
        checks.has_models,
        checks.check_models,
        "generation",
    ),
    Check(
        "database",
        "the SQLite file of keys and usage: whole, of this version, with a live key; opened without a trace",
        "The gateway cannot know its users.",
        "restore the newest backup",
        checks.has_database,
        checks.check_database,
        "generation",
    ),
    Check(
        "firewall",
        "the loaded nftables ruleset: the table, its policies, and exactly the ports that the machine names",
        "Not loaded: every port that listens is open. Closed: clients and the tunnel stay outside.",
        "`systemctl restart nftables`",
        checks.needs("firewall", "no firewall is described"),
        checks.check_firewall,
        "generation",
    ),
    Check(
        "tunnel",
        "the WireGuard key's file, the interface, each peer's key, the age of its last handshake (180 s at most)",
        "Nothing passes between VPS and GPU host. A wrong key looks like silence.",
        "`systemctl restart wireguard-wg0`; compare both hosts' `wg show`",
        checks.needs("tunnel", "no tunnel is described"),
        checks.check_tunnel,
        "generation",
        "a silent other end, where the smoke test has evidence for it",
    ),
    Check(
        "ports",
        "every listening socket: engines on loopback, the gateway where it should be, nothing else beyond loopback",
        "An engine that others reach needs no key and can be stopped by anyone.",
        "remove `host` from the engine's options",
        checks.has_sockets,
        checks.check_ports,
        "generation",
    ),
    Check(
        "units",
        "systemd's state of every unit that has to be active",
        "A failed unit did not do its part: power limits, verification, the smoke test.",
        "`journalctl -u UNIT -b`",
        checks.needs("units", "no units are described"),
        checks.check_units,
        "generation",
    ),
    Check(
        "fit",
        "the planner's check that every engine fits its cards and RAM",
        "An engine ends with out-of-memory, at its start or when busy.",
        "what the planner says",
        checks.has_site,
        checks.check_fit,
        "generation",
    ),
    Check(
        "gateway",
        "whether this host's gateway answers `/ready`",
        "Nobody gets an answer.",
        "`systemctl status appliance-gateway`",
        checks.has_gateway,
        checks.check_gateway,
        "generation",
    ),
    Check(
        "engines",
        "whether each replica generated a token a moment ago",
        "Its requests go to another replica, or get 503.",
        "`journalctl -u appliance-engine-NAME`",
        checks.has_gateway,
        checks.check_engines,
        "generation",
    ),
    Check(
        "gateways",
        "from the VPS: whether each gateway answers through the tunnel",
        "Clients get 502 or 504.",
        "`appliance doctor --only tunnel`, here and there",
        _NO_EDGE,
        checks.check_gateways,
        "external",
    ),
    Check(
        "certificate",
        "the file: days left, names, issuer; what nginx serves; whether a client trusts it",
        "Every client gets a certificate error. Warns below 20 days, fails below 5; renewal is due at 30.",
        "`systemctl start acme-order-renew-DOMAIN`, `systemctl reload nginx`",
        _NO_EDGE,
        checks.check_certificate,
        "external",
        "one that nginx does not serve, or that is for another name",
    ),
    Check(
        "edge",
        "a request without a key through nginx and tunnel: the gateway's own 401 comes back",
        "The whole way in works, or not.",
        "what `tunnel`, `gateways` and `certificate` say",
        _NO_EDGE,
        checks.check_front,
        "generation",
        "502, 503 and 504: no gateway behind it answers",
    ),
)
