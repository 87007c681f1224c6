"""Case 9: an error at boot leaves no port open, and `appliance doctor` reports its cause."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import ROOT, wait_until
from tests.network.client import PATH, chat
from tests.network.host import ETC, NetworkHost
from tests.network.probes import probe, probe_all
from tests.network.site import NetworkSite, address, keypair, running

RecordRow = Callable[[str, str, str], None]
OTHER = {"gpu": "vps-a", "vps-a": "gpu"}
INITIATION = 148
"""Bytes of the message that starts a handshake (the WireGuard paper, 5.4.2)."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkSite]:
    """Run one VPS and one GPU host for these tests, which boot them with errors."""
    with running(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest.fixture(autouse=True)
def restored(pair: NetworkSite) -> Iterator[None]:
    """Start each test with a site that serves, so that a later failure is caused by the test."""
    assert pair.client.post(PATH, chat("tokens=1")).status == 200
    machines = {name: id(host.machine) for name, host in pair.hosts.items()}
    keys = {name: (host.machine.disk / "wireguard/wg0.key").read_text() for name, host in pair.hosts.items()}
    rendered = {name: host.rendered for name, host in pair.hosts.items()}
    yield
    for name in ("vps-a", "gpu"):
        host = pair.hosts[name]
        host.edits.clear()
        host.configure(rendered[name])
        (host.machine.disk / "wireguard/wg0.key").write_text(keys[name])
        if id(host.machine) != machines[name]:
            reboot(pair, name).require()
    reconnect(pair)
    pair.wait_for_tunnel()


def reboot(site: NetworkSite, name: str) -> NetworkHost:
    """Boot a host again; some of its units may fail."""
    site.power_off(name)
    site.power_on(name)
    return site.hosts[name]


def renew_tunnel(host: NetworkHost) -> None:
    """Restart the unit of the tunnel, which may fail."""
    host.stop("wireguard-wg0")
    host.start("wireguard-wg0")


def reconnect(site: NetworkSite) -> None:
    """Restart both ends without their handshakes; the GPU host starts a new one at once."""
    for name in ("vps-a", "gpu"):
        renew_tunnel(site.hosts[name])
    gpu = site.hosts["gpu"]
    if gpu.state["wireguard-wg0"] == "active":

        def sent() -> bool:
            return int(gpu.machine.run("wg", "show", "wg0", "transfer").split()[2]) >= INITIATION

        wait_until(sent, "the GPU host has sent a handshake")


def with_typo(text: str) -> str:
    return text.replace("policy drop;", "polcy drop;", 1)


def without_requirements(host: NetworkHost) -> None:
    """Configure the same host without the requirements between its units, for a control."""
    units = {
        name: dataclasses.replace(
            unit, text=re.sub(r"^Requires=.*\n", "", unit.text, flags=re.MULTILINE), required_by=()
        )
        for name, unit in host.rendered.units.items()
    }
    host.configure(dataclasses.replace(host.rendered, units=units))


def gateway_from_outside(site: NetworkSite) -> str:
    """Return the result of a connection to the tunnel's address over the GPU host's network card."""
    site.attacker.run("ip", "route", "replace", "10.77.0.1/32", "via", address("gpu"))
    return probe(site.attacker, "10.77.0.1", 8000, 0.7)


def causes(host: NetworkHost) -> list[str]:
    """Return the causes that `appliance doctor --json` reports, the first cause first."""
    argv = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "appliance", "doctor", "--json"]
    argv += ["--only", "firewall", "--only", "tunnel"]
    for name, option in (("appliance.json", "--config"), ("machine.json", "--machine")):
        if f"appliance/{name}" in host.rendered.etc:
            argv += [option, f"{ETC}/appliance/{name}"]
    done = host.machine.try_run(*argv, timeout=100)
    assert done.returncode == 1, done.stdout + done.stderr
    return [cause["code"] for cause in json.loads(done.stdout)["causes"]]


def reported_cause(host: NetworkHost, *expected: str) -> str:
    """Return the doctor's first cause for the table; it must be one of ``expected``."""
    found = causes(host)
    assert found, "the doctor reports no cause"
    assert found[0] in expected, found
    return f"doctor: {found[0]}"


def test_a_gpu_host_without_rules_starts_neither_gateway_nor_tunnel(
    pair: NetworkSite, record_row: RecordRow
) -> None:
    host = pair.hosts["gpu"]
    host.edits["nftables"] = with_typo
    reboot(pair, "gpu")
    assert host.state["nftables"].startswith("failed"), host.state
    assert host.state["appliance-gateway"] == "dependency failed: nftables"
    assert host.state["wireguard-wg0"] == "dependency failed: nftables"
    assert gateway_from_outside(pair) != "open"
    assert set(probe_all(pair.attacker, [(address("gpu"), port) for port in (8000, 8101, 8102)]).values()) == {
        "refused"
    }
    response = pair.client.post(PATH, chat())
    assert (response.status, response.json["error"]["code"]) == (503, "gateway_unreachable")
    record_row(
        "9 GPU host, nftables does not load",
        "no gateway, no tunnel; edge 503",
        f"as expected; {reported_cause(host, 'firewall-not-loaded')}",
    )


