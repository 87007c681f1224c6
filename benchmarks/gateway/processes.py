"""Processes under measurement: started on a core of their own, their time and memory read from /proc."""

from __future__ import annotations

import contextlib
import http.client
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


def post(
    port: int, body: bytes, key: str, path: str = "/v1/chat/completions", timeout: float = 60
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_for(
    port: int, body: bytes, key: str, process: subprocess.Popen[bytes], log: Path, within_s: float
) -> None:
    """Until a request is answered 200; raises RuntimeError with the log's end."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if post(port, body, key)[0] == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"did not answer within {within_s:.0f} s: {log.read_text(errors='replace')[-600:]}")


def tree(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += tree(int(child))
    return found


def cpu_s(pid: int) -> float:
    """Seconds of processor time of a process and its children so far, all threads, to the nanosecond."""
    total = 0
    for one in tree(pid):
        for task in Path(f"/proc/{one}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[0])
    return total / 1e9


def pss_mb(pid: int) -> float:
    """Proportional set size of a process and its children, in MB."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            match = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(match.group(1)) if match else 0
    return round(total * 1024 / 1e6, 1)


def core_ticks(core: str) -> dict[str, int]:
    """Ticks of a core so far: busy (softirq included, which no process is charged for), idle, stolen."""
    line = next(ln for ln in Path("/proc/stat").read_text().splitlines() if ln.startswith(f"cpu{core} "))
    user, nice, system, idle, wait, irq, soft, steal = map(int, line.split()[1:9])
    return {"busy": user + nice + system + irq + soft, "idle": idle + wait, "steal": steal}


def conditions() -> dict[str, object]:
    """Where and on what this was measured."""
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
