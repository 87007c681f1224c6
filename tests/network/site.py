"""The whole site: clients and an attacker on the Internet, VPSs and GPU hosts as in hosts/*.nix."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.store.keys import KeyStore
from tests.conftest import ROOT, http, wait_until
from tests.network.client import NetworkClient
from tests.network.host import ETC, NetworkHost
from tests.network.internet import Internet
from tests.network.machine import NetworkMachine
from tests.network.probes import probe
from tests.nix import checker, rendered
from tests.nix.rendered import RenderedHost

PROGRAMS = (
    "ip",
    "nft",
    "wg",
    "wireguard-go",
    "nginx",
    "openssl",
    "ss",
    "unshare",
    "nsenter",
    "setpriv",
    "sysctl",
    "ping",
    "nmap",
)

NUMBERS = {"vps-a": 5, "vps-b": 6, "gpu": 50, "gpu-b": 52, "attacker": 66}
"""The last number of each machine's public address; hosts/gpu.nix connects to 203.0.113.5."""

TUNNEL = {"gpu": "10.77.0.1", "vps-a": "10.77.0.2", "gpu-b": "10.77.0.3", "vps-b": "10.77.0.4"}
CLIENT_NUMBERS = range(100, 140)
USERS = 40

MOCK_ENGINES: dict[str, Any] = {
    "settings": {"engines": {"agents": {"kind": "mock", "options": {}, "concurrency": 128}}}
}
"""The mock engines of a GPU host, which has no cards here. Two of them run 200 streams at once."""


def require_parts() -> None:
    """Skip the test with the reason if the network cannot be built."""
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: network namespaces, nft and raw sockets need root")
    for program in PROGRAMS:
        checker.require(program)
    rendered.require()
    if subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, check=False
    ).returncode:
        pytest.skip("NOT CHECKED: this machine does not allow network namespaces; its owner must allow them")
    if not Path("/dev/net/tun").exists():
        pytest.skip("NOT CHECKED: /dev/net/tun is missing, which wireguard-go needs")


@dataclass
class NetworkSite:
    """A running site."""

    folder: Path
    internet: Internet
    hosts: dict[str, NetworkHost]
    client: NetworkClient
    attacker: NetworkMachine
    public_keys: dict[str, str]

    def edge(self, name: str = "vps-a") -> str:
        """Return the public address of a VPS."""
        return address(name)

    def power_off(self, name: str) -> None:
        """Cut the power of a host: no peer gets a FIN."""
        self.internet.unplug(self.hosts[name].machine)
        self.hosts[name].machine.power_off()

    def power_on(self, name: str) -> None:
        """Boot a host again with its disk."""
        host = self.hosts[name]
        host.machine = NetworkMachine(name, self.folder)
        host.daemons = {}
        self.internet.plug(host.machine, NUMBERS[name])
        host.boot()

    def stats(self, name: str = "gpu") -> dict[str, int]:
        """Return the sums of the counters of all mock engines of a GPU host."""
        total: dict[str, int] = {}
        with self.hosts[name].machine.inside():
            for engine in ("8101", "8102"):
                for key, value in http(f"http://127.0.0.1:{engine}/stats").json.items():
                    total[key] = total.get(key, 0) + value
        return total

    def usage(self, name: str = "gpu") -> dict[str, dict[str, Any]]:
        """Return the output of `appliance usage` for each user."""
        config = f"{ETC}/appliance/appliance.json"
        argv = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "appliance", "usage", "--by", "user"]
        output = self.hosts[name].machine.run(*argv, "--format", "json", "--config", config)
        return {row["name"]: row for row in json.loads(output)}

    def wait_for_gateways(self, edge: str = "vps-a") -> None:
        """Wait until a VPS reaches every gateway through the tunnel."""
        vps = self.hosts[edge].machine
        for name, host in self.hosts.items():
            if name.startswith("gpu"):
                _wait_for_gateway(vps, host.tunnel_address, f"{edge} reaches {name}")

    def wait_for_tunnel(self, edge: str = "vps-a", timeout_s: float = 30) -> float:
        """Wait until a request passes from client to engine; return the seconds it took."""

        def served() -> bool:
            try:
                return self.client.get("/v1/models", edge=address(edge), timeout=3).status == 200
            except OSError:
                return False

        return wait_until(served, f"a request through {edge} succeeds", timeout_s)


def _wait_for_gateway(machine: NetworkMachine, target: str, event: str) -> None:
    wait_until(lambda: probe(machine, target, 8000) == "open", event, 30)


def address(name: str) -> str:
    """Return the public IPv4 address of a machine."""
    return f"203.0.113.{NUMBERS[name]}"


def data_folder(host: NetworkHost) -> Path:
    """Return the folder of keys and usage on the disk of a GPU host."""
    return host.machine.disk / Path(host.site["gateway"]["data_dir"]).relative_to("/var/lib")


def keypair(folder: Path, name: str) -> str:
    """Write a private key to ``folder``; return the public key.

    A name has the same key in each run, so that its evaluated configuration is that of an earlier run.
    """
    private = base64.b64encode(hashlib.sha256(f"key of {name} in the tests".encode()).digest()).decode()
    file = folder / f"{name}.key"
    file.touch(0o600)
    file.write_text(f"{private}\n")
    return subprocess.run(
        ["wg", "pubkey"], input=private, capture_output=True, text=True, check=True
    ).stdout.strip()


