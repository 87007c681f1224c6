"""The running watchdog: real processes, the real kernel's log, a real gateway."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from appliance.gateway import control_client
from tests.conftest import chat, start_mock, wait_until
from tests.smalldisk import mounted
from tests.watch.gpu.conftest import WatchedService
from tests.watch.gpu.machine import WatchedMachine

LOST = ("card-lost", "card 0", False)


def look_done(machine: WatchedMachine) -> None:
    wait_until((machine.root / "run/appliance-gpu-watch/status.json").exists, "the first look", 60)


@pytest.mark.usefixtures("kernel_log")
def test_a_lost_card_is_drained_within_two_seconds_and_the_other_one_serves(watched: WatchedService) -> None:
    """Case 2: Xid 79 in the kernel's log, then 13. One notice, and 13 is silent."""
    machine, service = watched.machine, watched.service
    machine.start("--act")
    look_done(machine)
    began = time.monotonic()
    machine.kernel_logs(0, 79)
    machine.kernel_logs(0, 13)
    wait_until(lambda: watched.drains()["left"] is not None, "the drain", 60)
    assert time.monotonic() - began < 2
    assert watched.drains() == {"left": "gpu-watch: card 0: Xid 79", "right": None}
    for number in range(6):
        response = service.post("/v1/chat/completions", chat(f"fake: tokens=1 #{number}"))
        assert response.status == 200
        assert service.row(response)["engine"] == "right"
    wait_until(lambda: machine.systemctl() == ["reboot --no-block"], "the reboot", 60)
    assert machine.kinds() == [LOST]
    assert 'appliance_gpu_xids_total{card="0",xid="13"} 1.0' in machine.metrics()


@pytest.mark.usefixtures("kernel_log")
def test_report_only_reports_and_changes_nothing(watched: WatchedService) -> None:
    machine = watched.machine
    machine.start()
    look_done(machine)
    machine.kernel_logs(0, 79)
    machine.cards({0: {"temperature.gpu.tlimit": 1}, 1: {}})
    wait_until(lambda: len(machine.kinds()) == 2, "both notices", 60)
    assert {kind for kind, _, _ in machine.kinds()} == {"card-lost", "card-hot"}
    assert all("Report only: it would" in one.text for one in machine.notices())
    wait_until(lambda: 'appliance_gpu_rung{card="0"} 7.0' in machine.metrics(), "the rung", 60)
    assert watched.drains() == {"left": None, "right": None}
    assert (machine.systemctl(), machine.limits()) == ([], [])
    assert "appliance_gpu_watch_acting 0.0" in machine.metrics()


def test_a_hot_card_gets_less_power_and_returns(machine: WatchedMachine) -> None:
    """Case 1 with real children: watts step by step, and the site's limit at the end."""
    machine.pace = 600
    machine.start("--act")
    wait_until(lambda: len(machine.limits()) >= 2, "the limits of the site", 60)
    assert machine.limits() == ["-i 0 -pl 450", "-i 1 -pl 450"]
    machine.cards({0: {"temperature.gpu.tlimit": 2}, 1: {}})
    wait_until(lambda: "-i 0 -pl 150" in machine.limits(), "the floor", 60)
    machine.cards({0: {}, 1: {}})
    wait_until(lambda: machine.kinds()[-1:] == [("card-hot", "card 0", True)], "the end of the heat", 60)
    wait_until(lambda: machine.limits()[-1] == "-i 0 -pl 450", "the limit of the site", 60)
    watts = [int(line.split()[-1]) for line in machine.limits() if line.startswith("-i 0")]
    lowest = watts.index(150)
    assert watts[: lowest + 1] == sorted(watts[: lowest + 1], reverse=True)
    assert watts[lowest:] == sorted(watts[lowest:])
    assert machine.kinds() == [("card-hot", "card 0", False), ("card-hot", "card 0", True)]


def test_the_limit_of_the_power_agent_is_never_raised(machine: WatchedMachine) -> None:
    wishes = machine.root / "run/appliance-card-power"
    wishes.mkdir(parents=True)
    (wishes / "power.json").write_text('{"0": 200}')
    machine.start("--act")
    wait_until(lambda: len(machine.limits()) >= 2, "the limits", 60)
    machine.cards({0: {"enforced.power.limit": 450}, 1: {}})
    wait_until(lambda: machine.limits().count("-i 0 -pl 200") == 2, "the limit is set again", 60)
    assert "-i 0 -pl 450" not in machine.limits()


