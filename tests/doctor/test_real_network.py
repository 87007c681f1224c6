"""Real firewall, tunnel and sockets: the rendered hosts/*.nix in network namespaces, and the command itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import wait_until
from tests.doctor.network import Node
from tests.nix import checker


def test_the_rendered_and_loaded_hosts_have_no_failures(pair: tuple[Node, Node]) -> None:
    for one in pair:
        report = one.doctor("firewall", "tunnel")
        assert report["worst"] == "ok", report["checks"]
        assert report["causes"] == []
        assert any(check["seen"].startswith("handshake ") for check in report["checks"])


@pytest.mark.parametrize("index", [0, 1], ids=["gpu", "vps"])
def test_a_firewall_that_is_not_loaded_is_named(index: int, pair: tuple[Node, Node]) -> None:
    one = pair[index]
    one.do("nft", "flush", "ruleset")
    report = one.doctor("firewall", "tunnel")
    assert report["causes"][0]["code"] == "firewall-not-loaded"
    assert "nftables is not loaded" in report["causes"][0]["seen"]
    assert report["causes"][0]["fix"].startswith("systemctl restart nftables")


@pytest.mark.parametrize("index", [0, 1], ids=["gpu", "vps"])
def test_an_added_rule_is_found(index: int, pair: tuple[Node, Node]) -> None:
    one = pair[index]
    one.do("nft", "add rule inet appliance input tcp dport 9000-9002 accept")
    seen = [check["seen"] for check in one.doctor("firewall")["checks"] if check["level"] == "fail"]
    assert seen == ["accepts 9000/tcp, 9001/tcp, 9002/tcp, which the machine's description does not name"]
    one.do("nft", "insert rule inet appliance input accept")
    assert one.codes("firewall") == ["firewall-open"]


@pytest.mark.parametrize(
    ("rule", "level", "seen"),
    [
        ("accept", "fail", "1 rules accept every port"),
        ("iifname eth0 accept", "fail", "1 rules accept every port"),
        ("ip saddr 198.51.100.0/24 accept", "fail", "1 rules accept every port"),
        ("meta l4proto tcp accept", "fail", "1 rules accept every port"),
        ("ct state new accept", "fail", "1 rules accept every port"),
        ("ip saddr 198.51.100.1 tcp dport 6379 accept", "fail", "accepts 6379/tcp"),
        ("tcp dport { 3306, 33060 } accept", "fail", "accepts 3306/tcp, 33060/tcp"),
        ("tcp dport 8000 accept", "fail", "accepts 8000/tcp beyond wg0"),
        ('iifname "eth0" tcp dport 8000 accept', "fail", "accepts 8000/tcp beyond wg0"),
        ('iifname "wg0" tcp dport 8000 accept', "ok", ""),
        ('iifname "eth0" tcp dport 22 accept', "ok", ""),
        ("tcp dport != 22 accept", "unknown", "1 rules have a jump, a map or a named set"),
        ("tcp dport vmap { 2049 : accept }", "unknown", "1 rules have a jump, a map or a named set"),
        ("icmp type echo-request accept", "ok", ""),
        ("meta l4proto ipv6-icmp accept", "ok", ""),
        ("ct state established accept", "ok", ""),
        ("tcp dport 6379 drop", "ok", ""),
        ("counter", "ok", ""),
    ],
)
def test_the_level_of_each_added_rule(rule: str, level: str, seen: str, pair: tuple[Node, Node]) -> None:
    gpu, _ = pair
    gpu.do("nft", f"add rule inet appliance input {rule}")
    report = gpu.doctor("firewall")
    assert report["worst"] == level, report["checks"]
    assert any(seen in check["seen"] for check in report["checks"] if check["level"] == level), report["checks"]


def test_rules_with_a_jump_or_a_set_are_unknown(pair: tuple[Node, Node]) -> None:
    gpu, _ = pair
    gpu.do("nft", "add set inet appliance mine { type inet_service; elements = { 6379 }; }")
    gpu.do("nft", "add chain inet appliance more { tcp dport 7000 accept; }")
    assert gpu.doctor("firewall")["worst"] == "ok"
    gpu.do("nft", "add rule inet appliance input tcp dport @mine accept")
    gpu.do("nft", "add rule inet appliance input jump more")
    found = [check["seen"] for check in gpu.doctor("firewall")["checks"] if check["level"] == "unknown"]
    assert found == ["2 rules have a jump, a map or a named set, which is not followed"]


def test_extra_rules_of_the_machine_are_accepted(pair: tuple[Node, Node]) -> None:
    gpu, _ = pair
    gpu.machine["firewall"]["extra_input"] = 'iifname "lan0" tcp dport 9100 accept\nip saddr 192.168.1.7 accept'
    try:
        for rule in gpu.machine["firewall"]["extra_input"].splitlines():
            gpu.do("nft", f"add rule inet appliance input {rule}")
        assert gpu.doctor("firewall")["worst"] == "ok"
        gpu.do("nft", "add rule inet appliance input tcp dport 9101 accept")
        assert gpu.doctor("firewall")["worst"] == "fail"
    finally:
        gpu.machine["firewall"]["extra_input"] = ""


@pytest.mark.parametrize("index", [0, 1], ids=["gpu", "vps"])
def test_a_missing_key_is_named(index: int, pair: tuple[Node, Node]) -> None:
    one = pair[index]
    one.key_file.unlink()
    one.do("wg", "set", "wg0", "private-key", "/dev/null")
    report = one.doctor("tunnel", "firewall")
    first = report["causes"][0]
    assert (first["code"], first["subject"]) == ("wireguard-key-missing", "private key")
    assert f"the WireGuard key is missing: {one.key_file} is missing" in first["seen"]
    # The file exists again, but its key is not loaded.
    one.key_file.write_text(one.private)
    one.key_file.chmod(0o600)
    assert "wg0 has no private key" in one.doctor("tunnel")["causes"][0]["seen"]


@pytest.mark.parametrize("index", [0, 1], ids=["gpu", "vps"])
def test_another_peer_key_that_was_loaded_is_named(index: int, pair: tuple[Node, Node]) -> None:
    one = pair[index]
    stranger = subprocess.run(
        ["wg", "pubkey"], input=checker.output_of(["wg", "genkey"]), capture_output=True, text=True, check=True
    ).stdout.strip()
    one.configure(peer=stranger)
    first = one.doctor("tunnel", "firewall")["causes"][0]
    assert first["code"] == "wireguard-wrong-peer-key"
    assert stranger in first["seen"]


def test_another_peer_key_in_the_description_is_found_on_either_host(pair: tuple[Node, Node]) -> None:
    """The GPU host has a new key that the VPS does not have: each matches its description, without a handshake."""
    gpu, vps = pair
    vps.configure(peer=gpu.public)
    gpu.configure(private=checker.output_of(["wg", "genkey"]).strip(), peer=vps.public)
    wait_until(lambda: int(gpu.do("wg", "show", "wg0", "transfer").split()[2]) > 0, "an attempt at a handshake", 20)
    for one in (gpu, vps):
        report = one.doctor("tunnel", "firewall")
        assert [cause["code"] for cause in report["causes"]] == ["wireguard-no-handshake"], report["causes"]
        failure = next(check for check in report["checks"] if check["level"] == "fail")
        assert failure["seen"].startswith("no handshake, ever")
        assert "Another peer key on either host" in failure["meaning"]
        assert one.do("wg", "show", "wg0", "public-key").strip() in failure["fix"]
    assert "bytes sent, none received" in next(
        check["seen"] for check in gpu.doctor("tunnel")["checks"] if check["level"] == "fail"
    )


def test_a_missing_interface_is_named(pair: tuple[Node, Node]) -> None:
    gpu, _ = pair
    gpu.machine["tunnel"]["interface"] = "wg1"
    try:
        assert gpu.codes("tunnel") == ["wireguard-interface-missing"]
    finally:
        gpu.machine["tunnel"]["interface"] = "wg0"


def test_without_permission_the_firewall_is_unknown(pair: tuple[Node, Node]) -> None:
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    report = pair[0].doctor("firewall", prefix=powerless)
    assert [(check["level"], check["fix"]) for check in report["checks"]] == [
        ("unknown", "run `appliance doctor` as root")
    ]
    assert report["exit_code"] == 4


def test_a_key_file_without_permission_does_not_hide_the_handshake(pair: tuple[Node, Node]) -> None:
    """As in the sandbox of the smoke test, which may read the tunnel from the kernel, but not the key's folder."""
    gpu, _ = pair
    folder = gpu.folder / "closed"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "wg0.key").touch(mode=0o600)
    gpu.machine["tunnel"]["private_key_file"] = str(folder / "wg0.key")
    # Root without the capability to override permissions, on a folder of another user.
    os.chown(folder, 65534, 65534)
    try:
        powers = "-dac_override,-dac_read_search"
        report = gpu.doctor("tunnel", prefix=("setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"))
        levels = {check["subject"]: check["level"] for check in report["checks"]}
        assert levels == {"private key": "unknown", "peer vps": "ok"}, report["checks"]
    finally:
        gpu.machine["tunnel"]["private_key_file"] = str(gpu.key_file)


