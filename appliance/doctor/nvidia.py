"""Reads what the NVIDIA driver says of itself and its cards: /proc, nvidia-smi's CSV, the kernel's log."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass

from appliance.doctor.host import CannotLookError, HostReader

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
        """595 of 595.71.05."""
        return int(self.version.split(".")[0])


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """A card as nvidia-smi shows it. A figure that the card does not give is ``None``."""

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
    throttle: int
    driver: str


@dataclass(frozen=True, slots=True)
class Userland:
    """What nvidia-smi answered: cards, or why not."""

    cards: tuple[GpuStatus, ...]
    error: str = ""


def read_module(host: HostReader) -> Module | None:
    """The loaded kernel module; ``None`` when there is none."""
    return parse_module(host.text(DRIVER_FILE) or "")


def parse_module(text: str) -> Module | None:
    """The version line of /proc/driver/nvidia/version."""
    match = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text)
    return None if match is None else Module(match[1], "Open Kernel Module" in text)


def read_userland(host: HostReader) -> Userland:
    """Every card, by ``nvidia-smi``. Raises :class:`CannotLookError` where it is missing or hangs."""
    done = host.run("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
    if done.code != 0:
        return Userland((), done.first_error)
    return Userland(parse_cards(done.out))


def parse_cards(text: str) -> tuple[GpuStatus, ...]:
    """The CSV of :data:`FIELDS`. Raises :class:`CannotLookError` where it is something else."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    try:
        return tuple(_card(dict(zip(FIELDS, row, strict=True))) for row in rows)
    except ValueError:
        raise CannotLookError(
            f"nvidia-smi answers what is no row of cards: {text.strip()[:80]!r}", "run `nvidia-smi -q` by hand"
        ) from None


def _card(row: dict[str, str]) -> GpuStatus:
    return GpuStatus(
        index=int(row["index"]),
        name=row["name"],
        bus=sysfs_bus(row["pci.bus_id"]),
        memory_mib=_whole(row["memory.total"]),
        power_limit_w=_figure(row["power.limit"]),
        power_default_w=_figure(row["power.default_limit"]),
        temperature_c=_whole(row["temperature.gpu"]),
        persistent=row["persistence_mode"] == "Enabled",
        link_width=_whole(row["pcie.link.width.current"]),
        link_width_max=_whole(row["pcie.link.width.max"]),
        throttle=int(row["clocks_event_reasons.active"], 16)
        if row["clocks_event_reasons.active"].startswith("0x")
        else 0,
        driver=row["driver_version"],
    )


def _figure(cell: str) -> float | None:
    # "[N/A]", "[Not Supported]", "[Unknown Error]": the card has no such figure.
    return None if cell.startswith("[") or cell == "N/A" else float(cell)


def _whole(cell: str) -> int | None:
    figure = _figure(cell)
    return None if figure is None else int(figure)


def sysfs_bus(bus: str) -> str:
    """``00000000:C1:00.0`` of nvidia-smi as ``0000:c1:00.0`` of /sys/bus/pci/devices."""
    domain, _, rest = bus.partition(":")
    return f"{domain[-4:]}:{rest}".lower()
