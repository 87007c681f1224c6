"""The contract of one machine: its pins, memory, tunnel, firewall, edge and weights.

The site (:mod:`appliance.contract.model`) describes which model runs on which host, and is the same on every host.
This is the other half of the contract, different on each. NixOS renders it to /etc/appliance/machine.json, and
``appliance doctor`` compares the running machine with it. A VPS has only this half: no models, no engines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from appliance.contract.load import parse, read
from appliance.contract.model import Name, Port, Section
from appliance.errors import ConfigError

PublicKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{43}=$")]
Folder = Annotated[str, StringConstraints(pattern=r"^/")]


class Pins(Section):
    """The tested set of a GPU host (modules/pins.nix)."""

    kernel: str = Field(description="Series of the kernel.", examples=["6.18"])
    driver: str = Field(description="Version of the NVIDIA driver.", examples=["595.71.05"])
    cuda: str = Field(description="CUDA runtime inside the engine's environment.", examples=["13.0"])
    python: str = Field(description="Python of that environment.", examples=["3.13"])
    torch: str = Field(description="torch in it.", examples=["2.14.0"])
    vllm: str = Field(description="vLLM in it.", examples=["0.33.0"])


class Cards(Section):
    """Driver and settings of the cards."""

    pins: Pins = Field(description="The tested set.")
    peer_to_peer: Literal["driver", "iommu-off", "off"] | None = Field(
        default=None, description="How cards reach each other's memory."
    )
    numa_pinned: bool = Field(default=False, description="Whether engines run on the NUMA node of their cards.")


class Memory(Section):
    """Huge pages and mappings."""

    hugepages: int = Field(ge=0, description="2 MiB pages reserved at boot.")
    transparent_hugepages: Literal["madvise", "always", "never"] = Field(description="The kernel's mode.")
    max_map_count: int = Field(gt=0, description="Memory mappings that a process may have.")


class Peer(Section):
    """The other end of the tunnel."""

    public_key: PublicKey = Field(description="Public key.")
    address: str = Field(description="Address inside the tunnel.")
    endpoint: str | None = Field(
        default=None, description="Address to which this host connects; absent if the peer connects to this host."
    )


class Tunnel(Section):
    """The WireGuard interface."""

    interface: str = Field(
        pattern=r"^[A-Za-z0-9_.-]{1,15}$", description="Name of the interface.", examples=["wg0"]
    )
    address: str = Field(description="Address of this host inside the tunnel.")
    listen_port: Port | None = Field(
        default=None, description="UDP port; absent on a host that accepts no connections."
    )
    mtu: int = Field(ge=1280, le=1500, description="MTU in bytes.")
    private_key_file: Folder = Field(description="Path of the private key.")
    peers: dict[Name, Peer] = Field(min_length=1, description="Peers by name.")


class Opening(Section):
    """A port that other machines may reach."""

    protocol: Literal["tcp", "udp"] = Field(description="Protocol.")
    port: Port = Field(description="Port number.")
    by: str = Field(description="Service that listens on it.", examples=["ssh"])
    interface: str | None = Field(
        default=None, description="The only interface on which it is open; absent for all interfaces."
    )


class RankOpening(Section):
    """Ports of an engine over several hosts, open to its other hosts: fixed ones, and those of the kernel."""

    interface: str = Field(description="The only interface on which they are open.")
    ports: tuple[Port, ...] = Field(description="`master_port` and the next one, or the port of Ray's head.")


class Firewall(Section):
    """The nftables table."""

    family: Literal["inet"] = Field(default="inet", description="Address family of the table.")
    table: str = Field(default="appliance", description="Name of the table.")
    openings: tuple[Opening, ...] = Field(description="Open ports; all other packets are dropped.")
    ranks: tuple[RankOpening, ...] = Field(
        default=(), description="Ports of engines over several hosts, open to their other hosts only."
    )
    extra_input: str = Field(
        default="", description="Further rules of the operator; the doctor does not report the ports in them."
    )


class Edge(Section):
    """nginx with TLS, on a VPS."""

    domain: str = Field(description="The public host name.")
    https_port: Port = Field(default=443, description="Port on which nginx serves it.")
    certificate: Folder = Field(description="Path of the certificate with its chain, in PEM.")
    nginx: str = Field(description="Version of nginx.", examples=["1.30.7"])
    http2: bool = Field(default=False, description="Whether nginx offers HTTP/2.")
    gateways: tuple[str, ...] = Field(min_length=1, description="The gateways behind it, ADDRESS:PORT.")


class Weights(Section):
    """Model files on disk."""

    store: Folder = Field(description="The model hub's cache folder (HF_HOME).")
    lock: Folder | None = Field(default=None, description="Path of models.lock; absent if no file is verified.")


class NoticeSender(Section):
    """The sender of notices."""

    status: Folder = Field(description="Path of the file with its state.")


class MonitoredUps(Section):
    """The UPS that NUT monitors on this host."""

    name: str = Field(min_length=1, description="Its name in upsd.", examples=["ups"])
    port: Port = Field(default=3493, description="Port of upsd on loopback.")
    driver: str = Field(min_length=1, description="Driver of NUT.", examples=["usbhid-ups"])


class Observed(Section):
    """The monitoring of this host."""

    prometheus: Port = Field(default=9090, description="Port of Prometheus on loopback.")
    public_url: str | None = Field(
        default=None,
        description="Public address of the service, without a path.",
        examples=["https://llm.example.org"],
    )


class Machine(Section):
    """One machine. An absent part does not exist on it."""

    version: Literal[1] = Field(description="Version of this contract.")
    host: Name = Field(description="Name of the machine in the site's hosts.")
    units: tuple[str, ...] = Field(default=(), description="systemd units that must be active.")
    kernel_parameters: tuple[str, ...] = Field(default=(), description="Kernel parameters that must be set.")
    cards: Cards | None = Field(default=None, description="NVIDIA cards.")
    memory: Memory | None = Field(default=None, description="Huge pages and mappings.")
    tunnel: Tunnel | None = Field(default=None, description="WireGuard.")
    firewall: Firewall | None = Field(default=None, description="nftables.")
    edge: Edge | None = Field(default=None, description="nginx with TLS.")
    ups: MonitoredUps | None = Field(default=None, description="UPS.")
    weights: Weights | None = Field(default=None, description="Model files.")
    observed: Observed | None = Field(default=None, description="Monitoring.")
    notices: NoticeSender | None = Field(default=None, description="The sender of notices.")


def load_machine(path: Path) -> Machine:
    """Return the machine that ``path`` describes.

    Raises :class:`ConfigError` with one line per error: file, key, error, fix.
    """
    table = parse(path, read(path))
    try:
        return Machine.model_validate_json(json.dumps(table))
    except ValidationError as error:
        lines = (
            f"{path}: {'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg'].lower()}; "
            "modules/doctor.nix renders this file: switch to a system of this version"
            for one in error.errors(include_url=False)
        )
        raise ConfigError("\n".join(lines)) from None
