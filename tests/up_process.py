"""`appliance up` as a process of its own, with free ports and a data folder of the test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, http, usage_rows
from tests.ports import free_port
from tests.process_tree import descendants

ENGINE_PYTHON = ROOT / ".venv-engine" / "bin" / "python"
"""The interpreter of the CPU engine's environment, which plain `pytest -m 'not vllm'` does not need."""


def site_file(folder: Path, *, embedder: bool = False) -> tuple[Path, int, int]:
    """Write examples/laptop.toml with free ports and its data in ``folder``.

    By default it has neither embedder nor assistant: they load for some seconds, and most tests do without.
    Return the file, the gateway's port and the engine's port.
    """
    table = tomllib.loads((ROOT / "examples" / "laptop.toml").read_text())
    port, engine_port = free_port(), free_port()
    if embedder:
        table["engines"]["embed"] |= {"port": free_port(), "shutdown_timeout_s": 2}
    else:
        del table["engines"]["embed"], table["models"]["multilingual-embedder"]
        del table["assistant"], table["roles"]["memory"]
    table["gateway"] |= {"port": port, "data_dir": str(folder / "var"), "ready_cache_s": 0.5}
    table["engines"]["chat"] |= {"port": engine_port, "shutdown_timeout_s": 2}
    path = folder / "laptop.json"
    path.write_text(json.dumps(table))
    return path, port, engine_port


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
        """Return the pids of the engine's processes by the names that vLLM gives them."""
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
        """Return the usage rows, oldest first."""
        return usage_rows(self.data)

    def engine_metric(self, name: str) -> float:
        """Return the sum of the engine's metric ``name`` over its labels."""
        text = http(f"http://127.0.0.1:{self.engine_port}/metrics").body.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def start_up(folder: Path, *options: str, embedder: bool = False) -> Up:
    """Start `appliance up` as `make up` does."""
    config, port, engine_port = site_file(folder, embedder=embedder)
    log = folder / "up.log"
    # The test runner may ignore signals (nohup, a script's `&`); the program must not inherit that.
    argv = ["env", "--default-signal=INT,TERM,HUP"]
    argv += [sys.executable, "-m", "appliance", "up", "--config", str(config), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdout=output, stderr=output, cwd=ROOT, env={**os.environ, "COLUMNS": "120"}
        )
    return Up(process=process, log=log, port=port, engine_port=engine_port, data=folder / "var")