@pytest.mark.usefixtures("kernel_log")
def test_repeated_errors_reboot_twice_and_then_degrade(machine: WatchedMachine) -> None:
    """Case 3: 119 and 154 after each boot; the count is on disk."""
    machine.pace = 100
    words = "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"
    for number in (1, 2, 3):
        machine.start("--act")
        look_done(machine)
        machine.kernel_logs(0, 119)
        machine.kernel_logs(0, 154, words)
        if number < 3:
            wait_until(lambda: machine.systemctl() == ["reboot --no-block"] * number, "the reboot", 60)  # noqa: B023
        else:
            wait_until(lambda: len(machine.kinds()) == 2, "the report", 60)
        machine.stop()
        # A boot that is old enough for the next reboot.
        machine.boots(uptime_s=1000)
        (machine.root / "run/appliance-gpu-watch/status.json").unlink()
    assert machine.systemctl() == ["reboot --no-block"] * 2
    assert machine.kinds() == [LOST, LOST]
    assert "2 reboots a day did not help" in machine.notices()[1].text


@pytest.mark.usefixtures("kernel_log")
def test_a_full_disk_means_no_reboot(machine: WatchedMachine, tmp_path: Path) -> None:
    """Without a count, each boot could request the next one."""
    state = machine.root / "var/lib/appliance-gpu-watch"
    with mounted(tmp_path / "small") as disk:
        state.symlink_to(disk.folder)
        machine.start("--act")
        look_done(machine)
        disk.fill()
        machine.kernel_logs(0, 79)
        wait_until(lambda: ("card-waits", "card 0", False) in machine.kinds(), "the report", 60)
        assert machine.systemctl() == []
        assert machine.log.count("the state cannot be written, so no reboot is requested") == 1
        disk.free()
        wait_until(lambda: machine.systemctl() == ["reboot --no-block"], "the reboot", 60)
        assert len(machine.state()["reboots"]) == 1
        machine.stop()


@pytest.mark.usefixtures("kernel_log")
@pytest.mark.parametrize("obstacle", ["battery", "trial"])
def test_a_reboot_waits_for_mains_and_for_the_end_of_a_trial(machine: WatchedMachine, obstacle: str) -> None:
    if obstacle == "battery":
        file, text = machine.root / "run/appliance-power/state", '{"on_battery": true, "at": 5.0}'
    else:
        file = machine.root / "var/lib/appliance/trial/record.json"
        text = '{"trial": {"candidate": {"system": "/nix/store/a"}, "phase": "booted"}}'
    file.parent.mkdir(parents=True)
    file.write_text(text)
    machine.start("--act")
    look_done(machine)
    machine.kernel_logs(0, 79)
    wait_until(lambda: machine.kinds()[:1] == [LOST], "the notice", 60)
    # Long after the reboot would have been requested: its requests had 1.5 s.
    seen = machine.metrics()
    for _ in range(15):
        wait_until(lambda: machine.metrics() != seen, "a look", 60)  # noqa: B023
        seen = machine.metrics()
    assert machine.systemctl() == []
    file.write_text('{"on_battery": false, "trial": null}')
    wait_until(lambda: machine.systemctl() == ["reboot --no-block"], "the reboot", 60)


@pytest.mark.usefixtures("kernel_log")
def test_an_error_is_handled_once_over_restarts_of_the_watchdog(machine: WatchedMachine) -> None:
    machine.start()
    look_done(machine)
    machine.kernel_logs(0, 54)
    wait_until(lambda: len(machine.kinds()) == 1, "the notice", 60)
    machine.stop()
    machine.kernel_logs(1, 54)
    machine.start()
    wait_until(lambda: len(machine.kinds()) == 2, "the notice of the error in between", 60)
    machine.stop()
    assert machine.kinds() == [("card-xid", "card 0", False), ("card-xid", "card 1", False)]
    # Errors of unknown cards are those of other tests.
    counts = {key: count for key, count in machine.state()["xids"].items() if not key.startswith("?")}
    assert counts == {"0:54": 1, "1:54": 1}


@pytest.mark.usefixtures("kernel_log")
def test_messages_of_processes_count_only_with_the_flag(machine: WatchedMachine) -> None:
    machine.pace = 1
    machine.start()
    look_done(machine)
    machine.stop()
    before, machine.any_facility = machine.log, False
    machine.start()
    machine.kernel_logs(0, 79)
    status = machine.root / "run/appliance-gpu-watch/status.json"
    first = status.stat().st_mtime_ns
    wait_until(lambda: status.stat().st_mtime_ns > first + 10**9, "looks after the message", 60)
    assert machine.kinds() == []
    assert "Xid 79" not in machine.log.removeprefix(before)


