"""Failures of a swap: too little memory after a sleep, a failed wake, damaged weights, a killed gateway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.gateway import control_client
from appliance.models import lock, verification
from tests.conftest import RunningService, http, serving, start, wait_until
from tests.gateway.running.conftest import metric
from tests.gateway.running.test_swap import CARD, ask, engine, state, two_models
from tests.ports import free_port

TOTAL_MIB = CARD["memory_mib"]

DRIVER = """#!/bin/sh
# The processes of the engines and this one, of any thread of the gateway.
engines=$(($(cat /proc/$PPID/task/*/children | wc -w) - 1))
echo "0, {total}, $(($(cat {free})))"
"""
"""A driver whose free memory in MiB is the expression in a file; it may contain the number of running engines."""


def test_the_free_memory_after_a_sleep_decides_what_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs, free = tmp_path / "bin", tmp_path / "free"
    programs.mkdir()
    program = programs / "nvidia-smi"
    program.write_text(DRIVER.format(total=TOTAL_MIB, free=free))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    free.write_text("95000 - 2000 * engines")
    with two_models(tmp_path / "swaps", first={"sleep": True}) as service:
        # The control: its sleep frees enough.
        assert [ask(service, model).status for model in "aba"] == [200] * 3
        assert metric(service, "swap_failures_total") == 0
        log = service.gateway.log
        assert "stopped instead" not in log.read_text()

        # Its sleep frees too little: it is stopped before the other one loads.
        free.write_text("95000 - 40000 * engines")
        assert ask(service, "b").status == 200
        assert state(service, "ea") == "stopped"
        reason = "card 0 has 53.7 GiB free of the 86.0 GiB that it needs"
        assert f"eb: {reason}; ea sleeps and is stopped instead" in log.read_text()
        assert metric(service, "swap_failures_total") == 1
        assert ask(service, "a").status == 200

        # Another program holds the card: nothing loads in its place, and it serves again.
        free.write_text("20000")
        refused = ask(service, "b")
        assert refused.status == 503
        message = refused.json["error"]["message"]
        assert message.startswith("b could not be loaded: card 0 has 19.5 GiB free of the 86.0 GiB that it needs")
        assert ask(service, "a").status == 200
        assert state(service, "eb") == "failed"


def test_a_wake_that_fails_is_reported_and_the_other_model_serves(tmp_path: Path) -> None:
    with two_models(tmp_path / "coma", first={"sleep": True, "options": {"fail-wake": 1}}, sleep=True) as service:
        assert ask(service, "a").status == 200
        assert ask(service, "b").status == 200
        refused = ask(service, "a")
        assert refused.status == 503
        assert "a could not be loaded: ea returned 500 for /wake_up" in refused.json["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert metric(service, "swap_failures_total") == 1, "the alert SwapFailed fires by this number"
        assert ask(service, "b").status == 200
        assert state(service, "ea") == "failed"
        log = service.gateway.log.read_text()
        assert log.count("the memory of the cards is not compared after a sleep: nvidia-smi is not installed") == 1


SYSTEMCTL = """#!/bin/sh
cd "$(dirname "$0")"
for unit; do :; done
name=${{unit#appliance-engine-}}; name=${{name%.service}}
running() {{ [ -e "$name.pid" ] && grep -q "^State:.[^XZ]" "/proc/$(cat "$name.pid")/status" 2>/dev/null; }}
case "$1" in
  start) echo "$name" >> starts
    {python} -S -c "$LAUNCH" {python} -m appliance engine exec "$name" --config {config} {more} >>"$name.log" \
      2>&1 3>"$name.pid" ;;
  stop) running && kill "$(cat "$name.pid")"; while running; do sleep 0.05; done ;;
  show) if running; then echo ActiveState=active; else echo ActiveState=inactive; fi ;;
esac
"""
"""A stand-in for systemctl whose engines are real processes, and outlive the gateway."""

LAUNCH = """
import os, subprocess, sys
engine = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
os.write(3, str(engine.pid).encode())
os._exit(0)
"""
"""Starts an engine that inherits no descriptor of its parents: each pipe of the gateway ends with its own child."""


@contextmanager
def units(folder: Path, site: dict[str, Any], monkeypatch: pytest.MonkeyPatch, more: str = "") -> Iterator[Any]:
    """A gateway before engines that the stand-in for systemctl starts, with ``more`` words of their command."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    script = programs / "systemctl"
    config = folder / "gateway" / "site.json"
    script.write_text(SYSTEMCTL.format(python=sys.executable, config=config, more=more))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LAUNCH", LAUNCH)
    rules = {"max_wait_s": 1.0, "min_residency_s": 0.0, "batch": 8}
    hosts = {"here": {"memory_gib": 8, "gpus": [CARD]}}
    try:
        settings = {"engine_control": "systemd", "swap": rules}
        with serving(folder / "gateway", hosts=hosts, gateway=settings, **site) as service:
            yield service
    finally:
        for name in ("ea", "eb"):
            subprocess.run([script, "stop", f"appliance-engine-{name}.service"], check=False, timeout=30)


def starts(folder: Path) -> list[str]:
    """Return the engines in the order in which they were started."""
    return (folder / "bin" / "starts").read_text().split()


def sleeps(service: RunningService, name: str) -> bool:
    """Return whether the engine ``name`` reports that it sleeps."""
    port = json.loads(service.config.read_text())["engines"][name]["port"]
    return bool(http(f"http://127.0.0.1:{port}/is_sleeping").json["is_sleeping"])


def test_a_gateway_killed_in_a_swap_finds_both_engines_loads_none_twice_and_compares_their_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies while ``a`` wakes and ``b`` sleeps; ``b`` would wake with other text."""
    site = {
        "models": {"a": {"source": "./a"}, "b": {"source": "./b"}},
        "engines": {
            "ea": engine("a", free_port(), sleep=True, options={"wake-delay-s": 1.0}),
            "eb": engine("b", free_port(), sleep=True, options={"bad-wake": 1}),
        },
    }
    with units(tmp_path, site, monkeypatch) as service:
        for model in "ab":
            assert ask(service, model).status == 200
        control_client.swap(service.data, "a")
        wait_until(lambda: state(service, "ea") == "loading", "a wakes", 20)
        service.gateway.process.send_signal(signal.SIGKILL)
        service.gateway.process.wait(10)
        wait_until(lambda: not sleeps(service, "ea"), "a is awake", 20)
        argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(service.config)]
        service.gateway = start(argv, service.gateway.port, service.data / "gateway.log")
        wait_until(lambda: state(service, "eb") == "asleep", "b is taken over", 20)
        assert state(service, "ea") == "ready"
        assert ask(service, "a").status == 200
        assert starts(tmp_path) == ["ea", "eb"]
        assert ask(service, "b").status == 200
        assert "eb generates other text after its wake" in service.gateway.log.read_text()
        assert ask(service, "a").status == 200
        assert starts(tmp_path) == ["ea", "eb", "eb"], "a woke with the text of its load"


def test_damaged_weights_are_named_and_the_served_model_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, revision = tmp_path / "store", "a" * 40
    for name in "AB":
        folder = store / "hub" / f"models--Qwen--{name}" / "snapshots" / revision
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"w" * 5000)
    entries = lock.make(store)
    lock.write(tmp_path / "models.lock", entries)
    damaged = next(one for one in entries if one.repository == "Qwen/B").path(store)
    flipped = bytearray(damaged.read_bytes())
    flipped[2500] ^= 1
    damaged.write_bytes(flipped)
    assert len(verification.verify(entries, store).differences) == 1
    monkeypatch.setenv("HF_HOME", str(store))
    site = {
        "models": {name.lower(): {"source": f"Qwen/{name}", "revision": revision} for name in "AB"},
        "engines": {"ea": engine("a", free_port()), "eb": engine("b", free_port())},
    }
    with units(tmp_path, site, monkeypatch, f"--lock {tmp_path / 'models.lock'}") as service:
        assert ask(service, "a").status == 200, "the control: its weights are verified"
        refused = ask(service, "b")
        assert refused.status == 503
        assert "eb ended while it was loading" in refused.json["error"]["message"]
        (line,) = (tmp_path / "bin" / "eb.log").read_text().splitlines()
        assert line.startswith(
            f"error: Qwen/B@{revision[:12]} model.safetensors: not verified in its present state"
        )
        assert ask(service, "a").status == 200
