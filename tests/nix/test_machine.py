"""The rendered /etc/appliance/machine.json, as the doctor reads it, against the other rendered values."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.contract.machine import Machine, load_machine
from tests.nix import checker


def machine(host: str, folder: Path, *extra: str) -> Machine:
    """Return the machine of ``hosts/HOST.nix`` with the modules ``extra``."""
    values = checker.host(host, *extra)
    file = folder / "machine.json"
    file.write_text(values["environment.etc"]["appliance/machine.json"]["source"]["text"])
    return load_machine(file)


@pytest.mark.parametrize("host", ["gpu", "vps"])
def test_the_tunnel_is_the_configured_one(host: str, tmp_path: Path) -> None:
    tunnel = machine(host, tmp_path).tunnel
    made = checker.host(host)["networking.wireguard.interfaces"]
    assert tunnel is not None
    interface = made[tunnel.interface]
    assert (interface["privateKeyFile"], interface["mtu"]) == (tunnel.private_key_file, tunnel.mtu)
    assert interface["listenPort"] == tunnel.listen_port
    assert interface["ips"] == [f"{tunnel.address}/24"]
    assert {p["name"]: (p["publicKey"], p["endpoint"]) for p in interface["peers"]} == {
        name: (peer.public_key, peer.endpoint) for name, peer in tunnel.peers.items()
    }


@pytest.mark.parametrize("extra", [(), ("tests/nix/everything.nix",)])
def test_every_unit_of_the_description_is_rendered(extra: tuple[str, ...], tmp_path: Path) -> None:
    ours = {name for name in machine("gpu", tmp_path, *extra).units if name.startswith("appliance-")}
    services = checker.host("gpu", *extra)["systemd.services"]
    assert ours == {
        f"{name}.service" for name, unit in services.items() if name.startswith("appliance-") and unit["wantedBy"]
    }


def test_the_edge_is_the_configured_one(tmp_path: Path) -> None:
    edge = machine("vps", tmp_path).edge
    assert edge is not None
    values = checker.host("vps")
    assert edge.domain in values["services.nginx.virtualHosts"]
    assert list(values["services.nginx.upstreams"]["gateway"]["servers"]) == list(edge.gateways)


def test_the_api_is_open_on_the_tunnel_only(tmp_path: Path) -> None:
    described = machine("gpu", tmp_path)
    assert described.firewall is not None
    assert described.tunnel is not None
    only = {opening.by: opening.interface for opening in described.firewall.openings}
    assert only == {"gateway": described.tunnel.interface, "ssh": None}


def test_the_pins_are_the_tested_set(tmp_path: Path) -> None:
    cards = machine("gpu", tmp_path).cards
    assert cards is not None
    assert cards.pins.model_dump() == {
        "kernel": "6.18", "driver": "595.71.05", "cuda": "13.0", "python": "3.13", "torch": "2.14.0",
        "vllm": "0.33.0",
    }  # fmt: skip


@pytest.mark.parametrize("host", ["gpu", "vps"])
def test_the_build_check_of_the_description(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of system.checks: the doctor reads the description and lists its checks."""
    described = machine(host, tmp_path)
    values = checker.host(host)["environment.etc"]
    argv = ["doctor", "--list", "--machine", str(tmp_path / "machine.json")]
    if host == "gpu":
        site = tmp_path / "appliance.json"
        site.write_text(values["appliance/appliance.json"]["source"]["text"])
        argv += ["--config", str(site)]
    assert main(argv) == 0
    listed = capsys.readouterr().out
    assert bool(re.search("^certificate +not applicable", listed, re.MULTILINE)) is (host == "gpu")
    assert bool(re.search("^driver +not applicable", listed, re.MULTILINE)) is (host == "vps")
    assert described.host == host
    invalid = json.loads((tmp_path / "machine.json").read_text())
    invalid["tunnel"]["mtu"] = "wide"
    (tmp_path / "machine.json").write_text(json.dumps(invalid))
    assert main(argv) == 2
    assert "tunnel.mtu" in capsys.readouterr().err