def authority(folder: Path, domain: str) -> str:
    """Create an authority and a certificate for ``domain`` in ``folder``; return the authority's certificate."""
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]

    def run(argv: list[str]) -> None:
        subprocess.run(argv, check=True, capture_output=True, cwd=folder)

    root = [*new, "-x509", "-subj", "/CN=Test authority", "-keyout", "root.key", "-out", "root.pem"]
    run([*root, "-addext", "keyUsage=critical,keyCertSign,cRLSign"])
    run([*new, "-subj", f"/CN={domain}", "-keyout", "key.pem", "-out", "site.csr"])
    (folder / "site.ext").write_text(f"subjectAltName=DNS:{domain}\nbasicConstraints=CA:FALSE\n")
    sign = ["openssl", "x509", "-req", "-in", "site.csr", "-CA", "root.pem", "-CAkey", "root.key", "-days", "2"]
    run([*sign, "-CAcreateserial", "-extfile", "site.ext", "-out", "fullchain.pem"])
    return (folder / "root.pem").read_text()


def configurations(
    names: tuple[str, ...], public: Mapping[str, str], more: Mapping[str, Mapping[str, Any]]
) -> dict[str, RenderedHost]:
    """Return the rendered configuration of each host; ``more`` has additional ``appliance.*`` settings by host."""
    edges = [name for name in names if name.startswith("vps")]
    gpus = [name for name in names if name.startswith("gpu")]

    def changes(name: str) -> dict[str, Any]:
        others = edges if name in gpus else gpus
        peers = {
            other.replace("vps-a", "vps"): {
                "publicKey": public[other], "address": TUNNEL[other],
                **({"endpoint": f"{address(other)}:51820"} if other in edges else {}),
            }
            for other in others
        }  # fmt: skip
        network: dict[str, Any] = {"wireguard": {"address": TUNNEL[name], "peers": peers}}
        own: dict[str, Any] = {"network": network}
        if name in edges:
            network["edge"] = {"gateways": [TUNNEL[gpu] for gpu in gpus]}
        else:
            own = merged(own, MOCK_ENGINES)
            # The gateway serves it under an account that this machine does not have.
            own = merged(own, {"assistant": {"enable": False}})
            own = merged(own, {"settings": {"gateway": {"host": TUNNEL[name]}}})
        return {"appliance": merged(own, more.get(name, {}))}

    def one(name: str) -> RenderedHost:
        return rendered.host("vps" if name in edges else "gpu", changes=json.dumps(changes(name)))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` updated by ``over``, recursively."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = (
            merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) and value else value
        )
    return result


@contextmanager
def running(
    folder: Path, *, edges: int = 1, gpus: int = 1, more: Mapping[str, Mapping[str, Any]] | None = None,
    boots: bool = True,
) -> Iterator[NetworkSite]:  # fmt: skip
    """Run a site with ``edges`` VPSs and ``gpus`` GPU hosts; close it in any case. ``boots`` starts their units."""
    require_parts()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    names = (*("vps-a", "vps-b")[:edges], *("gpu", "gpu-b")[:gpus])
    public = {name: keypair(folder, name) for name in names}
    configured = configurations(names, public, more or {})
    domain = json.loads(configured["vps-a"].etc_text("appliance/machine.json"))["edge"]["domain"]
    trust = authority(folder, domain)
    with ExitStack() as stack:
        internet = Internet(folder)
        stack.callback(internet.close)

        def machine(name: str, *numbers: int) -> NetworkMachine:
            made = NetworkMachine(name, folder)
            stack.callback(made.close)
            internet.plug(made, *numbers)
            return made

        hosts = {name: NetworkHost(machine(name, NUMBERS[name]), configured[name]) for name in names}
        for host in hosts.values():
            stack.callback(host.close)
        attacker = machine("attacker", NUMBERS["attacker"])
        outside = machine("client", *CLIENT_NUMBERS)
        for name, host in hosts.items():
            prepare(host, folder, name, domain)
        addresses = [f"203.0.113.{number}" for number in CLIENT_NUMBERS]
        client = NetworkClient(outside, trust, domain, address("vps-a"), addresses)
        client.keys = users(hosts, names)
        site = NetworkSite(folder, internet, hosts, client, attacker, public)
        if boots:
            for name in reversed(names):
                hosts[name].boot()
                hosts[name].require()
            for name in names[:edges]:
                site.wait_for_gateways(name)
                site.wait_for_tunnel(name)
        yield site


def prepare(host: NetworkHost, folder: Path, name: str, domain: str) -> None:
    """Write the files that a host has before its first boot: its key and, on a VPS, its certificate."""
    host.machine.write("/var/lib/wireguard/wg0.key", (folder / f"{name}.key").read_text())
    if name.startswith("vps"):
        for file, source in (("fullchain.pem", "fullchain.pem"), ("key.pem", "key.pem"), ("chain.pem", "root.pem")):
            host.machine.write(f"/var/lib/acme/{domain}/{file}", (folder / source).read_text())


def users(hosts: Mapping[str, NetworkHost], names: tuple[str, ...]) -> list[str]:
    """Create :data:`USERS` users in the store of every gateway; return their keys."""
    first, *others = [data_folder(hosts[name]) for name in names if name.startswith("gpu")]
    store = KeyStore(first)
    keys = [store.create(f"user{number}") for number in range(USERS)]
    store.close()
    for other in others:
        shutil.copytree(first, other)
    return keys