def test_a_driver_that_hangs_is_reported_and_gets_no_second_child(machine: WatchedMachine) -> None:
    """Case 4: nvidia-smi ignores SIGTERM, and then returns."""
    stubborn = "#!/bin/sh\ntrap '' TERM\necho $$ >> {0}/hung\nwhile :; do sleep 0.05; done\n"
    machine.program("nvidia-smi", stubborn.format(machine.folder))
    machine.start("--query-timeout", "0.5")
    wait_until(lambda: ("card-lost", "driver", False) in machine.kinds(), "the report", 30)
    wait_until(lambda: "appliance_gpu_watch_driver_hangs 1.0" in machine.metrics(), "the metric", 30)
    alive = [pid for pid in (machine.folder / "hung").read_text().split() if Path(f"/proc/{pid}").exists()]
    assert len(alive) <= 1


@pytest.mark.usefixtures("kernel_log")
def test_the_watch_continues_while_a_query_hangs(watched: WatchedService) -> None:
    """A query that hangs delays neither the kernel's log nor the drain."""
    machine = watched.machine
    machine.start("--act", "--query-timeout", "100")
    look_done(machine)
    machine.program("nvidia-smi", f"#!/bin/sh\necho $$ > {machine.folder}/hung\nexec sleep 600\n")
    wait_until((machine.folder / "hung").exists, "the query", 60)
    machine.kernel_logs(0, 79)
    wait_until(lambda: watched.drains()["left"] is not None, "the drain", 60)
    # The query, which may take 100 s, has not ended.
    assert Path(f"/proc/{(machine.folder / 'hung').read_text().strip()}").exists()
    machine.stop()


@pytest.mark.timeout(300)
def test_an_engine_that_hangs_with_work_is_restarted_and_its_requests_move(watched: WatchedService) -> None:
    """Case 5: SIGSTOP, as a hung core behaves: connections are accepted, and no token follows."""
    machine, service = watched.machine, watched.service
    machine.start("--act")
    look_done(machine)
    hung = watched.engines["left"]
    hung.process.send_signal(signal.SIGSTOP)
    restart = "restart --no-block appliance-engine-left.service"
    # On a machine that stalls for seconds, the other engine may seem to hang as well.
    wait_until(lambda: restart in machine.systemctl(), "the restart", 100)
    wait_until(lambda: watched.drains()["left"] is not None, "the drain", 60)
    assert "generated no token in time" in str(watched.drains()["left"])
    for number in range(4):
        response = service.post("/v1/chat/completions", chat(f"fake: tokens=1 #{number}"))
        assert service.row(response)["engine"] == "right"
    hung.process.kill()
    hung.process.wait()
    watched.engines["left"] = start_mock(machine.folder / "again.log", port=hung.port)
    wait_until(lambda: watched.drains()["left"] is None, "the end of the drain", 100)
    wait_until(lambda: ("engine-hung", "left", True) in machine.kinds(), "the end of the notice", 60)
    about_left = [one for one in machine.kinds() if one[1] == "left"]
    assert about_left == [("engine-hung", "left", False), ("engine-hung", "left", True)]
    assert machine.systemctl().count(restart) == 1


def test_a_drain_of_the_operator_is_left_alone(watched: WatchedService) -> None:
    control_client.drain(watched.service.data, "right", "the owner's test")
    control_client.drain(watched.service.data, "left", "gpu-watch: card 0 is too hot")
    watched.machine.start("--act")
    wait_until(lambda: watched.drains()["left"] is None, "an old drain of the watchdog ends", 60)
    assert watched.drains()["right"] == "the owner's test"


def test_without_a_driver_the_watchdog_runs_and_reports_why(machine: WatchedMachine) -> None:
    machine.program(
        "nvidia-smi", "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate'\nexit 9\n"
    )
    machine.start("--act")
    wait_until(lambda: machine.kinds() == [("card-watch", "nvidia-smi", False)], "the notice", 60)
    assert "failed with exit code 9: NVIDIA-SMI has failed" in machine.notices()[0].text
    assert machine.systemctl() == []


def test_a_damaged_state_counts_as_used_up(machine: WatchedMachine) -> None:
    file = machine.root / "var/lib/appliance-gpu-watch/state.json"
    file.parent.mkdir()
    file.write_text('{"clock": ')
    machine.cards({1: {}})
    machine.start("--act")
    wait_until(lambda: ("card-lost", "card 0", False) in machine.kinds(), "the notice", 60)
    wait_until(lambda: "stays out of service" in machine.notices()[-1].text, "the end of the ladder", 60)
    assert machine.kinds()[0] == ("card-watch", "state", False)
    assert machine.systemctl() == []
