"""Two hosts and a stranger on one switch, in namespaces, and the ranks of an engine on them."""

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

from tests.conftest import wait_until
from tests.network.machine import NetworkMachine

ADDRESSES = {"gpu": "10.88.0.1", "gpu2": "10.88.0.2", "stranger": "10.88.0.3"}
INTERFACE = "lan0"
MASTER_PORT = 29501


def site_of_two(python: Path, model: Path, port: int, **engine: Any) -> dict[str, Any]:
    """Return a site with an engine over the hosts gpu and gpu2, on their processors."""
    return {
        "version": 1,
        "hosts": {
            name: {"memory_gib": 16, "link": {"address": ADDRESSES[name], "interface": INTERFACE}}
            for name in ("gpu", "gpu2")
        },
        "models": {"tiny": {"source": str(model), "max_context": 1024}},
        "engines": {
            "big": {
                "host": "gpu", "nodes": ["gpu", "gpu2"], "model": "tiny", "device": "cpu", "tensor_parallel": 2,
                "context": 1024, "concurrency": 2, "port": port, "command": str(python), "kv_cache_gib": 0.25,
                "shutdown_timeout_s": 2, "options": {"dtype": "float32", "enforce-eager": True},
                "environment": {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "20", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
                **engine,
            }
        },
    }  # fmt: skip


class HostOfTwo:
    """One host, with the rank that a loop keeps running as its unit does."""

    def __init__(self, machine: NetworkMachine, rank: int, site: Path) -> None:
        self.machine = machine
        self.rank = rank
        self._site = site
        self._loop: subprocess.Popen[bytes] | None = None

    def start(self, site: Path | None = None) -> None:
        """Start the rank; it starts again after each failure."""
        words = [sys.executable, "-m", "appliance", "engine", "exec", "big", "--rank", str(self.rank)]
        command = " ".join([*words, "--config", str(site or self._site)])
        self._loop = self.machine.start("rank", ["sh", "-c", f"until {command}; do sleep 1; done"])

    def stop(self) -> None:
        """Kill the loop, the watcher and vLLM."""
        if self._loop is not None:
            self._loop.kill()
            self._loop.wait()
            self._loop = None
        for pid in self.watchers() + self.engine():
            self.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.watchers() + self.engine(), f"rank {self.rank} has ended")

    def text(self) -> str:
        """Return what the rank has written."""
        file = self.machine.log("rank")
        return file.read_text(errors="replace") if file.exists() else ""

    def processes(self) -> dict[int, str]:
        """Return the processes of this host with their command lines."""
        own = Path(f"/proc/{self.machine.pid}/ns/net").stat().st_ino
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "ns/net").stat().st_ino == own and "State:\tZ" not in (folder / "status").read_text():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def watchers(self) -> list[int]:
        """Return the watcher, without the loop."""
        return [
            pid for pid, line in self.processes().items() if "-m appliance engine" in line and "until" not in line
        ]

    def engine(self) -> list[int]:
        """Return the processes of vLLM."""
        signs = ("VLLM::", "ServeSubcommand", "vllm.entrypoints", "multiprocessing")
        return [pid for pid, line in self.processes().items() if any(sign in line for sign in signs)]

    def workers(self) -> list[int]:
        """Return the processes that compute."""
        return [pid for pid, line in self.processes().items() if "VLLM::Worker" in line]

    @staticmethod
    def kill(pid: int, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    def request(self, port: int, timeout_s: float = 60) -> tuple[int, str]:
        """Return status and text of a completion at the engine; status 0 without a response."""
        body = json.dumps({"model": "tiny", "prompt": "hello", "max_tokens": 4, "temperature": 0})
        done = self.machine.try_run(
            "curl", "-s", "-m", str(timeout_s), "-w", "\n%{http_code}", "-H", "content-type: application/json",
            "-d", body, f"http://127.0.0.1:{port}/v1/completions", timeout=timeout_s + 30,
        )  # fmt: skip
        text, _, status = done.stdout.rpartition("\n")
        return int(status or 0), text

    def health(self, port: int) -> int:
        """Return the status of vLLM's /health; 0 without a response."""
        url = f"http://127.0.0.1:{port}/health"
        done = self.machine.try_run("curl", "-s", "-o", "/dev/null", "-m", "5", "-w", "%{http_code}", url)
        return int(done.stdout or 0)


@contextmanager
def machines(folder: Path, *names: str) -> Iterator[dict[str, NetworkMachine]]:
    """Run a machine for each name, with the interface ``lan0`` on one switch."""
    made: dict[str, NetworkMachine] = {}
    try:
        switch = made["switch"] = NetworkMachine("switch", folder)
        switch.run("ip", "link", "add", "br0", "type", "bridge")
        switch.run("ip", "link", "set", "br0", "up")
        for name in names:
            one = made[name] = NetworkMachine(name, folder)
            switch.run(
                "ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", INTERFACE, "netns", str(one.pid)
            )
            switch.run("ip", "link", "set", f"to-{name}", "master", "br0", "up")
            one.run("ip", "address", "add", f"{ADDRESSES[name]}/24", "dev", INTERFACE)
            one.run("ip", "link", "set", INTERFACE, "up")
        yield made
    finally:
        for one in reversed(made.values()):
            one.close()
