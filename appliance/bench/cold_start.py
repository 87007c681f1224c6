"""Measures a real start of an engine, from its process to its first token, on a host that serves.

| engine | way of the start |
|---|---|
| on demand, stopped | the gateway loads it, as for a request; afterwards the models of before are loaded again |
| on demand, loaded | with ``stop``: another on-demand model is loaded first, then as above |
| always resident, a unit of systemd | with ``stop``: drain, wait for its requests, restart the unit, undrain |

An engine that serves, and one whose start unloads a model that serves, is refused without ``stop``.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.bench.swap_time import load_again, loaded_models, on_demand, swap_to
from appliance.contract.model import Site
from appliance.engines.argv import EngineReplica, find, unit_name
from appliance.engines.probe import probe_token
from appliance.engines.start_stages import StartStages, start_stages
from appliance.errors import StartError, UsageError
from appliance.gateway import control_client
from appliance.system import files
from appliance.system.http_request import NO_RESPONSE, send_request
from appliance.system.stopping import Stop, Stopped

POLL_S = 0.1
PROBE_S = 5.0
DRAIN_S = 120.0
"""Seconds for the running requests of an engine that is restarted."""
SYSTEMCTL_S = 180.0
JOURNAL_S = 30.0
REASON = "its start is measured"
ALWAYS_UP = "every on-demand model of this site serves; no other one can take the place of"


@dataclass(frozen=True, slots=True)
class MeasuredStart:
    """One start in seconds since its begin; ``stages`` are from the log of vLLM, None for other engines.

    ``serves`` is the first response of its health path, None if it was not seen.
    """

    engine: str
    unloaded: float | None
    """End of the unload of another model, None if none was unloaded."""
    serves: float | None
    first_token: float
    stages: StartStages | None

    @property
    def seconds(self) -> dict[str, float]:
        """The known times by name; ``first_token`` is the whole start."""
        known = {"unloaded": self.unloaded, "serves": self.serves, "first_token": self.first_token}
        if self.stages is not None:
            known |= {name: getattr(self.stages, name) for name in ("weights", "compile", "graphs", "init")}
        return {name: value for name, value in known.items() if value is not None}


def startable(site: Site, name: str) -> EngineReplica:
    """Return the replica ``name``; raises :class:`UsageError` if a start of it cannot be measured from here."""
    replica = find(site, name)
    if not replica.engine.is_started:
        raise UsageError(f"engine {name} is of kind http: it runs by itself at {replica.url}")
    if replica.engine.residency == "on-demand" and replica.engine.sleep:
        raise UsageError(f"engine {name} sleeps between swaps; `appliance bench --swap` measures its wake")
    if replica.engine.residency == "always" and site.gateway.engine_control == "child":
        raise UsageError(
            f"engine {name} is always resident and a child of another process; name its log with --log"
        )
    return replica


def measure_start(site: Site, data: Path, name: str, *, stop_serving: bool, stop: Stop) -> MeasuredStart:
    """Start the replica ``name`` and return its times; ``data`` is the data folder of the gateway.

    Raises :class:`UsageError` for an engine that cannot be started from here or that serves, :class:`StartError` if
    the start fails, :class:`Stopped`. Each end restores the models that were loaded and the drain.
    """
    replica = startable(site, name)
    if replica.engine.residency == "on-demand":
        return _by_swap(site, data, replica, stop_serving=stop_serving, stop=stop)
    return _by_unit(data, replica, site.models[replica.engine.model].task, stop_serving=stop_serving, stop=stop)


def _by_swap(site: Site, data: Path, replica: EngineReplica, *, stop_serving: bool, stop: Stop) -> MeasuredStart:
    model, key = replica.engine.model, replica.name.partition(".")[0]
    before = loaded_models(data)
    if before and not stop_serving:
        raise UsageError(f"{', '.join(before)} serves and would be unloaded; add --stop if that is acceptable")
    timeout_s = float(replica.engine.start_timeout_s)
    try:
        if model in before:
            others = [one["model"] for one in on_demand(data).values() if one["model"] not in before]
            if not others:
                raise UsageError(f"{ALWAYS_UP} {model}")
            swap_to(data, others[0], stop=stop, timeout_s=timeout_s)
            if on_demand(data)[key]["state"] == "ready":
                raise UsageError(f"{others[0]} leaves room for {model}, which was not unloaded")
        log = _Log(site, data, replica.name)
        with _FirstResponse(replica.url) as health:
            times = swap_to(data, model, stop=stop, timeout_s=timeout_s)
        unloaded = times["unload"] if before else None
        first = times["total"]
        return MeasuredStart(replica.name, unloaded, health.before(first), first, log.stages())
    finally:
        load_again(data, before, timeout_s=timeout_s)


def _by_unit(data: Path, replica: EngineReplica, task: str, *, stop_serving: bool, stop: Stop) -> MeasuredStart:
    name, unit = replica.name, unit_name(replica.name)
    engine = control_client.status(data)["engines"][name]
    if engine["state"] == "up" and not stop_serving:
        raise UsageError(f"engine {name} serves; add --stop to drain and restart it")
    was_drained = engine["draining"] is not None
    if not was_drained:
        control_client.drain(data, name, REASON)
    try:
        _wait(lambda: not control_client.status(data)["engines"][name]["in_flight"], DRAIN_S, stop)
        began_at = time.time()
        _systemctl("stop", unit)
        began = time.monotonic()
        with _FirstResponse(replica.url) as health:
            _systemctl("start", "--no-block", unit)
            timeout_s = float(replica.engine.start_timeout_s)
            _wait(lambda: not probe_token(replica.url, replica.engine.model, task, PROBE_S), timeout_s, stop)
        first = time.monotonic() - began
        return MeasuredStart(name, None, health.before(first), first, start_stages(_journal(unit, began_at)))
    finally:
        if not was_drained:
            control_client.undrain(data, name)


def _wait(holds: Callable[[], bool], seconds: float, stop: Stop) -> None:
    """Wait until ``holds``; raise :class:`StartError` after ``seconds``, :class:`Stopped` at a signal."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= until:
            raise StartError(f"the engine was not ready within {seconds:.0f} s; see its log")
        if stop.wait(POLL_S):
            raise Stopped(stop.reason)


