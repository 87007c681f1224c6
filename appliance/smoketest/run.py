"""Proves a running host: a token from each engine, what ``appliance doctor`` sees, the gateway's lock, then load.

In this order: until the engines have answered, the doctor would find them starting; and a load on a service whose
lock is open, or of which anything failed before, proves nothing.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.contract.machine import load_machine
from appliance.contract.model import Site
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding
from appliance.doctor.host import HostReader
from appliance.doctor.runner import CHECKS, examine
from appliance.engines.argv import EngineReplica, replicas
from appliance.engines.probe import CANARY_TIMEOUT_S, canary, canary_passed
from appliance.errors import ApplianceError, StoreError
from appliance.smoketest import handshake, load, report
from appliance.smoketest.report import Proof, SmokeStep
from appliance.system.stopping import Stop, Stopped
from appliance.upgrade.bootloader import Loader
from appliance.upgrade.nixos import Nixos, RunningSystem
from loadtests import html
from loadtests import report as reports

MACHINE = Path("/etc/appliance/machine.json")
BETWEEN_TRIES_S = 0.5
BEGUN = Path("/run/appliance-smoke/begun")
"""Made by the first smoke test of a boot: a later one of the same boot follows a switch."""


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """What is proven: the running system, and how it came to run."""

    place: RunningSystem
    booted: bool

    @staticmethod
    def of(machine: Nixos) -> SystemUnderTest:
        """What runs on ``machine``; raises :class:`LoaderError` where that is not NixOS."""
        running = machine.running()
        return SystemUnderTest(running, booted=machine.booted() == running)


def subject() -> SystemUnderTest:
    """What runs here."""
    return SystemUnderTest.of(Nixos(Loader()))


def proven_before(reports_folder: Path, what: SystemUnderTest, begun: Path = BEGUN) -> Proof | None:
    """The report that makes another run needless: this generation passed by a boot, and no switch came since.

    Notes in ``begun`` that this boot has had its test; ``begun`` lies on a file system that a reboot empties.

    Raises :class:`StoreError` where that cannot be noted: the next switch would be taken for this boot.
    """
    try:
        first = not begun.exists()
        begun.touch()
    except OSError as error:
        raise StoreError.unwritable(begun, error) from None
    earlier = report.latest(reports_folder, what.place.generation)
    return earlier if first and what.booted and earlier and earlier.passed and earlier.booted else None


def prove(
    site: Site,
    base: Path,
    *,
    key: str,
    folder: Path,
    what: SystemUnderTest,
    say: Callable[[SmokeStep], object],
    stop: Stop | None = None,
) -> Proof:
    """Every step, told to ``say`` as it ends; the report is written to ``folder``.

    ``stop`` ends it between or in the steps: the report then has what was seen and a step that failed for that.

    Raises :class:`StoreError` where the report cannot be written: what cannot be recorded does not pass. Why is
    said as a step before, and stands in the report where that still has room.
    """
    began, clock = datetime.now().astimezone().isoformat(timespec="seconds"), time.monotonic()
    stop = stop or Stop()
    steps: list[SmokeStep] = []
    load: dict[str, object] | None = None
    refused: StoreError | None = None

    def take(found: Iterator[SmokeStep]) -> bool:
        before = len(steps)
        for step in found:
            steps.append(step)
            say(step)
        return all(step.level != "fail" for step in steps[before:])

    try:
        with stop.until(1):
            take(tokens(site))
            take(_host(site, base, folder.parent / handshake.NAME))
            whole = take(lock(site, key)) and all(step.level != "fail" for step in steps)
        if whole:
            load = _load(site, key, folder, lambda step: take(iter((step,))), stop)
    except Stopped:
        # The step below reports it.
        pass
    except StoreError as error:
        refused = error
        take(iter((SmokeStep("load", "fail", str(error)),)))
    if stop.requested:
        mend = "systemd sends SIGTERM when appliance.smoke.timeoutSec is over, or when the unit is stopped"
        take(iter((SmokeStep("interrupted", "fail", f"{stop.reason} ended the test before its end", mend),)))
    generation = what.place.generation
    made = Proof(
        generation.system,
        generation.number,
        what.booted,
        began,
        time.monotonic() - clock,
        tuple(steps),
        load,
        os.environ.get("INVOCATION_ID", ""),
    )
    report.save(made, folder)
    if refused is not None:
        raise refused
    return made


def _host(site: Site, base: Path, known: Path) -> Iterator[SmokeStep]:
    machine = load_machine(MACHINE) if MACHINE.exists() else None
    host, tunnel = HostReader(Path("/")), machine.tunnel if machine is not None else None
    if tunnel is not None:
        handshake.wait(host, tunnel)
    # Not the units: the smoke test is one of them, and has not ended.
    only = [check.name for check in CHECKS if check.name != "units"]
    scene = CheckContext(host, site, machine, base, time.time())
    results: Iterable[Finding] = examine(scene, only).results
    if tunnel is not None:
        results = handshake.weigh(host, tunnel, results, known, scene.now)
    yield from map(step_of, results)


def step_of(result: Finding) -> SmokeStep:
    """What the doctor found, as a step: a failure only where a generation can be at fault for it."""
    name = f"{result.name} {result.subject}".strip()
    external = result.level == "fail" and result.fault_domain == "external"
    # What could not be looked at, for this is not root, is not what the machine is sent back for.
    level: report.Level = "warn" if external or result.level == "unknown" else result.level
    return SmokeStep(name, level, result.seen, result.fix, external)


def tokens(site: Site, try_for_s: float | None = None) -> Iterator[SmokeStep]:
    """One token from each engine that is always loaded, waiting for each as long as its start may take."""
    clock = time.monotonic()
    for replica in replicas(site):
        name = f"token {replica.name}"
        if replica.engine.residency == "on-demand":
            yield SmokeStep(name, "ok", "is loaded on demand; not asked here")
            continue
        limit = replica.engine.start_timeout_s if try_for_s is None else try_for_s
        while (said := _token(site, replica)) and time.monotonic() < clock + limit:
            time.sleep(BETWEEN_TRIES_S)
        if said:
            unit = f"appliance-engine-{replica.name}"
            mend = f"systemctl status {unit}; journalctl -u {unit}"
            yield SmokeStep(name, "fail", f"no token within {limit:.0f} s ({said})", mend)
        else:
            yield SmokeStep(name, "ok", f"answered after {time.monotonic() - clock:.0f} s")


def _token(site: Site, replica: EngineReplica) -> str:
    """Ask once; what was wrong, empty where nothing was."""
    path, body = canary(replica.engine.model, site.models[replica.engine.model].task)
    try:
        status, answer = _exchange("127.0.0.1", replica.port, "POST", path, body, CANARY_TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    return "" if canary_passed(status, answer) else f"it answered {status}"


def lock(site: Site, key: str) -> Iterator[SmokeStep]:
    """The gateway refuses who has no key or a wrong one, and lets in who has one."""
    for name, sent, wanted in (
        ("refuses no key", None, 401),
        ("refuses a wrong key", "sk-not-a-key", 401),
        ("takes a key", key, 200),
    ):
        try:
            status = _exchange(site.gateway.host, site.gateway.port, "GET", "/v1/models", None, 30, sent)[0]
        except (OSError, http.client.HTTPException) as error:
            mend = "systemctl status appliance-gateway; journalctl -u appliance-gateway"
            yield SmokeStep(f"gateway {name}", "fail", f"no answer ({type(error).__name__})", mend)
            return
        seen, level = f"answered {status}", proof_level(status == wanted)
        yield SmokeStep(f"gateway {name}", level, seen, "" if level == "ok" else "journalctl -u appliance-gateway")


def proof_level(holds: bool) -> report.Level:
    """``ok`` or ``fail``."""
    return "ok" if holds else "fail"


def _load(
    site: Site, key: str, folder: Path, add: Callable[[SmokeStep], object], stop: Stop
) -> dict[str, object] | None:
    url, model = f"http://{site.gateway.host}:{site.gateway.port}", load.default_model(site)
    try:
        report = load.run(site.smoke, url=url, key=key, model=model, folder=folder, stop=stop)
    except StoreError:
        raise
    except ApplianceError as error:
        add(SmokeStep("load", "fail", str(error), "run `appliance loadtest` by hand"))
        return None
    for check in report.checks:
        seen = "not measured" if check.value is None else _amount(check.value, check.unit)
        limit = f"limit {_amount(check.limit, check.unit)}"
        mend = "" if check.holds else "`appliance loadtest` shows more; smoke.slo holds the limits"
        add(SmokeStep(f"load {check.name}", proof_level(check.holds), f"{seen}, {limit}", mend))
    if report.exit_code == reports.INVALID:
        why = "; ".join(report.invalid) or "no request was made"
        add(SmokeStep("load", "fail", f"the run proves nothing: {why}", f"see {folder}"))
    page = folder / "load.html"
    try:
        # As a page with plots, beside the report.
        page.write_text(html.render(report))
    except OSError as error:
        raise StoreError.unwritable(page, error) from None
    table: dict[str, object] = json.loads(report.to_json())
    return table


def _amount(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "share" else f"{value:.{0 if value >= 100 else 1}f} {unit}"


def _exchange(
    host: str, port: int, method: str, path: str, body: bytes | None, timeout_s: float, key: str | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
