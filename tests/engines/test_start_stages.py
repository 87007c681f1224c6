"""Stages of a start from vLLM's log: lines of real starts, and logs without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.engines.start_stages import StartStages, start_stages

CPU = """\
(APIServer pid=25059) INFO 11-27 13:27:41 [api_utils.py:347]  ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.32.0
(APIServer pid=25059) INFO 11-27 13:27:55 [model.py:2152] Using max model len 4096
(Worker pid=25325) INFO 11-27 13:28:22 [default_loader.py:501] Loading weights took 0.01 seconds
(EngineCore) INFO 11-27 13:28:25 [core.py:402] init engine (profile, create kv cache, warmup model) took 2.26 s
(APIServer pid=25059) INFO 11-27 13:28:26 [entry.py:140] Starting vLLM server on http://127.0.0.1:28068
"""
"""Lines of vLLM 0.32.0 on a CPU, without compilation; the fourth without its pid."""

COMPILED = """\
(Worker_TP0 pid=7) INFO 11-27 13:28:22 [default_loader.py:501] Loading weights took 3.50 seconds
(Worker_TP1 pid=8) INFO 11-27 13:28:22 [default_loader.py:501] Loading weights took 4.25 seconds
(Worker_TP0 pid=7) INFO 11-27 13:29:22 [monitor.py:60] torch.compile took 41.20 s in total
(Worker_TP0 pid=7) INFO 11-27 13:29:52 [gpu_model_runner.py:6582] Graph capturing finished in 12 secs, took 1.50 GiB
"""
"""Further lines in the form of that version's source, which a CPU does not log."""


def test_the_stages_of_a_real_start() -> None:
    assert start_stages(CPU) == StartStages(weights=0.01, compile=None, graphs=None, init=2.26, total=45.0)


def test_the_slowest_worker_and_the_last_start_count() -> None:
    banner, _, rest = CPU.partition("\n")
    found = start_stages(f"{CPU}{banner}\n{COMPILED}")
    assert found == StartStages(weights=4.25, compile=41.2, graphs=12.0, init=None, total=None)
    assert start_stages(f"{banner}\n{COMPILED}{rest}") == StartStages(4.25, 41.2, 12.0, 2.26, 45.0)


def test_a_start_over_new_year_is_not_negative() -> None:
    log = CPU.replace("11-27 13:27:41", "12-31 23:59:50").replace("11-27 13:28:26", "01-01 00:00:20")
    found = start_stages(log)
    assert found is not None
    assert found.total == 30.0


@pytest.mark.parametrize("log", ["", "no start of an engine\n", CPU.partition("\n")[2]])
def test_a_log_without_a_start_has_no_stages(log: str) -> None:
    assert start_stages(log) is None


def test_the_command_reads_a_file_or_standard_input(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "appliance", "models", "time", "--log"]
    file = tmp_path / "engine.log"
    file.write_text(CPU)
    shown = subprocess.run([*argv, str(file)], capture_output=True, text=True, check=True).stdout
    assert "weights                  0.01 s\n" in shown
    assert "capture of CUDA graphs   not in the log\n" in shown
    piped = subprocess.run([*argv, "-", "--json"], input=CPU, capture_output=True, text=True, check=True).stdout
    assert json.loads(piped)["total"] == 45.0
    empty = subprocess.run([*argv, "-"], input="nothing\n", capture_output=True, text=True, check=False)
    assert (empty.returncode, empty.stderr.count("\n")) == (1, 1)
    assert "has no start of vLLM" in empty.stderr
