"""The scripts of the last minute of a battery, as they are rendered, with stand-ins for the programs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.nix import rendered

EVERYTHING = "tests/nix/everything.nix"
PROGRAM = re.compile(r"/nix/store/[0-9a-z]{32}-[^/\s]+/s?bin/([a-z-]+)")


def script(unit: str, part: str, folder: Path, **codes: int) -> tuple[str, Path]:
    """Return the rendered script of ``unit`` whose name has ``part``, and the file with the calls of the programs.

    Each program writes its call; ``codes`` are the exit codes of some.
    """
    rendered.require()
    host = rendered.host("gpu", EVERYTHING)
    path = next(word for word in re.findall(r"/nix/store/\S+", host.units[unit].text) if part in word)
    text = host.texts[path].text
    calls = folder / "calls"
    for name in set(PROGRAM.findall(text)) - {"bash"}:
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\nexit {codes.get(name, 0)}\n')
        program.chmod(0o755)
    return PROGRAM.sub(lambda found: shutil.which("bash") or "" if found[1] == "bash" else f"{folder}/{found[1]}",
                       text), calls  # fmt: skip


def run(text: str, calls: Path) -> list[str]:
    subprocess.run(["bash", "-c", text], check=True, timeout=60)
    return calls.read_text().splitlines()


def test_a_host_that_is_still_alive_reboots(tmp_path: Path) -> None:
    text, calls = script("ups-killpower.service", "appliance-power-race", tmp_path)
    assert run(text, calls) == ["sync ", "sleep 80", "systemctl reboot --force --force"]


@pytest.mark.parametrize("code", [0, 1])
def test_a_host_without_upsmon_powers_off_itself(tmp_path: Path, code: int) -> None:
    text, calls = script("appliance-power-off.service", "appliance-power-off", tmp_path, upsmon=code)
    expected = ["upsmon -c fsd", "sleep 45", "touch /run/killpower", "systemctl poweroff"]
    assert run(text, calls) == (expected if code == 0 else [expected[0], *expected[2:]])


def test_the_order_to_the_ups_is_first_and_may_fail() -> None:
    rendered.require()
    text = rendered.host("gpu", EVERYTHING).units["ups-killpower.service"].text
    commands = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert re.fullmatch(r"-/nix/store/\S+/bin/upsdrvctl -u root shutdown", commands[0])
    assert "appliance-power-race" in commands[1]
    assert "ConditionPathExists=/run/killpower" in text
