"""The input of the checks: the host, its two descriptions, and the readings that several checks share."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from appliance.contract.machine import Machine
from appliance.contract.model import Gpu, Site
from appliance.doctor import nvidia, processes, readiness
from appliance.doctor.host import CannotLookError, HostReader
from appliance.doctor.placement import NumaPlacement, read_placement
from appliance.engines.argv import EngineReplica, started_replicas
from appliance.errors import ConfigError

GATEWAY_UNIT = "appliance-gateway.service"


@dataclass(frozen=True)
class CheckContext:
    """One host at one moment.

    ``base`` is the folder of the site's relative paths and ``now`` the time in Unix seconds. ``hashes``: whether to
    hash every model file. ``host_name`` is the name of this host if the operator passes it.
    """

    host: HostReader
    site: Site | None
    machine: Machine | None
    base: Path
    now: float
    hashes: bool = False
    host_name: str | None = None

    @cached_property
    def name(self) -> str:
        """Return the name of this host in the site.

        It is ``host_name``, the name in the machine's description, the site's only host, or the kernel's host name,
        in this order. Raises :class:`ConfigError` if the site has no such host. Checks of an unknown host would
        skip everything on it.
        """
        known = list(self.site.hosts) if self.site is not None else []
        only = known[0] if len(known) == 1 else socket.gethostname()
        name = self.host_name or (self.machine.host if self.machine is not None else only)
        if known and name not in known:
            raise ConfigError(
                f"this machine is {name!r}, which is not one of the site's hosts ({', '.join(known)}); "
                "set appliance.host, or pass --host NAME"
            )
        return name

    @property
    def has_gateway(self) -> bool:
        """Return whether the gateway runs here: the machine has its unit, or there is no machine's description."""
        return self.site is not None and (self.machine is None or GATEWAY_UNIT in self.machine.units)

    @cached_property
    def gpus(self) -> tuple[Gpu, ...]:
        """Return the cards of NVIDIA that the site lists for this host: those that no engine uses by Vulkan."""
        if self.site is None or self.name not in self.site.hosts:
            return ()
        engines = [engine for engine in self.site.engines.values() if engine.host == self.name]
        by_vulkan = {index for engine in engines if engine.device == "vulkan" for index in engine.gpus}
        return tuple(gpu for gpu in self.site.hosts[self.name].gpus if gpu.index not in by_vulkan)

    @cached_property
    def replicas(self) -> list[EngineReplica]:
        """Return the engine replicas whose processes run on this host."""
        site = self.site
        return [r for r in started_replicas(site) if r.engine.host == self.name] if site is not None else []

    @cached_property
    def on_cards(self) -> list[EngineReplica]:
        """Return the replicas that compute on cards of NVIDIA."""
        return [r for r in self.replicas if r.engine.device == "cuda" and r.engine.kind != "mock"]

    def data_folder(self, site: Site) -> Path:
        """Return the gateway's data folder."""
        return self.place(site.gateway.data_dir)

    def place(self, path: str) -> Path:
        """Return ``path`` of the configuration; a relative one begins at the working directory of the units."""
        return self.host.path(path) if Path(path).is_absolute() else self.base / path

    @cached_property
    def _userland(self) -> nvidia.Userland | CannotLookError:
        try:
            return nvidia.read_userland(self.host)
        except CannotLookError as error:
            return error

    @property
    def userland(self) -> nvidia.Userland:
        """Return the result of nvidia-smi, which runs once: with a driver that hangs it takes its whole timeout."""
        if isinstance(self._userland, CannotLookError):
            raise self._userland
        return self._userland

    @property
    def cards(self) -> tuple[nvidia.GpuStatus, ...]:
        """Return the cards that nvidia-smi lists; raises :class:`CannotLookError` if it fails."""
        if self.userland.error:
            raise CannotLookError(f"nvidia-smi: {self.userland.error}", "appliance doctor --only driver")
        return self.userland.cards

    @cached_property
    def listeners(self) -> list[processes.Listener]:
        """Return the listening sockets."""
        return processes.read_listeners(self.host)

    @cached_property
    def placements(self) -> dict[str, NumaPlacement | None]:
        """Return the placement of each engine on cards, without engines on demand that are not loaded.

        It is ``None`` for an engine that does not run or may not be read.
        """
        found: dict[str, NumaPlacement | None] = {}
        for replica in self.on_cards:
            owner = next((one.process for one in self.listeners if one.port == replica.port and one.process), None)
            if owner is not None:
                found[replica.name] = read_placement(self.host, owner.pid)
            elif replica.engine.residency == "always":
                found[replica.name] = None
        return found

    @cached_property
    def ready(self) -> readiness.GatewayReadiness:
        """Return what the gateway reports about itself and its engines."""
        if self.site is None:
            raise CannotLookError("no site is described on this host", "appliance doctor --config FILE")
        return readiness.read_ready(self.site.gateway.host, self.site.gateway.port)
