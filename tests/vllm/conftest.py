"""The whole service on real vLLM, as `make up` starts it, once for all tests of this folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from appliance.models.prepare import TINY_NAME
from tests.conftest import ROOT, http, usage_rows, wait_until
from tests.ports import free_port

ENGINE_PYTHON = ROOT / ".venv-engine" / "bin" / "python"


def site_file(folder: Path) -> tuple[Path, int, int]:
    """examples/laptop.toml on free ports and with its data in ``folder``: file, gateway's and engine's port."""
    table = tomllib.loads((ROOT / "examples" / "laptop.toml").read_text())
    port, engine_port = free_port(), free_port()
    table["gateway"] |= {"port": port, "data_dir": str(folder / "var"), "ready_cache_s": 0.5}
    table["engines"]["chat"] |= {"port": engine_port, "shutdown_timeout_s": 2}
    path = folder / "laptop.json"
    path.write_text(json.dumps(table))
    return path, port, engine_port


def descendants(pid: int) -> set[int]:
    """All processes below ``pid``."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pids: set[int]) -> set[int]:
    """Those of ``pids`` that still run (a zombie does not)."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return {pid for pid in pids if runs(pid)}


@dataclass
class Up:
    """A running `appliance up`."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    engine_port: int
    data: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def key(self) -> str:
        match = re.search(r"Your API key: (\S+)", self.output)
        assert match, self.output
        return match.group(1)

    def engine_pids(self) -> dict[str, int]:
        """Pids of the engine's processes by the names vLLM gives them."""
        names = {}
        for pid in descendants(self.process.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            for name in ("VLLM::EngineCore", "api_server"):
                if name in command:
                    names[name] = pid
        return names

    def rows(self) -> list[dict[str, Any]]:
        return usage_rows(self.data)

    def engine_metric(self, name: str) -> float:
        text = http(f"http://127.0.0.1:{self.engine_port}/metrics").body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def start_up(folder: Path, *options: str) -> Up:
    """Start `appliance up` as `make up` does."""
    config, port, engine_port = site_file(folder)
    log = folder / "up.log"
    # Its signals do not depend on what the caller of the tests ignores (nohup, a script's `&`).
    argv = [
        "env",
        "--default-signal=INT,TERM,HUP",
        sys.executable,
        "-m",
        "appliance",
        "up",
        "--config",
        str(config),
        *options,
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdout=output, stderr=output, cwd=ROOT, env={**os.environ, "COLUMNS": "120"}
        )
    return Up(process, log, port, engine_port, folder / "var")


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    if not ENGINE_PYTHON.exists():
        pytest.fail("there is no .venv-engine; run `make test`, or leave these tests out with -m 'not vllm'")
    running = start_up(tmp_path_factory.mktemp("up"), "--model", "tiny", "--engine-python", str(ENGINE_PYTHON))

    def serves() -> bool:
        if running.process.poll() is not None:
            pytest.fail(f"appliance up ended with {running.process.returncode}:\n{running.output}")
        return "Ctrl-C stops everything" in running.output

    began = time.monotonic()
    wait_until(serves, "make up serves", 300)
    print(f"make up served after {time.monotonic() - began:.0f} s")
    yield running
    running.process.send_signal(signal.SIGINT)
    running.process.wait(60)


@pytest.fixture(scope="session")
def client(up: Up) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up.url}/v1", api_key=up.key, max_retries=0, timeout=60) as openai:
        yield openai


@pytest.fixture
def model() -> str:
    return TINY_NAME


def let_the_http_side_go_first(up: Up) -> None:
    """Every thread of vLLM's core yields to its HTTP side, which on two busy cores may else not get a turn.

    vLLM's core would then have generated all tokens before the first of them is sent.
    """
    core = up.engine_pids()["VLLM::EngineCore"]
    for thread in Path(f"/proc/{core}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


def running_stream(client: OpenAI, up: Up, model: str) -> Stream[ChatCompletionChunk]:
    """A stream that has begun and that the engine is still at, as far as its metrics know."""
    let_the_http_side_go_first(up)
    for _ in range(30):
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Hello!"}],
            max_tokens=4000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        if up.engine_metric("vllm:num_requests_running") == 1:
            return stream
        stream.close()
    pytest.fail("thirty streams in a row were over before the engine could be seen running one")
