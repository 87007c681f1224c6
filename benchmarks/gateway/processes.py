"""Processes under measurement: started on a core of their own, CPU time and memory read from /proc."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.system.http_request import NO_RESPONSE, send_request

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SUBJECT_CORE, LOAD_CORE = "0", "1"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(argv: list[str], core: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            ["taskset", "-c", core, *argv],
            stdout=output,
            stderr=output,
            cwd=log.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def running(argv: list[str], core: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = start(argv, core, log, **environment)
    try:
        yield process
    finally:
        stop(process)


def wait_for(
    port: int, body: bytes, key: str, process: subprocess.Popen[bytes], log: Path, within_s: float
) -> None:
    """Wait for a response 200 to a chat request; raises :class:`RuntimeError` with the end of the log."""
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(*NO_RESPONSE):
            response = send_request(url, "/v1/chat/completions", method="POST", body=body, key=key, timeout_s=60)
            if response.status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"no response 200 within {within_s:.0f} s: {log.read_text(errors='replace')[-600:]}")


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += tree(int(child))
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and its children in seconds, all threads, to the nanosecond."""
    total = 0
    for one in tree(pid):
        for task in Path(f"/proc/{one}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[0])
    return total / 1e9


def pss_mb(pid: int) -> float:
    """Return the proportional set size of a process and its children in MB."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            match = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(match.group(1)) if match else 0
    return round(total * 1024 / 1e6, 1)


def core_ticks(core: str) -> dict[str, int]:
    """Return the ticks of a core: busy (with softirq, which is charged to no process), idle, stolen."""
    line = next(ln for ln in Path("/proc/stat").read_text().splitlines() if ln.startswith(f"cpu{core} "))
    user, nice, system, idle, wait, irq, soft, steal = map(int, line.split()[1:9])
    return {"busy": user + nice + system + irq + soft, "idle": idle + wait, "steal": steal}


def conditions() -> dict[str, object]:
    """Return the date, hardware and versions of the measurement."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gateway_core": SUBJECT_CORE,
        "load_and_engine_core": LOAD_CORE,
        "python_executable": Path(sys.executable).name,
    }
