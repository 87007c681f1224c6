"""A machine for the running watchdog: files below a folder, and stand-ins of nvidia-smi and systemctl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from appliance.notices.notice import Notice
from appliance.watch.gpu.card_reader import FIELDS
from tests.conftest import ROOT, wait_until
from tests.preloaded import ChildProcess, start_program

NVIDIA_SMI = """#!/bin/sh
if [ "$3" = -pl ]; then
  grep -q "^$2, " {folder}/cards.csv || {{ echo "No devices were found"; exit 6; }}
  echo "$*" >> {folder}/limits
else
  cat {folder}/cards.csv
fi
"""

SYSTEMCTL = """#!/bin/sh
echo "$*" >> {folder}/systemctl
"""

CARD = {
    "name": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "temperature.gpu": 60,
    "temperature.gpu.tlimit": 30, "power.draw.instant": 400.5, "fan.speed": 53,
    "memory.used": 1000, "memory.total": 97887, "utilization.gpu": 90, "gpu_recovery_action": "None",
    "clocks_event_reasons.active": "0x0000000000000000", "ecc.errors.uncorrected.volatile.total": 0,
    "clocks_event_reasons_counters.hw_thermal_slowdown": 2500000, "remapped_rows.failure": "No",
}  # fmt: skip


@dataclass
class WatchedMachine:
    """The folder of the machine, and the watchdog that runs on it."""

    folder: Path
    config: Path
    bus: str
    """First part of the addresses of its cards, so that other tests log nothing about them."""
    pace: float = 20.0
    any_facility: bool = True
    process: ChildProcess | None = None
    boot: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        programs = self.folder / "bin"
        programs.mkdir(parents=True)
        self.program("nvidia-smi", NVIDIA_SMI.format(folder=self.folder))
        self.program("systemctl", SYSTEMCTL.format(folder=self.folder))
        self.cards({0: {}, 1: {}})
        for name in ("dev", "var/lib", "proc/sys/kernel/random", "run/appliance-metrics"):
            (self.folder / "root" / name).mkdir(parents=True)
        (self.root / "dev/kmsg").symlink_to("/dev/kmsg")
        self.boots(uptime_s=100_000)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def log(self) -> str:
        return (self.folder / "watch.log").read_text()

    def program(self, name: str, text: str) -> None:
        draft = self.folder / f"{name}.new"
        draft.write_text(text)
        draft.chmod(0o755)
        draft.rename(self.folder / "bin" / name)

    def address(self, card: int) -> str:
        return f"{self.bus}:{card:02x}"

    def cards(self, cards: dict[int, dict[str, Any]]) -> None:
        """Replace the cards that nvidia-smi lists; a card has the values of a healthy one and its own."""
        lines = []
        for index, own in cards.items():
            values = {**CARD, "index": index, "pci.bus_id": f"0000{self.address(index)}.0", **own}
            lines.append(", ".join(str(values.get(name, "[N/A]")) for name in FIELDS))
        draft = self.folder / "cards.new"
        draft.write_text("".join(f"{line}\n" for line in lines))
        draft.rename(self.folder / "cards.csv")

    def boots(self, *, uptime_s: float = 0.0) -> None:
        """Give the machine the identity of a new boot; ``/run`` is empty in it."""
        self.boot += 1
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"boot-{self.boot}\n")
        (self.root / "proc/uptime").write_text(f"{uptime_s} 0\n")

    def start(self, *options: str) -> None:
        words = [
            "gpu-watch", "serve", "--config", str(self.config), "--host", "here", "--root", str(self.root),
            "--interval", "0.2", "--pace", str(self.pace), *options,
        ]  # fmt: skip
        if self.any_facility:
            words.append("--any-facility")
        environment = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        with (self.folder / "watch.log").open("ab") as output:
            argv = [sys.executable, "-m", "appliance", *words]
            self.process = start_program(argv, output, {**environment, **self.environment})
        count = self.log.count("watching cards")
        wait_until(lambda: self.log.count("watching cards") > count or not self.alive(), "the watchdog", 60)
        assert self.alive(), self.log

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                code = self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
            self.process = None
            assert code == 0, self.log
            assert "Traceback" not in self.log, self.log

    def kernel_logs(self, card: int, number: int, text: str = "pid='<unknown>', name=<unknown>, x") -> None:
        """Write a line of the driver to the kernel's log."""
        Path("/dev/kmsg").write_text(f"NVRM: Xid (PCI:{self.address(card)}): {number}, {text}\n")

    def notices(self) -> list[Notice]:
        """The notices about the cards of this machine, oldest first."""
        files = sorted((self.root / "var/lib/appliance-notices").glob("[!.]*.json"))
        found = [msgspec.json.decode(file.read_bytes(), type=Notice) for file in files]
        return [one for one in found if not one.subject.startswith("the card at")]

    def kinds(self) -> list[tuple[str, str, bool]]:
        return [(one.kind, one.subject, one.ended) for one in self.notices()]

    def systemctl(self) -> list[str]:
        """The calls of systemctl."""
        file = self.folder / "systemctl"
        return file.read_text().splitlines() if file.exists() else []

    def limits(self) -> list[str]:
        """The power limits that were set, oldest first."""
        file = self.folder / "limits"
        return file.read_text().splitlines() if file.exists() else []

    def state(self) -> dict[str, Any]:
        table: dict[str, Any] = json.loads((self.root / "var/lib/appliance-gpu-watch/state.json").read_text())
        return table

    def metrics(self) -> str:
        return (self.root / "run/appliance-metrics/gpu_watch.prom").read_text()
