"""A silent peer of a real tunnel in network namespaces, and the fault domain that the smoke test gives it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_until
from tests.doctor.network import Node

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
    """Return level, fault domain and text of the peer's finding in the smoke test."""
    machine = gpu.folder / "machine.json"
    machine.write_text(json.dumps(gpu.machine))
    argv = [*gpu.enter, sys.executable, "-c", LOOK, str(machine), str(known)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    level, domain, seen = json.loads(done.stdout)
    return level, domain, seen


def silence(vps: Node, gpu: Node) -> None:
    """Remove the peer on the VPS, which then replies as little as without power."""
    vps.do("wg", "set", "wg0", "peer", gpu.public, "remove")


@pytest.fixture
def known(pair: tuple[Node, Node], tmp_path: Path) -> Iterator[Path]:
    """A tunnel whose handshake was recorded; reset after the test."""
    gpu, _ = pair
    file = tmp_path / "handshakes.json"
    assert look(gpu, file)[0] == "ok"
    peer = gpu.machine["tunnel"]["peers"]["vps"]
    before = dict(peer)
    yield file
    peer.update(before)
    gpu.do("ip", "link", "set", "eth0", "up")


def test_a_vps_whose_tunnel_is_off_is_external(pair: tuple[Node, Node], known: Path) -> None:
    gpu, vps = pair
    silence(vps, gpu)
    gpu.configure(peer=vps.public)

    def external() -> bool:
        level, domain, seen = look(gpu, known)
        return (level, domain) == ("fail", "external") and "the first hop 203.0.113.5 responds" in seen

    wait_until(external, "its first attempt, and the neighbour's response", 60)


def test_another_key_of_this_host_is_a_failure_of_the_generation(pair: tuple[Node, Node], known: Path) -> None:
    gpu, vps = pair
    other = gpu.do("wg", "genkey").strip()
    silence(vps, gpu)
    gpu.configure(private=other, peer=vps.public)
    level, domain, seen = look(gpu, known)
    assert (level, domain) == ("fail", "generation")
    assert "another key of this host" in seen


def test_another_endpoint_is_a_failure_of_the_generation(pair: tuple[Node, Node], known: Path) -> None:
    gpu, vps = pair
    # The VPS is off as well; that must not hide the other endpoint.
    silence(vps, gpu)
    gpu.configure(peer=vps.public)
    gpu.do("wg", "set", "wg0", "peer", vps.public, "endpoint", "203.0.113.5:51999")
    gpu.machine["tunnel"]["peers"]["vps"]["endpoint"] = "203.0.113.5:51999"
    level, domain, seen = look(gpu, known)
    assert (level, domain) == ("fail", "generation")
    assert "another endpoint" in seen


def test_a_lost_network_is_a_failure_of_the_generation(pair: tuple[Node, Node], known: Path) -> None:
    gpu, vps = pair
    gpu.do("ip", "link", "set", "eth0", "down")
    gpu.configure(peer=vps.public)
    level, domain, seen = look(gpu, known)
    assert (level, domain) == ("fail", "generation")
    assert "has no route to 203.0.113.5:51820" in seen
