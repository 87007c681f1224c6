"""A host around the power agent: a real UPS of NUT, a real gateway, and stand-ins for programs.

The stand-in for systemctl runs real mock engines. Each stand-in writes its calls to a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.gateway import control_client
from tests.conftest import MOCK_ENGINE, ROOT, RunningService, http, wait_until
from tests.preloaded import ChildProcess, start_program
from tests.watch.power.nut import NAME, Nut

FAST = {
    "pause_after_s": 1.0,
    "drain_s": 60.0,
    "stable_s": 1.5,
    "start_s": 120.0,
    "low_s": 0.5,
    "short_s": 1.0,
    "deadtime_s": 2.0,
    "quiet_s": 3.0,
    "unreachable_s": 1.0,
    "complaint_s": 1.0,
    "retry_s": 60.0,
    "abandon_s": 600.0,
}
"""Limits of the policy for tests: seconds instead of minutes."""
WAIT_S = 90.0
"""Seconds within which a step happens also on a machine whose cores are busy."""

STAND_IN = """#!{python}
import os, signal, subprocess, sys, time
name, words, folder = os.path.basename(sys.argv[0]), sys.argv[1:], {folder!r}
with open(os.path.join(folder, "calls"), "a") as calls:
    calls.write(" ".join([name, *words]) + "\\n")
if os.path.exists(os.path.join(folder, "hang-" + name)):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
if name != "systemctl":
    sys.exit(0)
engine = {engine!r}
pid_file = {pid_file!r}

def running():
    try:
        pid = open(pid_file).read()
        return open("/proc/" + pid + "/stat").read().split(") ")[1][0] != "Z"
    except OSError:
        return False

if words[0] == "show":
    print("Id=appliance-engine-chat.service\\nActiveState=" + ("active" if running() else "inactive"))
elif words[0] == "stop" and running():
    os.kill(int(open(pid_file).read()), signal.SIGKILL)