@contextmanager
def listening(one: Node, address: str, port: int) -> Iterator[None]:
    """Run a process in the namespace that listens like an engine."""
    family = "AF_INET6" if ":" in address else "AF_INET"
    code = (
        f"import socket, time; s = socket.create_server(({address!r}, {port}), family=socket.{family}); "
        "print(1, flush=True); time.sleep(120)"
    )
    with subprocess.Popen([*one.enter, sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"1\n"
            yield
        finally:
            process.kill()


def test_engines_beyond_loopback_are_failures(pair: tuple[Node, Node]) -> None:
    gpu, _ = pair

    def engine() -> dict[str, str]:
        checks = gpu.doctor("ports")["checks"]
        return {c["subject"]: c["level"] for c in checks if c["subject"].startswith(("engine", "port"))}

    with listening(gpu, "127.0.0.1", 8101), listening(gpu, "::1", 8102):
        assert engine() == {"engine agents.0": "ok", "engine agents.1": "ok"}
    with listening(gpu, "0.0.0.0", 8101), listening(gpu, "::", 8102):
        assert engine() == {"engine agents.0": "fail", "engine agents.1": "fail"}
        assert gpu.codes("ports")[0] == "engine-exposed"
    with listening(gpu, "0.0.0.0", 5432):
        assert engine() == {"port 5432": "warn"}


def test_the_port_of_the_tunnel_itself_is_expected(pair: tuple[Node, Node]) -> None:
    """The socket of wireguard-go has its described port on the VPS, and any port on the GPU host."""
    gpu, vps = pair
    assert not [c for c in vps.doctor("ports")["checks"] if c["subject"] in {"tunnel", "port 51820"}]
    assert not [c for c in gpu.doctor("ports")["checks"] if c["subject"].startswith("port ")]