class _FirstResponse:
    """A thread that waits for the first response with status 200 of the health path of an engine."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._began = time.monotonic()
        self._after: float | None = None

    def __enter__(self) -> _FirstResponse:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def before(self, first_token_s: float) -> float | None:
        """Return the seconds from the begin of the block; None without a response.

        A first token proves a response, so a later look counts as one at ``first_token_s``.
        """
        return None if self._after is None else min(self._after, first_token_s)

    def _loop(self) -> None:
        while True:
            # A look follows the end of the block: a fast start can be whole between two looks.
            last = self._ended.is_set()
            try:
                if send_request(self._url, "/health", direct=True, timeout_s=1.0).status == 200:
                    self._after = time.monotonic() - self._began
                    return
            except NO_RESPONSE:
                pass
            if last:
                return
            self._ended.wait(POLL_S)


class _Log:
    """The log of an on-demand engine from now on: a file of the gateway's child, or the journal of its unit."""

    def __init__(self, site: Site, data: Path, name: str) -> None:
        self._file = data / "log" / f"engine-{name}.log" if site.gateway.engine_control == "child" else None
        self._name = name
        self._since = time.time()
        self._size = self._file.stat().st_size if self._file is not None and self._file.exists() else 0

    def stages(self) -> StartStages | None:
        """Return the stages of the start in the log; None if it has none of vLLM."""
        if self._file is None:
            return start_stages(_journal(unit_name(self._name), self._since))
        content = (files.read(self._file) or b"")[self._size :]
        return start_stages(content.decode("utf-8", "replace"))


def _systemctl(*words: str) -> None:
    done = _run(["systemctl", *words], SYSTEMCTL_S)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()[:200]
        raise StartError(f"systemctl {' '.join(words)} failed ({output}); run it as root")


def _journal(unit: str, since: float) -> str:
    done = _run(["journalctl", "-u", unit, "-o", "cat", "--since", f"@{since:.0f}"], JOURNAL_S)
    return done.stdout if done.returncode == 0 else ""


def _run(argv: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=timeout_s,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"{argv[0]} cannot be run ({error}); is this a systemd host?") from None
