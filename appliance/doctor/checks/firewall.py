"""The loaded nftables ruleset: the table exists, drops by default, and accepts exactly the expected ports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from appliance.contract.machine import Firewall
from appliance.doctor.check import (
    check,
    machine_part,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown
from appliance.doctor.host import CannotLookError, HostReader

RELOAD = "systemctl restart nftables; journalctl -u nftables"


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain: its hook, and its policy for packets that no rule matches."""

    name: str
    hook: str
    policy: str


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The relevant parts of one table.

    ``opened`` has tuples of protocol, port, and interface or "". ``portless`` is the number of rules that accept
    every port, ``unfollowed`` that of rules with a jump, a map or a named set, which are not followed.
    """

    tables: tuple[str, ...]
    chains: tuple[Chain, ...]
    opened: frozenset[tuple[str, int, str]]
    portless: int
    unfollowed: int


def read_ruleset(host: HostReader, family: str, table: str) -> Ruleset:
    """Read the loaded table; raises :class:`CannotLookError` if nft is missing or lacks permission."""
    done = host.run("nft", "--json", "list", "ruleset")
    if done.code != 0:
        raise CannotLookError(f"nft: {done.first_error}", "run `appliance doctor` as root")
    try:
        return parse_ruleset(json.loads(done.out), family, table)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CannotLookError("the output of nft is not a ruleset", "run `nft list ruleset` by hand") from None


def parse_ruleset(document: dict[str, Any], family: str, table: str) -> Ruleset:
    """Parse the JSON of libnftables."""
    objects = document["nftables"]
    tables = tuple(f"{t['table']['family']} {t['table']['name']}" for t in objects if "table" in t)
    mine = [
        value
        for entry in objects
        for kind, value in entry.items()
        if kind in {"chain", "rule"} and (value["family"], value["table"]) == (family, table)
    ]
    chains = tuple(Chain(c["name"], c["hook"], c.get("policy", "accept")) for c in mine if "hook" in c)
    inputs = {chain.name for chain in chains if chain.hook == "input"}
    rules = [rule["expr"] for rule in mine if "expr" in rule and rule["chain"] in inputs]
    accepting = [rule for rule in rules if any("accept" in part for part in rule)]
    opened = {port for rule in accepting for port in _ports(rule)}
    portless = sum(not any(_restricts(part) for part in rule) for rule in accepting)
    unfollowed = sum(any(_is_not_followed(part) for part in rule) for rule in rules)
    return Ruleset(tables=tables, chains=chains, opened=frozenset(opened), portless=portless, unfollowed=unfollowed)


def _left_side(part: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the left side of a match if it is of this kind: ``payload``, ``meta`` or ``ct``."""
    left = part.get("match", {}).get("left", {})
    found = left.get(kind, {}) if isinstance(left, dict) else {}
    return found if isinstance(found, dict) else {}


def _restricts(part: dict[str, Any]) -> bool:
    """Return whether a match restricts a rule: to a port, a known connection, loopback or ICMP."""
    right = part.get("match", {}).get("right")
    states = right.get("set", []) if isinstance(right, dict) else right if isinstance(right, list) else [right]
    payload = _left_side(part, "payload")
    return (
        payload.get("field") == "dport"
        or (_left_side(part, "ct").get("key") == "state" and set(map(str, states)) <= {"established", "related"})
        or (_left_side(part, "meta").get("key") in {"iif", "iifname"} and right == "lo")
        or payload.get("protocol") in {"icmp", "icmpv6"}
        or (_left_side(part, "meta").get("key") == "l4proto" and right in {"icmp", "icmpv6", "ipv6-icmp"})
    )


def _is_not_followed(part: dict[str, Any]) -> bool:
    match = part.get("match", {})
    matches_port = _left_side(part, "payload").get("field") == "dport"
    return bool(part.keys() & {"jump", "goto", "vmap"}) or (
        matches_port and (match.get("op") != "==" or not isinstance(match.get("right"), (int, dict)))
    )


def _ports(expression: list[dict[str, Any]]) -> Iterator[tuple[str, int, str]]:
    interface = next(
        (
            str(part["match"]["right"])
            for part in expression
            if _left_side(part, "meta").get("key") == "iifname" and part["match"].get("op") == "=="
        ),
        "",
    )
    for part in expression:
        payload = _left_side(part, "payload")
        if payload.get("field") == "dport" and part["match"].get("op") == "==":
            for port in _port_numbers(part["match"]["right"]):
                yield str(payload["protocol"]), port, interface


def _port_numbers(right: Any) -> Iterator[int]:
    if isinstance(right, int):
        yield right
    elif isinstance(right, dict) and "set" in right:
        for item in right["set"]:
            yield from _port_numbers(item)
    elif isinstance(right, dict) and "range" in right:
        yield from range(right["range"][0], right["range"][1] + 1)


