"""Case 9: what is broken at boot leaves nothing open, and `appliance doctor` says what it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import ROOT, wait_until
from tests.network.client import PATH, chat
from tests.network.host import ETC, NetworkHost
from tests.network.probes import knock, knocks
from tests.network.site import NetworkSite, address, keypair, running

Saw = Callable[[str, str, str], None]
OTHER = {"gpu": "vps-a", "vps-a": "gpu"}
INITIATION = 148
"""Bytes of the message that begins a handshake (the WireGuard paper, 5.4.2)."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkSite]:
    """One VPS and one GPU host of these tests' own: they are booted broken, again and again."""
    with running(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest.fixture(autouse=True)
def whole_again(pair: NetworkSite) -> Iterator[None]:
    """Each test begins with a site that serves, so that what it then does not reach was there before."""
    assert pair.client.post(PATH, chat("tokens=1")).status == 200
    machines = {name: id(host.machine) for name, host in pair.hosts.items()}
    keys = {name: (host.machine.disk / "wireguard/wg0.key").read_text() for name, host in pair.hosts.items()}
    values = {name: host.values for name, host in pair.hosts.items()}
    yield
    for name in ("vps-a", "gpu"):
        host = pair.hosts[name]
        host.edits.clear()
        host.configure(values[name])
        (host.machine.disk / "wireguard/wg0.key").write_text(keys[name])
        if id(host.machine) != machines[name]:
            reboot(pair, name).require()
    dial_again(pair)
    pair.wait_for_tunnel()


def reboot(site: NetworkSite, name: str) -> NetworkHost:
    """Boot a host again, however far it comes."""
    site.power_off(name)
    site.power_on(name)
    return site.hosts[name]


def renew_tunnel(host: NetworkHost) -> None:
    """Start the tunnel's unit anew, however far it comes."""
    if "wireguard-wg0" in host.daemons:
        host.stop("wireguard-wg0")
    host.start("wireguard-wg0")


def dial_again(site: NetworkSite) -> None:
    """Both ends forget their handshakes, and the GPU host begins a new one at once."""
    for name in ("vps-a", "gpu"):
        renew_tunnel(site.hosts[name])
    gpu = site.hosts["gpu"]
    if gpu.state["wireguard-wg0"] == "active":

        def asked() -> bool:
            return int(gpu.machine.do("wg", "show", "wg0", "transfer").split()[2]) >= INITIATION

        wait_until(asked, "the GPU host has asked for a handshake")


def misspelt(text: str) -> str:
    return text.replace("policy drop;", "polcy drop;", 1)


def regardless(host: NetworkHost) -> None:
    """The control: the same host without the bonds between its units."""
    values = {**host.values, "systemd.services": {**host.values["systemd.services"]}}
    for name, service in values["systemd.services"].items():
        values["systemd.services"][name] = {**service, "requires": []}
    host.configure(values)


def gateway_from_the_neighbourhood(site: NetworkSite) -> str:
    """What the attacker meets who sends to the tunnel's address by way of the GPU host's network card."""
    site.attacker.do("ip", "route", "replace", "10.77.0.1/32", "via", address("gpu"))
    return knock(site.attacker, "10.77.0.1", 8000, 0.7)


def causes(host: NetworkHost) -> list[str]:
    """The causes that `appliance doctor --json` names, first things first."""
    argv = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "appliance", "doctor", "--json"]
    argv += ["--only", "firewall", "--only", "tunnel"]
    described = host.values["environment.etc"]
    for name, option in (("appliance.json", "--config"), ("machine.json", "--machine")):
        if f"appliance/{name}" in described:
            text = described[f"appliance/{name}"]["source"]["text"]
            argv += [option, host.machine.write(f"{ETC}/appliance/{name}", text)]
    said = host.machine.said(*argv, timeout=100)
    assert said.returncode == 1, said.stdout + said.stderr
    return [cause["code"] for cause in json.loads(said.stdout)["causes"]]


def names_the_cause(host: NetworkHost, *expected: str) -> str:
    """What is said of the doctor in the table: the first cause that it names has to be one of ``expected``."""
    found = causes(host)
    assert found, "doctor finds nothing wrong"
    assert found[0] in expected, found
    return f"doctor: {found[0]}"


