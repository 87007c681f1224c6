"""A silent tunnel for real: wireguard-go in network namespaces, and whose fault the smoke test takes it for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_until
from tests.doctor.test_real_network import Node, nodes, pair

__all__ = ["nodes", "pair"]

LOOK = """
import json, sys, time
from pathlib import Path
from appliance.contract.machine import load_machine
from appliance.smoketest import handshake
from appliance.doctor.runner import examine
from appliance.doctor.host import HostReader
from appliance.doctor.context import CheckContext
machine, known = load_machine(Path(sys.argv[1])), Path(sys.argv[2])
context = CheckContext(HostReader(), None, machine, Path.cwd(), time.time())
found = examine(context, ["tunnel"]).results
for one in handshake.attribute_fault(context.host, machine.tunnel, found, known=known, now=context.now):
    if one.subject == "peer vps":
        print(json.dumps([one.level, one.fault_domain, one.seen]))
"""


def look(gpu: Node, known: Path) -> tuple[str, str, str]:
    """Level, fault domain and words of the peer, as the smoke test sees it."""
    machine = gpu.folder / "machine.json"
    machine.write_text(json.dumps(gpu.machine))
    argv = [*gpu.enter, sys.executable, "-c", LOOK, str(machine), str(known)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    level, domain, seen = json.loads(done.stdout)
    return level, domain, seen


def silence(vps: Node, gpu: Node) -> None:
    """The VPS answers nobody: its interface is as good as off."""
    vps.do("wg", "set", "wg0", "peer", gpu.public, "remove")


@pytest.fixture
def known(pair: tuple[Node, Node], tmp_path: Path) -> Iterator[Path]:
    """A tunnel that has been seen alive; whatever a test does to it is undone."""
    gpu, _ = pair
    file = tmp_path / "handshakes.json"
    assert look(gpu, file)[0] == "ok"
    peer = gpu.machine["tunnel"]["peers"]["vps"]
    before = dict(peer)
    yield file
    peer.update(before)
    gpu.do("ip", "link", "set", "eth0", "up")


def test_a_vps_whose_tunnel_is_off_is_nobodys_fault_here(pair: tuple[Node, Node], known: Path) -> None:
    gpu, vps = pair
    silence(vps, gpu)
    gpu.configure(peer=vps.public)

    def external() -> bool:
        level, domain, seen = look(gpu, known)
        return (level, domain) == ("fail", "external") and "the first hop 203.0.113.5 responds" in seen

    wait_until(external, "its first attempt, and the neighbour's answer", 60)


def test_a_key_of_its_own_that_nobody_knows_is_the_generations(pair: tuple[Node, Node], known: Path) -> None:
    gpu, vps = pair
    other = gpu.do("wg", "genkey").strip()
    silence(vps, gpu)
    gpu.configure(private=other, peer=vps.public)
    level, domain, seen = look(gpu, known)
    assert (level, domain) == ("fail", "generation")
    assert "another key of this host" in seen


def test_a_port_where_nobody_listens_is_the_generations(pair: tuple[Node, Node], known: Path) -> None:
    gpu, vps = pair
    # Off as well: neither hides the other.
    silence(vps, gpu)
    gpu.configure(peer=vps.public)
    gpu.do("wg", "set", "wg0", "peer", vps.public, "endpoint", "203.0.113.5:51999")
    gpu.machine["tunnel"]["peers"]["vps"]["endpoint"] = "203.0.113.5:51999"
    level, domain, seen = look(gpu, known)
    assert (level, domain) == ("fail", "generation")
    assert "another endpoint" in seen


def test_a_network_that_the_generation_lost_is_its_own(pair: tuple[Node, Node], known: Path) -> None:
    gpu, vps = pair
    gpu.do("ip", "link", "set", "eth0", "down")
    gpu.configure(peer=vps.public)
    level, domain, seen = look(gpu, known)
    assert (level, domain) == ("fail", "generation")
    assert "has no route to 203.0.113.5:51820" in seen