elif words[0] == "start" and not running():
    log = open(os.path.join(folder, "engine.log"), "ab")
    child = subprocess.Popen(engine, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    with open(pid_file + ".new", "w") as file:
        file.write(str(child.pid))
    os.replace(pid_file + ".new", pid_file)
"""


@dataclass
class PowerHost:
    """The host; :meth:`start` runs its agent."""

    folder: Path
    nut: Nut
    service: RunningService
    engine_pid: Path
    agent: ChildProcess | None = None
    changes: dict[str, float] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return int(self.engine_pid.read_text())

    def engine_runs(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().split(") ")[1][0] != "Z"
        except FileNotFoundError:
            return False

    def start_engine(self) -> None:
        """Start the engine, if it does not run, and make the gateway use it."""
        if not self.engine_runs():
            subprocess.run([self.folder / "bin" / "systemctl", "start"], check=True)
        control_client.resume(self.service.data)
        wait_until(lambda: bool(self.chat().status == 200), "the engine serves", WAIT_S)
        (self.folder / "calls").unlink(missing_ok=True)

    def start(self) -> None:
        """Start the agent, and wait until it has looked at the UPS."""
        before = self.public().get("at", 0.0)
        limits = [word for item in {**FAST, **self.changes}.items() for word in ("--set", f"{item[0]}={item[1]}")]
        argv = [
            *(sys.executable, "-m", "appliance", "power", "serve", "--ups", NAME, "--port", str(self.nut.port)),
            *("--config", str(self.service.config), "--host", "here", "--gateway", str(self.service.data)),
            *("--run", str(self.folder / "run"), "--state", str(self.folder / "state")),
            *("--outbox", str(self.folder / "outbox"), "--wishes", str(self.folder / "wishes")),
            *("--metrics", str(self.folder / "power.prom"), "--power-off", "upsmon -c fsd", "--interval", "100ms"),
            *limits,
        ]
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = start_program(argv, log, {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)})
        self.until(lambda: self.public().get("at", 0.0) > before, "the agent looks")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the agent; return its exit code."""
        assert self.agent is not None
        self.agent.send_signal(number)
        return self.agent.wait(timeout=60)

    def until(self, condition: Callable[[], bool], what: str) -> float:
        """Wait for ``condition``; fail with the log of the agent if it does not hold in time, or the agent ends."""

        def holds() -> bool:
            if self.agent is not None and self.agent.poll() is not None:
                pytest.fail(f"the agent ended with {self.agent.returncode} before {what}: {self.log()}")
            return condition()

        try:
            return wait_until(holds, what, WAIT_S)
        except pytest.fail.Exception as failure:
            pytest.fail(f"{failure}; phase {self.phase()}; {self.log()}")

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()[-3000:]

    def public(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.folder / "run" / "state").read_text())
        except FileNotFoundError:
            return {}
        return state

    def phase(self) -> str:
        return str(self.public().get("phase"))

    def reach(self, *phases: str) -> None:
        self.until(lambda: self.phase() in phases, f"the phase is {' or '.join(phases)}")

    def calls(self, program: str) -> list[str]:
        """Return the calls of a stand-in, without its looks at units."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if line.startswith(f"{program} ") and not line.startswith("systemctl show")]

    def watts(self) -> list[int]:
        """Return the limits that were set for card 0, in order."""
        return [
            int(call.split()[-1]) for call in self.calls("nvidia-smi") if call.startswith("nvidia-smi -i 0 -pl")
        ]

    def notices(self) -> list[tuple[str, bool]]:
        """Return kind and end of the notices in the outbox, in order."""
        return [(one["kind"], one.get("ended", False)) for one in self.texts()]

    def texts(self) -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in sorted((self.folder / "outbox").glob("[!.]*.json"))]

    def metric(self, name: str) -> float | None:
        for line in (self.folder / "power.prom").read_text().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return None

    def chat(self, **more: Any) -> Any:
        body = {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, **more}
        return self.service.post("/v1/chat/completions", body)

    def hang(self, program: str, hangs: bool = True) -> None:
        """Make a stand-in hang and ignore SIGTERM."""
        file = self.folder / f"hang-{program}"
        file.touch() if hangs else file.unlink()


@contextmanager
def power_host(folder: Path, nut: Nut, service: RunningService, engine_pid: Path) -> Iterator[PowerHost]:
    """Make the stand-ins. The engine of ``service`` is that of the unit; ``engine_pid`` has its process id."""
    engine = [*MOCK_ENGINE, "--port", str(service.engine.port)]
    for part in ("bin", "state", "outbox"):
        (folder / part).mkdir(parents=True)
    for name in ("systemctl", "nvidia-smi", "upsmon"):
        file = folder / "bin" / name
        file.write_text(
            STAND_IN.format(python=sys.executable, folder=str(folder), engine=engine, pid_file=str(engine_pid))
        )
        file.chmod(0o755)
    host = PowerHost(folder, nut, service, engine_pid)
    try:
        yield host
    finally:
        if host.agent is not None and host.agent.poll() is None:
            host.agent.kill()
            host.agent.wait()


@contextmanager
def engine_process(service: RunningService, engine_pid: Path) -> Iterator[None]:
    """Write the process id of the engine of ``service``; at the end, kill the one that runs then."""
    first = str(service.engine.process.pid)
    engine_pid.write_text(first)
    try:
        yield
    finally:
        last = engine_pid.read_text()
        if last != first:
            with suppress(ProcessLookupError):
                os.kill(int(last), signal.SIGKILL)


def paused(service: RunningService) -> Any:
    return control_client.status(service.data)["paused"]


def stop_engine_in_outage(host: PowerHost) -> int:
    """Bring the host into an outage with stopped engines; return the process id of the first engine."""
    first = host.pid
    host.start()
    host.nut.set(ups_status="OB DISCHRG")
    host.reach("idle")
    host.until(lambda: not host.engine_runs(), "the engine stops")
    return first


def held_message() -> list[dict[str, str]]:
    """A chat whose response waits after two tokens for :func:`release`."""
    return [{"role": "user", "content": "fake: tokens=6 hold=2"}]


def release(host: PowerHost) -> None:
    http(host.service.engine.url + "/release", body={})
