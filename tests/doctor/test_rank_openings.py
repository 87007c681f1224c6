"""The ports of an engine over several hosts in the doctor's look at the firewall."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.contract.machine import Firewall, Opening, RankOpening
from appliance.doctor.checks.firewall import judge_firewall, parse_ruleset
from appliance.doctor.finding import Finding
from tests.doctor.fakehost import accepts, nft_json

EXPECTED = Firewall(
    openings=(Opening(protocol="tcp", port=22, by="ssh"),),
    ranks=(RankOpening(interface="lan0", ports=(29501, 29502)),),
)


def on(interface: str, protocol: str, right: Any) -> list[dict[str, Any]]:
    """Return a rule that accepts ports on ``interface`` from a peer, as modules/network renders it."""
    name = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": interface}}
    peer = {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "10.88.0.2"}}
    port = {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": right}}
    return [name, peer, port, {"accept": None}]


def judged(*rules: list[dict[str, Any]], expected: Firewall = EXPECTED) -> Finding:
    """Return the finding about the open ports of a ruleset with SSH and ``rules``."""
    ruleset = parse_ruleset(json.loads(nft_json(accepts("tcp", 22), *rules)), "inet", "appliance")
    return next(found for found in judge_firewall(expected, ruleset) if found.subject == "openings")


RENDERED = {"set": [29501, 29502, {"range": [32768, 60999]}]}


def test_the_ports_of_the_ranks_are_expected_on_their_interface() -> None:
    found = judged(on("lan0", "tcp", RENDERED))
    assert (found.level, found.seen) == ("ok", "exactly 22/tcp")


def test_the_nodes_of_a_ray_cluster_have_one_fixed_port() -> None:
    ray = EXPECTED.model_copy(update={"ranks": (RankOpening(interface="lan0", ports=(6379,)),)})
    assert judged(on("lan0", "tcp", {"set": [6379, {"range": [32768, 60999]}]}), expected=ray).level == "ok"
    assert judged(on("lan0", "tcp", 6380), expected=ray).level == "fail"


@pytest.mark.parametrize(
    ("interface", "protocol", "right", "named"),
    [
        ("lan1", "tcp", RENDERED, "29501/tcp"),
        ("lan0", "udp", 29501, "29501/udp"),
        ("lan0", "tcp", 29500, "29500/tcp"),
        ("lan0", "tcp", 29503, "29503/tcp"),
        ("lan0", "tcp", 32767, "32767/tcp"),
        ("lan0", "tcp", 61000, "61000/tcp"),
    ],
)
def test_another_port_or_interface_is_reported(interface: str, protocol: str, right: Any, named: str) -> None:
    found = judged(on(interface, protocol, right))
    assert found.level == "fail"
    assert f"accepts {named}" in found.seen


def test_the_ports_of_the_ranks_on_every_interface_are_reported() -> None:
    found = judged(accepts("tcp", 29501))
    assert (found.level, found.seen) == ("fail", "accepts 29501/tcp, which the machine's description does not name")


def test_a_host_without_ranks_expects_none_of_their_ports() -> None:
    found = judged(on("lan0", "tcp", 29501), expected=EXPECTED.model_copy(update={"ranks": ()}))
    assert found.level == "fail"


def test_the_ports_of_the_ranks_do_not_hide_a_missing_opening() -> None:
    expected = EXPECTED.model_copy(update={"openings": (Opening(protocol="tcp", port=443, by="nginx"),)})
    ruleset = parse_ruleset(json.loads(nft_json(on("lan0", "tcp", RENDERED))), "inet", "appliance")
    (found,) = (one for one in judge_firewall(expected, ruleset) if one.subject == "openings")
    assert (found.level, found.seen) == ("fail", "does not accept 443/tcp")
