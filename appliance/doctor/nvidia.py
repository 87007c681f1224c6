"""Reads the NVIDIA driver and its cards: the kernel module in /proc, and `nvidia-smi`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.doctor.host import CannotLookError, HostReader
from appliance.system.nvidia_smi import ClocksEventReason, GpuRow, parse_rows, query_command

DRIVER_FILE = "/proc/driver/nvidia/version"

FIELDS = (
    "index", "name", "pci.bus_id", "memory.total", "power.limit", "power.default_limit", "temperature.gpu",
    "persistence_mode", "pcie.link.width.current", "pcie.link.width.max", "clocks_event_reasons.active",
    "driver_version",
)  # fmt: skip
"""Fields that nvidia-smi has had since R535, the first with `clocks_event_reasons`."""


@dataclass(frozen=True, slots=True)
class Module:
    """The loaded kernel module."""

    version: str
    open: bool

    @property
    def major(self) -> int:
        """Return the major version: 595 of 595.71.05."""
        return int(self.version.split(".")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStatus:
    """A card as nvidia-smi shows it. A figure that the card does not report is ``None``."""

    index: int
    name: str
    bus: str
    memory_mib: int | None
    power_limit_w: float | None
    power_default_w: float | None
    temperature_c: int | None
    persistent: bool
    link_width: int | None
    link_width_max: int | None
    throttle: ClocksEventReason
    driver: str


@dataclass(frozen=True, slots=True)
class Userland:
    """The result of nvidia-smi: cards, or its error message."""

    cards: tuple[GpuStatus, ...]
    error: str = ""


def read_module(host: HostReader) -> Module | None:
    """Read the loaded kernel module; ``None`` if there is none."""
    return parse_module(host.text(DRIVER_FILE) or "")


def parse_module(text: str) -> Module | None:
    """Parse the version line of /proc/driver/nvidia/version."""
    match = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text)
    return None if match is None else Module(match[1], "Open Kernel Module" in text)


def read_userland(host: HostReader) -> Userland:
    """Read every card. Raises :class:`CannotLookError` if nvidia-smi is missing, hangs or prints something else."""
    done = host.run(*query_command(FIELDS))
    if done.code != 0:
        return Userland((), done.first_error)
    try:
        return Userland(tuple(_card(row) for row in parse_rows(done.out, FIELDS)))
    except ValueError as error:
        raise CannotLookError(f"the output of nvidia-smi is {error}", "run `nvidia-smi -q` by hand") from None


def _card(row: GpuRow) -> GpuStatus:
    return GpuStatus(
        index=int(row.text("index")),
        name=row.text("name"),
        bus=sysfs_bus(row.text("pci.bus_id")),
        memory_mib=row.integer("memory.total"),
        power_limit_w=row.number("power.limit"),
        power_default_w=row.number("power.default_limit"),
        temperature_c=row.integer("temperature.gpu"),
        persistent=row.text("persistence_mode") == "Enabled",
        link_width=row.integer("pcie.link.width.current"),
        link_width_max=row.integer("pcie.link.width.max"),
        throttle=ClocksEventReason(row.bits("clocks_event_reasons.active")),
        driver=row.text("driver_version"),
    )


def sysfs_bus(bus: str) -> str:
    """Convert ``00000000:C1:00.0`` of nvidia-smi into ``0000:c1:00.0`` of /sys/bus/pci/devices."""
    domain, _, rest = bus.partition(":")
    return f"{domain[-4:]}:{rest}".lower()
