"""``appliance gpu-watch``: once, status and invalid command lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.cli.gpu_watch import watch_config
from appliance.contract.load import load
from appliance.engines.argv import unit_name
from appliance.watch.card_power import PowerRange
from appliance.watch.gpu.state import WatchedReplica
from tests.conftest import a_site, wait_until
from tests.watch.gpu.conftest import HOSTS, engine
from tests.watch.gpu.machine import WatchedMachine


def run(machine: WatchedMachine, monkeypatch: pytest.MonkeyPatch, action: str, *more: str) -> int:
    monkeypatch.setenv("PATH", str(machine.folder / "bin"), prepend=":")
    words = ["gpu-watch", action, "--config", str(machine.config), "--host", "here", "--root", str(machine.root)]
    return main([*words, *more])


def test_once_prints_the_cards_and_what_would_follow(
    machine: WatchedMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine.root / "dev/kmsg").unlink()
    (machine.root / "dev/kmsg").write_text(f"4,1,1,-;NVRM: Xid (PCI:{machine.address(1)}): 119, x\n")
    machine.cards({0: {"temperature.gpu.tlimit": 1}, 1: {}})
    assert run(machine, monkeypatch, "once") == 3
    out = capsys.readouterr().out
    assert f"card 0 (NVIDIA RTX PRO 6000 Blackwell Workstation Edition at 0000{machine.address(0)}.0)" in out
    assert "60 °C, 1 K margin, 400 W, 53 % fans" in out
    assert "would report: card 0 is hot" in out
    assert "would report: card 1 failed: Xid 119. It serves right. Report only: it would stop new requests" in out
    assert "the gateway does not respond" in out
    assert machine.limits() == []


def test_once_on_a_healthy_machine(
    machine: WatchedMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine.root / "dev/kmsg").unlink()
    (machine.root / "dev/kmsg").write_text("")
    assert run(machine, monkeypatch, "once") == 0
    assert "nothing to do" in capsys.readouterr().out
    (machine.root / "dev/kmsg").unlink()
    assert run(machine, monkeypatch, "once") == 0
    assert "the kernel's log: " in capsys.readouterr().out
    machine.program("nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert run(machine, monkeypatch, "once") == 3
    assert "the cards cannot be read: nvidia-smi failed with exit code 9" in capsys.readouterr().out


def test_the_status_of_a_running_watchdog(
    machine: WatchedMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(machine, monkeypatch, "status") == 1
    assert "is appliance-gpu-watch.service running?" in capsys.readouterr().err
    machine.cards({0: {"temperature.gpu.tlimit": 9}, 1: {}})
    machine.start()
    path = machine.root / "run/appliance-gpu-watch/status.json"
    wait_until(lambda: path.exists() and json.loads(path.read_text())["cards"][:1] != [], "the status", 60)
    wait_until(lambda: json.loads(path.read_text())["cards"][0]["rung"] == 1, "the rung", 60)
    assert run(machine, monkeypatch, "status") == 0
    assert "card 0: fans raised (heat), 60 °C, 9 K margin, 400 W, 53 % fans" in capsys.readouterr().out
    assert run(machine, monkeypatch, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["act"] is False


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["once", "--host", "other"], "the site has no host 'other': name one of here with --host"),
        (["once", "--config", "/nonexistent"], "/nonexistent"),
    ],
)
def test_invalid_command_lines(
    words: list[str], error: str, machine: WatchedMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    config = [] if "--config" in words else ["--config", str(machine.config)]
    assert main(["gpu-watch", *words, *config]) == 2
    assert error in capsys.readouterr().err


def test_a_host_with_a_rank_watches_its_cards_and_its_unit(tmp_path: Path) -> None:
    file = tmp_path / "site.json"
    link = {"interface": "eno1"}
    hosts = {
        "here": HOSTS["here"] | {"link": link | {"address": "10.88.0.1"}},
        "there": HOSTS["here"] | {"link": link | {"address": "10.88.0.2"}},
    }
    one = engine(0, 9000) | {"kind": "vllm", "nodes": ["here", "there"], "pipeline_parallel": 2, "gpus": [0, 1]}
    file.write_text(json.dumps(a_site(8000, 9000, tmp_path, hosts=hosts, engines={"wide": one})))
    site = load(file)
    found = {
        host: watch_config(site, host, act=True, fans=False, cold_cycle=False).replicas
        for host in ("here", "there")
    }
    assert found == {
        "here": {"wide": WatchedReplica((0,), 600)},
        "there": {"wide.rank1": WatchedReplica((1,), 600, is_rank=True)},
    }
    assert unit_name("wide.rank1") == "appliance-engine-wide.rank1.service"


def test_the_site_gives_cards_ranges_and_replicas(tmp_path: Path) -> None:
    file = tmp_path / "site.json"
    engines = {
        "left": engine(0, 9000) | {"gpu_memory_utilization": 0.4},
        "pair": engine(0, 9100) | {"gpus": [0, 1], "replicas": 2, "gpu_memory_utilization": 0.4},
    }
    engines["cpu"] = engine(0, 9200) | {"device": "cpu", "gpus": []}
    file.write_text(json.dumps(a_site(8000, 9000, tmp_path, hosts=HOSTS, engines=engines)))
    config = watch_config(load(file), "here", act=True, fans=False, cold_cycle=False)
    assert config.cards == {0, 1}
    assert config.ranges == {0: PowerRange(150, 450), 1: PowerRange(150, 450)}
    assert config.replicas == {
        "left": WatchedReplica((0,), 600),
        "pair.0": WatchedReplica((0,), 600),
        "pair.1": WatchedReplica((1,), 600),
        "cpu": WatchedReplica((), 600),
    }
