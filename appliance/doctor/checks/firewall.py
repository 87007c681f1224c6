"""The loaded nftables ruleset: is the table there, does it drop, and does it let in exactly what it should?"""

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
    """A base chain: where it hooks in, and what happens to what no rule names."""

    name: str
    hook: str
    policy: str


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What matters of one table.

    ``opened`` holds (protocol, port, interface or ""). ``bare`` counts rules that accept every port, ``dark`` those
    that lead elsewhere (a jump, a map, a named set) and are not followed.
    """

    tables: tuple[str, ...]
    chains: tuple[Chain, ...]
    opened: frozenset[tuple[str, int, str]]
    bare: int
    dark: int


def read_ruleset(host: HostReader, family: str, table: str) -> Ruleset:
    """The table as it is loaded. Raises :class:`CannotLookError` where nft is missing or may not look."""
    done = host.run("nft", "--json", "list", "ruleset")
    if done.code != 0:
        raise CannotLookError(f"nft: {done.first_error}", "run `appliance doctor` as root")
    try:
        return parse_ruleset(json.loads(done.out), family, table)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CannotLookError("nft answers what is no ruleset", "run `nft list ruleset` by hand") from None


def parse_ruleset(document: dict[str, Any], family: str, table: str) -> Ruleset:
    """The JSON of libnftables."""
    things = document["nftables"]
    tables = tuple(f"{t['table']['family']} {t['table']['name']}" for t in things if "table" in t)
    mine = [
        thing
        for entry in things
        for kind, thing in entry.items()
        if kind in {"chain", "rule"} and (thing["family"], thing["table"]) == (family, table)
    ]
    chains = tuple(Chain(c["name"], c["hook"], c.get("policy", "accept")) for c in mine if "hook" in c)
    inputs = {chain.name for chain in chains if chain.hook == "input"}
    rules = [rule["expr"] for rule in mine if "expr" in rule and rule["chain"] in inputs]
    accepting = [rule for rule in rules if any("accept" in part for part in rule)]
    opened = {port for rule in accepting for port in _ports(rule)}
    bare = sum(not any(_narrows(part) for part in rule) for rule in accepting)
    dark = sum(any(_leads_elsewhere(part) for part in rule) for rule in rules)
    return Ruleset(tables, chains, frozenset(opened), bare, dark)


def _left(part: dict[str, Any], kind: str) -> dict[str, Any]:
    """The left side of a match, where it is of this kind: ``payload``, ``meta`` or ``ct``."""
    left = part.get("match", {}).get("left", {})
    found = left.get(kind, {}) if isinstance(left, dict) else {}
    return found if isinstance(found, dict) else {}


def _narrows(part: dict[str, Any]) -> bool:
    """Whether a match keeps a rule from letting everything in: a port, a known connection, loopback, ICMP."""
    right = part.get("match", {}).get("right")
    states = right.get("set", []) if isinstance(right, dict) else right if isinstance(right, list) else [right]
    payload = _left(part, "payload")
    return (
        payload.get("field") == "dport"
        or (_left(part, "ct").get("key") == "state" and set(map(str, states)) <= {"established", "related"})
        or (_left(part, "meta").get("key") in {"iif", "iifname"} and right == "lo")
        or payload.get("protocol") in {"icmp", "icmpv6"}
        or (_left(part, "meta").get("key") == "l4proto" and right in {"icmp", "icmpv6", "ipv6-icmp"})
    )


def _leads_elsewhere(part: dict[str, Any]) -> bool:
    match = part.get("match", {})
    a_port = _left(part, "payload").get("field") == "dport"
    return bool(part.keys() & {"jump", "goto", "vmap"}) or (
        a_port and (match.get("op") != "==" or not isinstance(match.get("right"), (int, dict)))
    )


def _ports(expression: list[dict[str, Any]]) -> Iterator[tuple[str, int, str]]:
    interface = next(
        (
            str(part["match"]["right"])
            for part in expression
            if _left(part, "meta").get("key") == "iifname" and part["match"].get("op") == "=="
        ),
        "",
    )
    for part in expression:
        payload = _left(part, "payload")
        if payload.get("field") == "dport" and part["match"].get("op") == "==":
            for port in _numbers(part["match"]["right"]):
                yield str(payload["protocol"]), port, interface


def _numbers(right: Any) -> Iterator[int]:
    if isinstance(right, int):
        yield right
    elif isinstance(right, dict) and "set" in right:
        for item in right["set"]:
            yield from _numbers(item)
    elif isinstance(right, dict) and "range" in right:
        yield from range(right["range"][0], right["range"][1] + 1)


DHCPV6_CLIENT = ("udp", 546)


def judge_firewall(expected: Firewall, seen: Ruleset) -> Iterator[Finding]:
    """Loaded, dropping by default, and open for exactly what the machine names."""
    name = f"{expected.family} {expected.table}"
    if name not in seen.tables:
        there = f"; loaded are: {', '.join(seen.tables)}" if seen.tables else "; the ruleset is empty"
        yield fail(
            f"nftables is not loaded: there is no table {name}{there}",
            meaning="Every port that listens is open to whoever reaches this host.",
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
                meaning="What no rule names gets through.",
                fix=RELOAD,
                subject=hook,
                cause="firewall-open",
            )
        else:
            yield ok("drops what no rule names", subject=hook)
    lines = [line for line in expected.extra_input.splitlines() if "accept" in line and "dport" not in line]
    if seen.bare > len(lines):
        yield fail(
            f"{seen.bare - len(lines)} rules accept every port",
            meaning="Every port that listens is open, to all or to some.",
            fix=f"nft list table {name}; {RELOAD}",
            subject="rules",
            cause="firewall-open",
        )
    if seen.dark and not expected.extra_input.strip():
        yield unknown(
            f"{seen.dark} rules lead elsewhere (jump, map, named set), which is not followed",
            fix=f"nft list table {name}; {RELOAD}",
            subject="rules",
        )
    yield _openings(expected, seen)


def _openings(expected: Firewall, seen: Ruleset) -> Finding:
    wanted = {(opening.protocol, opening.port) for opening in expected.openings}
    own = {int(number) for number in re.findall(r"\b\d{1,5}\b", expected.extra_input)}
    opened = {(protocol, port) for protocol, port, _ in seen.opened}
    more = sorted(o for o in opened - wanted - {DHCPV6_CLIENT} if o[1] not in own)
    less = sorted(wanted - opened)
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
        said = ", ".join(f"{o.port}/{o.protocol} beyond {o.interface}" for o in wider)
        return fail(
            f"lets in {said}",
            meaning="The API can be reached without the tunnel: keys and prompts cross a network in the clear.",
            fix=RELOAD,
            subject="openings",
            cause="firewall-open",
        )
    if more:
        said = ", ".join(f"{port}/{protocol}" for protocol, port in more[:8])
        return fail(
            f"lets in {said}, which the machine does not name",
            meaning="Somebody changed the loaded rules by hand.",
            fix=RELOAD,
            subject="openings",
        )
    if less:
        said = ", ".join(f"{port}/{protocol}" for protocol, port in less)
        return fail(
            f"does not let in {said}",
            meaning="The rules are older than the machine's description: clients, the tunnel or SSH stay outside.",
            fix=RELOAD,
            subject="openings",
            cause="firewall-closed",
        )
    return ok(
        f"exactly {', '.join(f'{p}/{proto}' for proto, p in sorted(wanted)) or 'nothing'}", subject="openings"
    )


@check(
    "firewall",
    looks="the loaded nftables ruleset: the table, its policies, and exactly the ports that the machine names",
    means="Not loaded: every port that listens is open. Closed: clients and the tunnel stay outside.",
    fix="`systemctl restart nftables`",
    requires=machine_part(lambda machine: machine.firewall, "no firewall is described"),
    fault_domain="generation",
)
def check_firewall(context: CheckContext, expected: Firewall) -> Iterator[Finding]:
    """The loaded ruleset."""
    ruleset = read_ruleset(context.host, expected.family, expected.table)
    yield from judge_firewall(expected, ruleset)
