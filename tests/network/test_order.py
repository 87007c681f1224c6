"""The rendered units that the machines run: their order, and units that these tests do not know."""

from __future__ import annotations

import dataclasses
import re

import pytest

from tests.network.order import NOT_RUN, UnitOrder, UnknownUnitError
from tests.network.settings import NOT_APPLIED, UnknownSettingError
from tests.network.site import NetworkSite
from tests.nix import rendered
from tests.nix.unitfile import UnitFile


def test_the_firewall_is_first_and_the_tunnel_precedes_what_serves() -> None:
    vps, gpu = UnitOrder(rendered.host("vps")), UnitOrder(rendered.host("gpu"))
    assert vps.after("wireguard-wg0") == {"nftables", "wireguard-wg0-key"}
    # By way of network.target: the tunnel is before it, nginx after it.
    assert vps.after("nginx") == {"nftables", "wireguard-wg0"}
    assert gpu.after("appliance-gateway") == {"nftables", "wireguard-wg0"}
    assert gpu.after("wireguard-wg0-peer-vps") == {"wireguard-wg0"}
    assert gpu.after("appliance-engine-agents.0") == set()


def test_a_failed_firewall_stops_what_needs_it() -> None:
    assert UnitOrder(rendered.host("vps")).required_by("nftables") == {"nginx", "wireguard-wg0"}
    assert UnitOrder(rendered.host("gpu")).required_by("nftables") == {"appliance-gateway", "wireguard-wg0"}
    assert UnitOrder(rendered.host("gpu")).required_by("wireguard-wg0") == {"wireguard-wg0-peer-vps"}


def test_an_order_without_its_lines_is_another_one() -> None:
    """The texts of the units decide the order."""
    unordered = rendered.host("vps").edited(
        lambda name, text: re.sub("^After=.*\n", "", text, flags=re.MULTILINE) if name == "nginx.service" else text
    )
    assert UnitOrder(unordered).after("nginx") == set()


@pytest.mark.parametrize(
    "name", ["prometheus-nginx-exporter.service", "podman.socket", "appliance-telegram.service"]
)
def test_a_unit_that_the_tests_do_not_know_stops_them(name: str) -> None:
    host = rendered.host("vps")
    new = UnitFile(name, "[Service]\nExecStart=/bin/true\n", wanted_by=("multi-user.target",))
    with pytest.raises(
        UnknownUnitError, match=f"host vps starts {name}, which tests/network/order.py does not name"
    ):
        UnitOrder(dataclasses.replace(host, units={**host.units, name: new}))


@pytest.mark.parametrize("line", ["OnFailure=x.service", "EnvironmentFile=/etc/x", "LoadCredential=a:/b"])
def test_a_setting_that_the_machines_do_not_know_stops_the_tests(line: str) -> None:
    host = rendered.host("vps")
    unit = host.unit("nginx.service")
    changed = dataclasses.replace(unit, text=unit.text.replace("[Service]\n", f"[Service]\n{line}\n"))
    with pytest.raises(UnknownSettingError, match=f"nginx.service has {line}, which tests/network/settings.py"):
        UnitOrder(dataclasses.replace(host, units={**host.units, unit.name: changed}))


@pytest.mark.parametrize("row", NOT_APPLIED)
def test_a_row_names_a_setting_of_a_unit(row: str) -> None:
    units = [unit for host in ("gpu", "vps") for unit in UnitOrder(rendered.host(host)).units.values()]
    assert any(re.fullmatch(row, key) for unit in units for _, key, _ in unit.settings)


@pytest.mark.parametrize("row", NOT_RUN)
def test_a_row_names_a_unit_of_a_host(row: str) -> None:
    units = {name for host in ("gpu", "vps") for name in rendered.host(host).units}
    assert any(re.fullmatch(row, name) for name in units)


def test_wireguard_has_the_peers_of_the_description(site: NetworkSite) -> None:
    for host in site.hosts.values():
        shown = dict(line.split("\t") for line in host.machine.run("wg", "show", "wg0", "allowed-ips").splitlines())
        peers = host.description["tunnel"]["peers"].values()
        assert shown == {peer["public_key"]: f"{peer['address']}/32" for peer in peers}
        port = int(host.machine.run("wg", "show", "wg0", "listen-port"))
        # A host that connects by itself has any port, and its description names none.
        assert host.description["tunnel"].get("listen_port", port) == port
