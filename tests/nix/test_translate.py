"""The translator: an unsupported option stops it, a supported one reaches the files."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.nix import checker, translate


def changed(host: str, option: str, *path: str | int, value: object) -> dict[str, Any]:
    """Return the values of ``host`` with the one at ``option`` and ``path`` replaced by ``value``."""
    values = dict(checker.host(host))
    target: Any = copy.deepcopy(values.get(option))
    values[option] = target
    if not path:
        values[option] = value
        return values
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return values


def everything(values: dict[str, Any]) -> None:
    translate.check(values)
    translate.nftables(values)
    translate.tunnel(values)
    if values.get("services.nginx.enable"):
        translate.nginx(values, translate.NginxPaths())


@pytest.mark.parametrize("host", ["gpu", "vps"])
def test_the_options_of_the_hosts_are_supported(host: str) -> None:
    everything(checker.host(host))


DOMAIN = "llm.example.org"
UNSUPPORTED: list[tuple[str, str, tuple[str | int, ...], object]] = [
    ("gpu", "networking.nat.enable", (), True),
    ("gpu", "services.prometheus.exporters.node.enable", (), True),
    ("gpu", "networking.firewall.enable", (), True),
    ("gpu", "networking.nftables.enable", (), False),
    ("gpu", "networking.nftables.tables", ("appliance", "enable"), False),
    ("gpu", "networking.wireguard.interfaces", ("wg0", "postSetup"), "ip route add default dev wg0"),
    ("gpu", "networking.wireguard.interfaces", ("wg0", "fwMark"), "0x1"),
    ("gpu", "networking.wireguard.interfaces", ("wg0", "peers", 0, "presharedKey"), "x"),
    ("gpu", "networking.wireguard.interfaces", ("wg0", "peers", 0, "newer"), 1),
    ("gpu", "networking.wireguard.interfaces", ("wg1",), {}),
    ("vps", "services.nginx.appendHttpConfig", (), "gzip on;"),
    ("vps", "services.nginx.upstreams", ("gateway", "newer"), 1),
    ("vps", "services.nginx.virtualHosts", (DOMAIN, "quic"), True),
    ("vps", "services.nginx.virtualHosts", (DOMAIN, "serverAliases"), ["other.example.org"]),
    ("vps", "services.nginx.virtualHosts", (DOMAIN, "locations", "/v1/", "root"), "/srv"),
    ("vps", "services.nginx.virtualHosts", (DOMAIN, "locations", "/v1/", "newer"), 1),
]


@pytest.mark.parametrize(("host", "option", "path", "value"), UNSUPPORTED)
def test_an_unsupported_option_stops_it(host: str, option: str, path: tuple[str | int, ...], value: object) -> None:
    with pytest.raises(translate.UntranslatedError, match=option.replace(".", r"\.")):
        everything(changed(host, option, *path, value=value))


def test_settings_reach_the_files() -> None:
    """A changed value of a supported option appears in its file."""
    tables = changed("gpu", "networking.nftables.tables", "appliance", "content", value="chain only { }")
    assert "chain only { }" in translate.nftables(tables)
    interface = changed("gpu", "networking.wireguard.interfaces", "wg0", "peers", 0, "presharedKeyFile", value="/k")
    assert translate.tunnel(interface).peers[0][2:4] == ["preshared-key", "/k"]
    listening = changed("gpu", "networking.wireguard.interfaces", "wg0", "listenPort", value=7)
    assert translate.tunnel(listening).interface == ["listen-port", "7"]
    sized = changed("vps", "services.nginx.clientMaxBodySize", value="7m")
    assert "client_max_body_size 7m;" in translate.nginx(sized, translate.NginxPaths())
    kernel = {"net.core.somaxconn": 5, "net.core.rmem_max": None, "vm.swappiness": 1}
    assert translate.sysctls({"boot.kernel.sysctl": kernel}) == {"net.core.somaxconn": "5"}
