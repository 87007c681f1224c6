"""Calls of systemctl for an engine on demand, and its errors.

systemd does not run here: a script takes the place of systemctl, keeps the state of units and logs its arguments.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.contract.load import load
from appliance.engines.lifecycle import SystemdControl
from appliance.errors import StartError
from tests.conftest import ROOT

SITE = load(ROOT / "examples" / "one-card.toml")

SCRIPT = """#!/bin/sh
cd "$(dirname "$0")"
shows() { echo "ActiveState=$1"; echo "SubState=$2"; }
echo "$@" >> words
for last; do :; done
case "$1" in
  start) [ -e refuse ] && { echo "Access denied"; exit 4; }; shows activating start > "$last" ;;
  stop) rm -f "$last" ;;
  show) cat "$last" 2>/dev/null || shows inactive dead ;;
esac
"""


@pytest.fixture
def systemctl(tmp_path: Path) -> Path:
    script = tmp_path / "systemctl"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    return script


async def test_a_unit_is_started_without_waiting_for_its_model(systemctl: Path) -> None:
    control = SystemdControl(SITE, str(systemctl))
    unit = systemctl.parent / "appliance-engine-chat.1.service"
    assert not await control.alive("chat.1")
    await control.start("chat.1")
    assert await control.alive("chat.1"), "activating counts: the canary decides when it is ready"
    unit.write_text("ActiveState=active\nSubState=running\n")
    assert await control.alive("chat.1")
    unit.write_text("ActiveState=failed\nSubState=failed\n")
    assert not await control.alive("chat.1")
    unit.write_text("Job=4711\nActiveState=inactive\nSubState=dead\n")
    assert await control.alive("chat.1"), "its start waits for the weights to be verified"
    unit.write_text("ActiveState=activating\nSubState=auto-restart\n")
    assert not await control.alive("chat.1"), "it ended by itself; a restart by systemd does not count"
    await control.stop("chat.1")
    await control.close()
    words = (systemctl.parent / "words").read_text().splitlines()
    assert [line for line in words if not line.startswith("show")] == [
        "start --no-block appliance-engine-chat.1.service",
        "stop appliance-engine-chat.1.service",
    ], "units outlive the gateway: close() does not stop them"


async def test_an_error_of_systemctl_names_the_unit_and_its_log(systemctl: Path, tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    with pytest.raises(StartError, match=r"Access denied.*journalctl -u appliance-engine-chat\.service"):
        await SystemdControl(SITE, str(systemctl)).start("chat")


async def test_a_machine_without_systemd_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="is this a systemd host"):
        await SystemdControl(SITE, str(tmp_path / "nothing")).start("chat")
