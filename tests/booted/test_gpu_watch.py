"""The watchdog of the cards in its rendered sandbox: nvidia-smi hangs, and the watchdog itself hangs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.booted.machine import BootedMachine, require
from tests.booted.programs import NVIDIA_SMI
from tests.booted.site import GPU, BootedHost
from tests.conftest import wait_until
from tests.nix import rendered

pytestmark = pytest.mark.timeout(900)

UNIT = "appliance-gpu-watch.service"
HANG = "/etc/cards-hang"
IGNORES_SIGTERM = f"""
import os.path, signal, time
if os.path.exists("{HANG}"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    require()
    rendered.require()
    # systemd notices a missing sign of life after that time.
    texts = rendered.host("gpu", GPU).edited(lambda name, text: re.sub(r"^WatchdogSec=60$", "WatchdogSec=15",
                                                                       text, flags=re.MULTILINE))  # fmt: skip
    host = BootedHost(texts, BootedMachine(tmp_path_factory.mktemp("watch") / "watch"))
    host.install([UNIT])
    host.machine.write("usr/local/lib/nvidia-smi.py", f"{IGNORES_SIGTERM}{NVIDIA_SMI}")
    host.machine.boot()
    try:
        # After the boot: the journal of the machine must not read the log of this kernel.
        host.machine.run("mknod", "-m", "600", "/dev/kmsg", "c", "1", "11")
        host.machine.run("systemctl", "start", UNIT)
        yield host.machine
    finally:
        host.machine.stop()


def hangs(machine: BootedMachine) -> Any:
    """Return whether the driver hangs, as the watchdog reports it; ``None`` before its first look."""
    text = machine.run("cat", "/run/appliance-gpu-watch/status.json", check=False)
    return json.loads(text)["driver_hangs"] if text else None


def sign_of_life(machine: BootedMachine) -> int:
    """Return the time of the last sign of life, in microseconds."""
    return int(machine.show(UNIT, "WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"])


def test_a_hung_nvidia_smi_is_reported_and_stops_nothing(machine: BootedMachine) -> None:
    wait_until(lambda: hangs(machine) is False, "the first look", 200)
    before = machine.show(UNIT, "MainPID", "NRestarts")
    machine.run("touch", HANG)
    wait_until(lambda: hangs(machine) is True, "the hang is reported", 200)
    seen = sign_of_life(machine)

    def lives_on() -> bool:
        assert int(machine.run("pgrep", "--count", "--full", "nvidia-smi.py", check=False)) <= 1
        # Longer than the time after which systemd would restart it.
        return sign_of_life(machine) >= seen + 20_000_000

    wait_until(lives_on, "signs of life during the hang", 200)
    assert hangs(machine) is True
    machine.run("rm", HANG)
    wait_until(lambda: hangs(machine) is False, "the driver responds", 200)
    assert machine.show(UNIT, "MainPID", "NRestarts") == before
    assert before["NRestarts"] == "0"


def test_a_watchdog_that_hangs_is_restarted(machine: BootedMachine) -> None:
    before = machine.show(UNIT, "MainPID")["MainPID"]
    machine.run("kill", "-STOP", before)
    wait_until(lambda: machine.show(UNIT, "NRestarts")["NRestarts"] == "1", "systemd restarts it", 200)
    wait_until(lambda: machine.show(UNIT, "SubState")["SubState"] == "running", "it runs again", 200)
    assert "Watchdog timeout" in machine.journal(UNIT)