def test_gpu_host_whose_rules_do_not_load(pair: NetworkSite, saw: Saw) -> None:
    host = pair.hosts["gpu"]
    host.edits["nftables"] = misspelt
    reboot(pair, "gpu")
    assert host.state["nftables"].startswith("failed"), host.state
    assert host.state["appliance-gateway"] == "dependency failed: nftables"
    assert host.state["wireguard-wg0"] == "dependency failed: nftables"
    assert gateway_from_the_neighbourhood(pair) != "open"
    assert set(knocks(pair.attacker, [(address("gpu"), port) for port in (8000, 8101, 8102)]).values()) == {
        "refused"
    }
    answer = pair.client.post(PATH, chat())
    assert (answer.status, answer.json["error"]["code"]) == (503, "gateway_unreachable")
    saw(
        "9 GPU host, nftables does not load",
        "no gateway, no tunnel; edge 503",
        f"as expected; {names_the_cause(host, 'firewall-not-loaded')}",
    )


def test_control_without_the_bonds_the_gateway_lies_open(pair: NetworkSite) -> None:
    host = pair.hosts["gpu"]
    host.edits["nftables"] = misspelt
    regardless(host)
    reboot(pair, "gpu")
    assert host.state["appliance-gateway"] == "active"
    assert gateway_from_the_neighbourhood(pair) == "open"


def test_vps_whose_rules_do_not_load(pair: NetworkSite, saw: Saw) -> None:
    host = pair.hosts["vps-a"]
    host.edits["nftables"] = misspelt
    reboot(pair, "vps-a")
    assert host.state == {
        "nftables": host.state["nftables"], "wireguard-wg0": "dependency failed: nftables",
        "nginx": "dependency failed: nftables",
    }  # fmt: skip
    met = knocks(pair.attacker, [(address("vps-a"), port) for port in (80, 443, 8000)])
    assert set(met.values()) == {"refused"}, met
    saw(
        "9 VPS, nftables does not load",
        "no edge, no tunnel",
        f"as expected; {names_the_cause(host, 'firewall-not-loaded')}",
    )


def test_control_without_the_bonds_the_edge_is_open(pair: NetworkSite) -> None:
    host = pair.hosts["vps-a"]
    host.edits["nftables"] = misspelt
    regardless(host)
    reboot(pair, "vps-a")
    assert knock(pair.attacker, address("vps-a"), 443) == "open"


@pytest.mark.parametrize("name", ["gpu", "vps-a"])
def test_a_key_that_is_missing(pair: NetworkSite, name: str, saw: Saw) -> None:
    """The host makes itself a new one, which nobody knows: the tunnel stays down until that is mended."""
    host, other = pair.hosts[name], OTHER[name]
    (host.machine.disk / "wireguard/wg0.key").unlink()
    dial_again(pair)
    assert (host.machine.disk / "wireguard/wg0.key").stat().st_mode & 0o077 == 0
    closed(pair)
    assert host.handshake_age_s(pair.public_keys[other]) is None
    seen = f"as expected; {names_the_cause(host, 'wireguard-no-handshake')}"
    saw(f"9 {name}, WireGuard key missing", "a new key that no peer knows; edge 503", seen)


@pytest.mark.parametrize("name", ["gpu", "vps-a"])
def test_a_key_that_is_none(pair: NetworkSite, name: str, saw: Saw) -> None:
    host = pair.hosts[name]
    (host.machine.disk / "wireguard/wg0.key").write_text("not a key\n")
    dial_again(pair)
    assert host.state["wireguard-wg0"].startswith("failed"), host.state
    closed(pair)
    seen = f"as expected; {names_the_cause(host, 'wireguard-key-missing')}"
    saw(f"9 {name}, WireGuard key unreadable", "no tunnel; edge 503", seen)


@pytest.mark.parametrize("name", ["gpu", "vps-a"])
def test_a_wrong_peer_key(pair: NetworkSite, name: str, saw: Saw) -> None:
    host, other = pair.hosts[name], OTHER[name]
    wrong = keypair(pair.folder, "stranger")
    host.configure(json.loads(json.dumps(host.values).replace(pair.public_keys[other], wrong)))
    dial_again(pair)
    assert set(host.state.values()) == {"active"}, host.state
    closed(pair)
    assert host.handshake_age_s(wrong) is None
    seen = f"as expected; {names_the_cause(host, 'wireguard-no-handshake')}"
    saw(f"9 {name}, wrong peer key", "no handshake; edge 503", seen)


def test_control_the_right_keys_open_it(pair: NetworkSite) -> None:
    dial_again(pair)
    assert pair.wait_for_tunnel() < 10
    for name, other in OTHER.items():
        age = pair.hosts[name].handshake_age_s(pair.public_keys[other])
        assert age is not None
        assert age < 15


def closed(site: NetworkSite) -> None:
    """Nobody reaches the gateway: not by the edge, not beside it."""
    answer = site.client.post(PATH, chat())
    assert (answer.status, answer.json["error"]["code"]) == (503, "gateway_unreachable")
    assert answer.headers["retry-after"] == "2"
    assert gateway_from_the_neighbourhood(site) != "open"
