"""The fans, through a library with the functions of NVIDIA's that records its calls."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.watch.gpu.fan_control import FanControl
from tests.conftest import wait_until
from tests.watch.gpu.machine import WatchedMachine

LIBRARY = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static void say(const char *name, long card, unsigned fan, unsigned speed) {
  FILE *file = fopen(getenv("FANS_LOG"), "a");
  fprintf(file, "%s %ld %u %u\n", name, card - 1, fan, speed);
  fclose(file);
}
static int refused(void) { return access(getenv("FANS_REFUSED"), F_OK) == 0 ? 4 : 0; }
const char *nvmlErrorString(int code) { return code == 4 ? "Insufficient Permissions" : "Not Found"; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned card, void **device) {
  if (card > 1) return 6;
  *device = (void *)(long)(card + 1);
  return 0;
}
int nvmlDeviceGetNumFans(void *device, unsigned *count) { *count = (long)device == 2 ? 0 : 2; return 0; }
int nvmlDeviceSetFanSpeed_v2(void *device, unsigned fan, unsigned speed) {
  if (refused()) return 4;
  say("set", (long)device, fan, speed);
  return 0;
}
int nvmlDeviceSetDefaultFanSpeed_v2(void *device, unsigned fan) { say("auto", (long)device, fan, 0); return 0; }
"""
"""Card 0 has two fans, card 1 none, and there is no card 2."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("NOT CHECKED: the library of the fans needs gcc")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(LIBRARY)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"], check=True)
    return folder


@pytest.fixture
def fans(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the calls."""
    for name, value in environment(library, tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "fans.log"


def environment(library: Path, folder: Path) -> dict[str, str]:
    return {
        "LD_LIBRARY_PATH": str(library),
        "FANS_LOG": str(folder / "fans.log"),
        "FANS_REFUSED": str(folder / "refused"),
    }


def calls(fans: Path) -> list[str]:
    return fans.read_text().splitlines() if fans.exists() else []


def test_the_fans_of_a_card_are_set_and_returned_to_the_driver(
    fans: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["gpu-watch", "fans", "0", "85"]) == 0
    assert main(["gpu-watch", "fans", "0", "auto"]) == 0
    assert calls(fans) == ["set 0 0 85", "set 0 1 85", "auto 0 0 0", "auto 0 1 0"]
    assert capfd.readouterr().out == "card 0: 2 fans at 85 %\ncard 0: 2 fans by the driver\n"


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["1", "80"], 1, "card 1: the fans cannot be set: the driver controls no fan of this card"),
        (["2", "80"], 1, "nvmlDeviceGetHandleByIndex_v2: Not Found"),
        (["0", "20"], 2, "'20' is not a speed: write 30 to 100 percent, or auto"),
        (["0", "fast"], 2, "'fast' is not a speed"),
    ],
)
def test_a_speed_that_is_refused_has_a_reason(
    words: list[str], code: int, error: str, fans: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["gpu-watch", "fans", *words]) == code
    assert error in capfd.readouterr().err
    assert calls(fans) == []


def test_without_the_library(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu-watch", "fans", "0", "80"]) == 1
    assert "libnvidia-ml.so.1 is not installed; it is part of the NVIDIA driver" in capfd.readouterr().err


def test_a_refusal_of_the_driver_is_kept_and_tried_later(fans: Path, tmp_path: Path) -> None:
    (tmp_path / "refused").touch()
    control = FanControl([0])

    def ticks(done: object) -> bool:
        control.tick({0: 100})
        return bool(control.failures) is done

    wait_until(lambda: ticks(done=True), "the refusal")
    assert control.failures == {0: "nvmlDeviceSetFanSpeed_v2: Insufficient Permissions"}
    control.restore(30)
    assert calls(fans)[-2:] == ["auto 0 0 0", "auto 0 1 0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_watchdog_returns_the_fans_to_the_driver(
    machine: WatchedMachine, library: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """At its end, and after it was killed at its next start."""
    machine.environment = environment(library, tmp_path)
    log = tmp_path / "fans.log"
    machine.start("--act", "--fans")
    wait_until(lambda: "auto 0 1 0" in calls(log), "the fans are the driver's at the start", 60)
    machine.cards({0: {"temperature.gpu.tlimit": 9}, 1: {}})
    wait_until(lambda: "set 0 1 80" in calls(log), "the fans are raised", 60)
    machine.cards({0: {"temperature.gpu.tlimit": 1}, 1: {}})
    wait_until(lambda: "set 0 1 100" in calls(log), "the fans are raised fully", 60)
    assert machine.process is not None
    if number is signal.SIGTERM:
        machine.stop()
    else:
        machine.cards({0: {}, 1: {}})
        machine.process.kill()
        machine.process.wait()
        (machine.root / "var/lib/appliance-gpu-watch/state.json").unlink()
        assert calls(log)[-1] == "set 0 1 100"
        machine.start("--act", "--fans")
        wait_until(lambda: calls(log)[-1] == "auto 0 1 0", "the fans are the driver's again", 60)
    assert calls(log)[-2:] == ["auto 0 0 0", "auto 0 1 0"]
    assert "card 1: the fans cannot be set: the driver controls no fan of this card" in machine.log


def test_fans_are_left_alone_without_the_option(machine: WatchedMachine, library: Path, tmp_path: Path) -> None:
    machine.environment = environment(library, tmp_path)
    machine.cards({0: {"temperature.gpu.tlimit": 1}, 1: {}})
    machine.start("--act")
    wait_until(lambda: any("-pl 400" in line for line in machine.limits()), "the limit", 60)
    machine.stop()
    assert calls(tmp_path / "fans.log") == []
    assert json.loads((machine.root / "run/appliance-gpu-watch/status.json").read_text())["act"]
    assert os.environ.get("FANS_LOG") is None
