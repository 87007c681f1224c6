"""The rendered /etc/appliance/machine.json, as the doctor reads it, against the other rendered values."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.contract.machine import Machine, load_machine
from tests.nix import rendered


def machine(host: str, folder: Path, *extra: str) -> Machine:
    """Return the machine of ``hosts/HOST.nix`` with the modules ``extra``."""
    file = folder / "machine.json"
    file.write_text(rendered.host(host, *extra).etc_text("appliance/machine.json"))
    return load_machine(file)


@pytest.mark.parametrize("host", ["gpu", "side", "vps"])
def test_the_tunnel_is_the_configured_one(host: str, tmp_path: Path) -> None:
    """The description names the values of the commands that set up the tunnel."""
    tunnel = machine(host, tmp_path).tunnel
    assert tunnel is not None
    script = rendered.host(host).text(f"unit-script-wireguard-{tunnel.interface}-start").text
    port = f' listen-port "{tunnel.listen_port}"' if tunnel.listen_port is not None else ""
    for line in (
        f'ip link set "{tunnel.interface}" mtu {tunnel.mtu}',
        f'ip address add "{tunnel.address}/24" dev "{tunnel.interface}"',
        f'wg set "{tunnel.interface}" private-key "{tunnel.private_key_file}"{port}',
    ):
        assert line in script.splitlines()
    units = [name for name in rendered.host(host).units if name.startswith(f"wireguard-{tunnel.interface}-peer-")]
    assert units == [f"wireguard-{tunnel.interface}-peer-{name}.service" for name in tunnel.peers]
    for name, peer in tunnel.peers.items():
        script = rendered.host(host).text(f"unit-script-wireguard-{tunnel.interface}-peer-{name}-start").text
        assert f'peer "{peer.public_key}"' in script
        assert f'allowed-ips "{peer.address}/32"' in script
        assert re.findall('endpoint "(.*?)"', script) == ([peer.endpoint] if peer.endpoint else [])


@pytest.mark.parametrize("extra", [(), ("tests/nix/everything.nix",)])
def test_every_unit_of_the_description_is_rendered(extra: tuple[str, ...], tmp_path: Path) -> None:
    ours = {name for name in machine("gpu", tmp_path, *extra).units if name.startswith("appliance-")}
    units = rendered.host("gpu", *extra).units
    assert ours == {
        name for name, unit in units.items()
        if name.startswith("appliance-") and unit.kind == "service" and unit.wanted_by
    }  # fmt: skip


def test_the_edge_is_the_configured_one(tmp_path: Path) -> None:
    edge = machine("vps", tmp_path).edge
    assert edge is not None
    text = rendered.host("vps").text("nginx.conf").text
    assert f"server_name {edge.domain} ;" in text
    assert f"ssl_certificate {edge.certificate};" in text
    assert re.findall(r"^ *server (\S+:\d+) ", text, re.MULTILINE) == list(edge.gateways)


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


@pytest.mark.parametrize("host", ["gpu", "side", "vps"])
def test_the_build_check_of_the_description(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of system.checks: the doctor reads the description and lists its checks."""
    described = machine(host, tmp_path)
    argv = ["doctor", "--list", "--machine", str(tmp_path / "machine.json")]
    if host != "vps":
        site = tmp_path / "appliance.json"
        site.write_text(rendered.host(host).etc_text("appliance/appliance.json"))
        argv += ["--config", str(site)]
    assert main(argv) == 0
    listed = capsys.readouterr().out
    assert bool(re.search("^certificate +not applicable", listed, re.MULTILINE)) is (host != "vps")
    assert bool(re.search("^driver +not applicable", listed, re.MULTILINE)) is (host != "gpu")
    assert described.host == host
    invalid = json.loads((tmp_path / "machine.json").read_text())
    invalid["tunnel"]["mtu"] = "wide"
    (tmp_path / "machine.json").write_text(json.dumps(invalid))
    assert main(argv) == 2
    assert "tunnel.mtu" in capsys.readouterr().err
