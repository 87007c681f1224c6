"""The loaded nftables ruleset: is the table there, does it drop, and does it let in exactly what it should?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from appliance.machine import Firewall
from appliance.ops.doctor.host import CannotLookError, Host
from appliance.ops.doctor.result import Verdict, fail, ok

RELOAD = "systemctl restart nftables; journalctl -u nftables"


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain: where it hooks in, and what happens to what no rule names."""

    name: str
    hook: str
    policy: str


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What matters of one table: ``opened`` holds (protocol, port), ``bare`` counts rules that accept all."""

    tables: tuple[str, ...]
    chains: tuple[Chain, ...]
    opened: frozenset[tuple[str, int]]
    bare: int


def read_ruleset(host: Host, family: str, table: str) -> Ruleset:
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
    accepting = [
        r["expr"] for r in mine if "expr" in r and r["chain"] in inputs and any("accept" in e for e in r["expr"])
    ]
    opened = {port for expression in accepting for port in _ports(expression)}
    bare = sum(not any("match" in part for part in expression) for expression in accepting)
    return Ruleset(tables, chains, frozenset(opened), bare)


def _ports(expression: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    for part in expression:
        payload = part.get("match", {}).get("left", {})
        payload = payload.get("payload", {}) if isinstance(payload, dict) else {}
        if payload.get("field") == "dport" and part["match"].get("op") == "==":
            for port in _numbers(part["match"]["right"]):
                yield str(payload["protocol"]), port


def _numbers(right: Any) -> Iterator[int]:
    if isinstance(right, int):
        yield right
    elif isinstance(right, dict) and "set" in right:
        for item in right["set"]:
            yield from _numbers(item)
    elif isinstance(right, dict) and "range" in right:
        yield from range(right["range"][0], right["range"][1] + 1)


DHCPV6_CLIENT = ("udp", 546)


def judge_firewall(expected: Firewall, seen: Ruleset) -> Iterator[Verdict]:
    """Loaded, dropping by default, and open for exactly what the machine names."""
    name = f"{expected.family} {expected.table}"
    if name not in seen.tables:
        there = f"; loaded are: {', '.join(seen.tables)}" if seen.tables else "; the ruleset is empty"
        yield fail(
            f"nftables is not loaded: there is no table {name}{there}",
            "Every port that listens is open to whoever reaches this host.",
            RELOAD,
            "table",
            "firewall-not-loaded",
        )
        return
    for hook in ("input", "forward"):
        chain = next((chain for chain in seen.chains if chain.hook == hook), None)
        if chain is None or chain.policy != "drop":
            yield fail(
                f"the {hook} chain {'is missing' if chain is None else f'has policy {chain.policy}'}",
                "What no rule names gets through.",
                RELOAD,
                hook,
                "firewall-open",
            )
        else:
            yield ok("drops what no rule names", hook)
    if seen.bare:
        yield fail(
            f"{seen.bare} rules accept everything",
            "Every port that listens is open.",
            f"nft list table {name}; {RELOAD}",
            "rules",
            "firewall-open",
        )
    yield _openings(expected, seen)


def _openings(expected: Firewall, seen: Ruleset) -> Verdict:
    wanted = {(opening.protocol, opening.port) for opening in expected.openings}
    own = {int(number) for number in re.findall(r"\b\d{1,5}\b", expected.extra_input)}
    more = sorted(o for o in seen.opened - wanted - {DHCPV6_CLIENT} if o[1] not in own)
    less = sorted(wanted - seen.opened)
    if more:
        said = ", ".join(f"{port}/{protocol}" for protocol, port in more[:8])
        return fail(
            f"lets in {said}, which the machine does not name",
            "Somebody changed the loaded rules by hand.",
            RELOAD,
            "openings",
        )
    if less:
        said = ", ".join(f"{port}/{protocol}" for protocol, port in less)
        return fail(
            f"does not let in {said}",
            "The rules are older than the machine's description: clients, the tunnel or SSH stay outside.",
            RELOAD,
            "openings",
            "firewall-closed",
        )
    return ok(f"exactly {', '.join(f'{p}/{proto}' for proto, p in sorted(wanted)) or 'nothing'}", "openings")
