"""The planner whose experts are in RAM: its example, its fit, its command line on a tiny Qwen3-MoE."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.engines import argv
from tests.conftest import ROOT, http, start, wait_until
from tests.llamacpp.server_command import program
from tests.llamacpp.tiny_gguf import write_tiny
from tests.ports import free_port

EXAMPLE = ROOT / "examples" / "planner-in-ram.toml"

TWO_SOCKETS = "\n\n".join(
    f"processor\t: {number}\nphysical id\t: {number % 4 // 2}\nsiblings\t: 4\ncore id\t\t: {number % 2}"
    for number in range(8)
)
"""Two sockets of two cores with two threads each."""


def edited(tmp_path: Path, *edits: tuple[str, str]) -> Path:
    text = EXAMPLE.read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "site.toml"
    path.write_text(text)
    return path


def planner_command(site: Site, cpuinfo: str = "") -> argv.EngineCommand:
    return argv.command(site, argv.find(site, "planner"), ROOT, cpuinfo)


def test_the_example_locks_experts_in_ram_and_waits_long_for_its_canary() -> None:
    site = load(EXAMPLE)
    built = planner_command(site, TWO_SOCKETS)
    words = list(built.argv)
    assert words[words.index("--n-cpu-moe") + 1] == "84"
    assert words[words.index("--threads") + 1] == "4"
    assert words[words.index("--numa") + 1] == "distribute"
    assert built.environment["LLAMA_ARG_LOAD_MODE"] == "mmap+mlock"
    assert site.engines["planner"].canary_within_s(20) == 120
    assert site.engines["executors"].canary_within_s(20) == 20


def test_what_the_site_states_is_kept(tmp_path: Path) -> None:
    stated = (
        'options = { n-cpu-moe = 84, threads = 3, numa = "isolate", load-mode = "none" }\ncanary_timeout_s = 45'
    )
    site = load(edited(tmp_path, ('options = { n-cpu-moe = 84, flash-attn = "on" }', stated)))
    built = planner_command(site, TWO_SOCKETS)
    assert (built.argv.count("--threads"), built.argv.count("--numa")) == (1, 1)
    assert "LLAMA_ARG_LOAD_MODE" not in built.environment
    assert site.engines["planner"].canary_within_s(20) == 45


def test_one_socket_has_no_numa_and_an_unknown_processor_no_threads() -> None:
    one = TWO_SOCKETS.replace("physical id\t: 1", "physical id\t: 0")
    site = load(EXAMPLE)
    assert planner_command(site, one).argv[-2:] == ("--threads", "2")
    assert "--threads" not in planner_command(site, "processor: 0\n").argv


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("n-cpu-moe = 84", "n-cpu-moe = 40", "leave more on the cards than fits; set n-cpu-moe = 81 or more"),
        ("utilization = 0.40", "utilization = 0.15", "do not fit its cards; lower context or concurrency"),
        ("memory_gib = 256", "memory_gib = 128", "132.4 GiB of weights do not fit the 128 GiB of gpu"),
    ],
)
def test_a_planner_that_does_not_fit_is_one_line(
    old: str, new: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(edited(tmp_path, (old, new)))]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if error in line]
    assert len(lines) == 1


def test_the_command_of_the_example_serves_a_tiny_moe_from_locked_memory(tmp_path: Path) -> None:
    gguf, port = write_tiny(tmp_path / "moe.gguf", "moe", layers=4), free_port()
    site = load(
        edited(
            tmp_path,
            ("/var/lib/appliance-models/Qwen3-235B-A22B-Instruct-2507-Q4_K_M.gguf", str(gguf)),
            ("port = 8101", f'port = {port}\ncommand = "{program(tmp_path)}"'),
            ("context = 32768\nconcurrency = 2", "context = 2048\nconcurrency = 2"),
        )
    )
    built = planner_command(site, TWO_SOCKETS)
    server = start(list(built.argv), port, tmp_path / "log", **built.environment)
    try:
        wait_until(lambda: http(server.url + "/health").status == 200, "the model is loaded", 60)
        body = {"messages": [{"role": "user", "content": "plan"}], "max_tokens": 4}
        assert http(server.url + "/v1/chat/completions", body=body).json["usage"]["completion_tokens"] == 4
        locked = re.search(r"VmLck:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
        assert locked is not None
        assert int(locked[1]) * 1024 > gguf.stat().st_size / 2
    finally:
        server.stop()
