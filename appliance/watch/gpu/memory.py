"""The watchdog's state on disk, and the facts of the machine that it reads from files."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from appliance.errors import StoreError
from appliance.system import files
from appliance.watch.gpu.state import CardState, ReplicaHang, WatchState


@dataclass(frozen=True, slots=True)
class WatchPaths:
    """The files of the watchdog, below ``root``: ``/`` except in tests."""

    root: Path = Path("/")

    def below(self, path: str) -> Path:
        """Return ``path`` below the root."""
        return self.root / path.lstrip("/")

    @property
    def kmsg(self) -> Path:
        """The kernel's log."""
        return self.below("/dev/kmsg")

    @property
    def state(self) -> Path:
        """The state that survives reboots."""
        return self.below("/var/lib/appliance-gpu-watch/state.json")

    @property
    def runtime(self) -> Path:
        """Files of this boot: the mark in the kernel's log, and the status for people."""
        return self.below("/run/appliance-gpu-watch")

    @property
    def metrics(self) -> Path:
        """The file of the metrics."""
        return self.below("/run/appliance-metrics/gpu_watch.prom")

    @property
    def wishes(self) -> Path:
        """The wishes for power limits of all agents."""
        return self.below("/run/appliance-card-power")

    @property
    def outbox(self) -> Path:
        """The outbox of the notices."""
        return self.below("/var/lib/appliance-notices")

    def boot_id(self) -> str:
        """Return the id of this boot."""
        return (files.read(self.below("/proc/sys/kernel/random/boot_id")) or b"").decode().strip()

    def uptime_s(self) -> float:
        """Return the seconds since the boot."""
        content = files.read(self.below("/proc/uptime"))
        return float(content.split()[0]) if content else time.clock_gettime(time.CLOCK_BOOTTIME)

    def on_battery(self) -> bool:
        """Return whether the power agent is busy with an outage; false without that agent.

        Until its phase is mains again, engines are off on purpose or start one by one.
        """
        state = _table(self.below("/run/appliance-power/state"))
        return state.get("on_battery") is True or state.get("phase", "mains") != "mains"

    def on_trial(self) -> bool:
        """Return whether a new generation is on trial: a reboot now would be its verdict, or begin its trial."""
        return _table(self.below("/var/lib/appliance/trial/record.json")).get("trial") is not None


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(files.read(path) or b"{}")
    except (StoreError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def load_state(path: Path) -> WatchState:
    """Return the state in ``path``; an empty one if there is none.

    Raises :class:`StoreError` if the file cannot be read, and :class:`msgspec.DecodeError` if it is damaged.
    """
    content = files.read(path)
    return WatchState() if content is None else msgspec.json.decode(content, type=WatchState)


def save_state(path: Path, state: WatchState) -> None:
    """Write ``state`` so that it survives a power cut; raises :class:`StoreError`."""
    files.make_folder(path.parent)
    files.replace(path, msgspec.json.encode(state).decode(), mode=0o600)
    files.sync_folder(path.parent)


def essence(state: WatchState) -> WatchState:
    """Return ``state`` without the parts that change at each look, and that need not survive a crash."""

    def card(one: CardState) -> CardState:
        heat = replace(one.heat, warm_looks=0, cool_since=None)
        return replace(one, heat=heat, missing_looks=0, ecc_uncorrected=None)

    def hang(one: ReplicaHang) -> ReplicaHang:
        return replace(one, up_since=None)

    return replace(
        state,
        clock=0.0,
        xids={},
        cards={index: card(one) for index, one in state.cards.items()},
        hangs={name: hang(one) for name, one in state.hangs.items()},
    )