def test_control_without_requirements_the_gateway_is_open(pair: NetworkSite) -> None:
    host = pair.hosts["gpu"]
    host.edits["nftables"] = with_typo
    without_requirements(host)
    reboot(pair, "gpu")
    assert host.state["appliance-gateway"] == "active"
    assert gateway_from_outside(pair) == "open"


def test_a_vps_without_rules_starts_neither_edge_nor_tunnel(pair: NetworkSite, record_row: RecordRow) -> None:
    host = pair.hosts["vps-a"]
    host.edits["nftables"] = with_typo
    reboot(pair, "vps-a")
    assert host.state == {
        "nftables": host.state["nftables"], "wireguard-wg0": "dependency failed: nftables",
        "nginx": "dependency failed: nftables", "wireguard-wg0-key": "active",
        "wireguard-wg0-peer-gpu": "dependency failed: wireguard-wg0",
    }  # fmt: skip
    results = probe_all(pair.attacker, [(address("vps-a"), port) for port in (80, 443, 8000)])
    assert set(results.values()) == {"refused"}, results
    record_row(
        "9 VPS, nftables does not load",
        "no edge, no tunnel",
        f"as expected; {reported_cause(host, 'firewall-not-loaded')}",
    )


def test_control_without_requirements_the_edge_is_open(pair: NetworkSite) -> None:
    host = pair.hosts["vps-a"]
    host.edits["nftables"] = with_typo
    without_requirements(host)
    reboot(pair, "vps-a")
    assert probe(pair.attacker, address("vps-a"), 443) == "open"


@pytest.mark.parametrize("name", ["gpu", "vps-a"])
def test_a_missing_private_key_is_replaced_and_closes_the_tunnel(
    pair: NetworkSite, name: str, record_row: RecordRow
) -> None:
    """At boot, the host makes a new key that no peer has: the tunnel stays down until an operator fixes it."""
    host, other = pair.hosts[name], OTHER[name]
    (host.machine.disk / "wireguard/wg0.key").unlink()
    reboot(pair, name).require()
    reconnect(pair)
    assert (host.machine.disk / "wireguard/wg0.key").stat().st_mode & 0o077 == 0
    closed(pair)
    assert host.handshake_age_s(pair.public_keys[other]) is None
    seen = f"as expected; {reported_cause(host, 'wireguard-no-handshake')}"
    record_row(f"9 {name}, WireGuard key missing", "a new key that no peer has; edge 503", seen)


@pytest.mark.parametrize("name", ["gpu", "vps-a"])
def test_an_invalid_private_key_closes_the_tunnel(pair: NetworkSite, name: str, record_row: RecordRow) -> None:
    host = pair.hosts[name]
    (host.machine.disk / "wireguard/wg0.key").write_text("not a key\n")
    reconnect(pair)
    assert host.state["wireguard-wg0"].startswith("failed"), host.state
    closed(pair)
    # The unit of NixOS deletes the interface when its script fails.
    seen = f"as expected; {reported_cause(host, 'wireguard-interface-missing')}"
    record_row(f"9 {name}, WireGuard key invalid", "no tunnel; edge 503", seen)


@pytest.mark.parametrize("name", ["gpu", "vps-a"])
def test_the_key_of_another_peer_closes_the_tunnel(pair: NetworkSite, name: str, record_row: RecordRow) -> None:
    host, other = pair.hosts[name], OTHER[name]
    stranger = keypair(pair.folder, "stranger")
    host.configure(host.rendered.edited(lambda _, text: text.replace(pair.public_keys[other], stranger)))
    reconnect(pair)
    assert set(host.state.values()) == {"active"}, host.state
    closed(pair)
    assert host.handshake_age_s(stranger) is None
    seen = f"as expected; {reported_cause(host, 'wireguard-no-handshake')}"
    record_row(f"9 {name}, key of another peer", "no handshake; edge 503", seen)


def test_control_the_tunnel_opens_with_the_keys_of_the_peers(pair: NetworkSite) -> None:
    reconnect(pair)
    assert pair.wait_for_tunnel() < 10
    for name, other in OTHER.items():
        age = pair.hosts[name].handshake_age_s(pair.public_keys[other])
        assert age is not None
        assert age < 15


def closed(site: NetworkSite) -> None:
    """Check that the gateway is unreachable, both through the edge and from outside."""
    response = site.client.post(PATH, chat())
    assert (response.status, response.json["error"]["code"]) == (503, "gateway_unreachable")
    assert response.headers["retry-after"] == "2"
    assert gateway_from_outside(site) != "open"