DHCPV6_CLIENT = ("udp", 546)


def judge_firewall(expected: Firewall, seen: Ruleset) -> Iterator[Finding]:
    """Judge whether the table is loaded, drops by default, and accepts exactly the openings of the machine."""
    name = f"{expected.family} {expected.table}"
    if name not in seen.tables:
        loaded = f"; loaded are: {', '.join(seen.tables)}" if seen.tables else "; the ruleset is empty"
        yield fail(
            f"nftables is not loaded: the table {name} does not exist{loaded}",
            meaning="Every listening port is open to all clients that reach this host.",
            fix=RELOAD,
            subject="table",
            cause="firewall-not-loaded",
        )
        return
    for hook in ("input", "forward"):
        chain = next((chain for chain in seen.chains if chain.hook == hook), None)
        if chain is None or chain.policy != "drop":
            yield fail(
                f"the {hook} chain {'is missing' if chain is None else f'has policy {chain.policy}'}",
                meaning="Packets that no rule matches are accepted.",
                fix=RELOAD,
                subject=hook,
                cause="firewall-open",
            )
        else:
            yield ok("drops packets that no rule matches", subject=hook)
    own_rules = [line for line in expected.extra_input.splitlines() if "accept" in line and "dport" not in line]
    if seen.portless > len(own_rules):
        yield fail(
            f"{seen.portless - len(own_rules)} rules accept every port",
            meaning="Every listening port is open, to all clients or to some.",
            fix=f"nft list table {name}; {RELOAD}",
            subject="rules",
            cause="firewall-open",
        )
    if seen.unfollowed and not expected.extra_input.strip():
        yield unknown(
            f"{seen.unfollowed} rules have a jump, a map or a named set, which is not followed",
            fix=f"nft list table {name}; {RELOAD}",
            subject="rules",
        )
    yield _judge_openings(expected, seen)


RANK_PORTS = range(32768, 61000)
"""The kernel's range for listeners without a port of their own, as those of vLLM, gloo and NCCL."""


def _of_a_rank(expected: Firewall, port: int, interface: str) -> bool:
    """Return whether the site opens a TCP port on ``interface`` for an engine over several hosts."""
    return any(interface == one.interface and (port in RANK_PORTS or port in one.ports) for one in expected.ranks)


def _judge_openings(expected: Firewall, seen: Ruleset) -> Finding:
    wanted = {(opening.protocol, opening.port) for opening in expected.openings}
    own = {int(number) for number in re.findall(r"\b\d{1,5}\b", expected.extra_input)}
    opened = {
        (protocol, port)
        for protocol, port, interface in seen.opened
        if not (protocol == "tcp" and _of_a_rank(expected, port, interface))
    }
    unexpected = sorted(o for o in opened - wanted - {DHCPV6_CLIENT} if o[1] not in own)
    missing = sorted(wanted - opened)
    wider = [
        opening
        for opening in expected.openings
        if opening.interface is not None
        and any(
            (protocol, port) == (opening.protocol, opening.port) and interface != opening.interface
            for protocol, port, interface in seen.opened
        )
    ]
    if wider:
        ports = ", ".join(f"{o.port}/{o.protocol} beyond {o.interface}" for o in wider)
        return fail(
            f"accepts {ports}",
            meaning="The API is reachable without the tunnel: keys and prompts cross a network unencrypted.",
            fix=RELOAD,
            subject="openings",
            cause="firewall-open",
        )
    if unexpected:
        ports = ", ".join(f"{port}/{protocol}" for protocol, port in unexpected[:8])
        return fail(
            f"accepts {ports}, which the machine's description does not name",
            meaning="The loaded rules were changed by hand.",
            fix=RELOAD,
            subject="openings",
        )
    if missing:
        ports = ", ".join(f"{port}/{protocol}" for protocol, port in missing)
        return fail(
            f"does not accept {ports}",
            meaning="The rules are older than the machine's description: clients, the tunnel or SSH are blocked.",
            fix=RELOAD,
            subject="openings",
            cause="firewall-closed",
        )
    return ok(
        f"exactly {', '.join(f'{p}/{proto}' for proto, p in sorted(wanted)) or 'nothing'}", subject="openings"
    )


@check(
    "firewall",
    looks="the loaded nftables ruleset: the table, its policies, and exactly the ports of the machine",
    means="Not loaded: every listening port is open. Closed: clients and the tunnel are blocked.",
    fix="`systemctl restart nftables`",
    requires=machine_part(lambda machine: machine.firewall, "no firewall is described"),
    fault_domain="generation",
)
def check_firewall(context: CheckContext, expected: Firewall) -> Iterator[Finding]:
    """Check the loaded ruleset."""
    ruleset = read_ruleset(context.host, expected.family, expected.table)
    yield from judge_firewall(expected, ruleset)
