"""Tests a running host: a token from each engine, the checks of ``appliance doctor``, authentication, then a load.

The order matters: while an engine loads, the doctor would report it as starting. A load is run only if everything
before passed, since it proves nothing about a service that is open or fails.
"""

from __future__ import annotations

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
from appliance.engines import golden_pairs
from appliance.engines.argv import EngineReplica, started_replicas
from appliance.engines.probe import probe_token
from appliance.errors import ApplianceError, StoreError
from appliance.smoketest import handshake, load, report
from appliance.smoketest.report import Proof, SmokeStep
from appliance.system.http_request import NO_RESPONSE, send_request
from appliance.system.stopping import Stop, Stopped
from appliance.upgrade.bootloader import Loader
from appliance.upgrade.nixos import Nixos, RunningSystem
from loadtests import html
from loadtests import report as reports

MACHINE = Path("/etc/appliance/machine.json")
BETWEEN_TRIES_S = 0.5
GATEWAY_TIMEOUT_S = 30
BEGUN = Path("/run/appliance-smoke/begun")
"""Created by the first smoke test of a boot: a later one in the same boot follows a live switch."""

OnStep = Callable[[SmokeStep], object]


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """The running system, and whether a boot started it."""

    running: RunningSystem
    booted: bool

    @staticmethod
    def of(machine: Nixos) -> SystemUnderTest:
        """Return the running system of ``machine``; raises :class:`LoaderError` if that is not NixOS."""
        running = machine.running()
        return SystemUnderTest(running, booted=machine.booted() == running)


def system_under_test() -> SystemUnderTest:
    """Return the running system of this host."""
    return SystemUnderTest.of(Nixos(Loader()))


def passed_before(reports_folder: Path, system: SystemUnderTest, begun: Path = BEGUN) -> Proof | None:
    """Return the report that makes another run needless: a pass after a boot, without a live switch since.

    Creates ``begun`` to record that this boot has had its test; it is on a file system that a reboot empties.
    Raises :class:`StoreError` if it cannot be created: the test of the next switch would be taken for that of this
    boot.
    """
    try:
        first = not begun.exists()
        begun.touch()
    except OSError as error:
        raise StoreError.unwritable(begun, error) from None
    earlier = report.latest(reports_folder, system.running.generation)
    return earlier if first and system.booted and earlier and earlier.passed and earlier.booted else None


def run_smoke_test(
    site: Site,
    base: Path,
    *,
    key: str,
    folder: Path,
    system: SystemUnderTest,
    on_step: OnStep,
    stop: Stop | None = None,
) -> Proof:
    """Run all steps, call ``on_step`` with each as it ends, and write the report to ``folder``.

    ``base`` is the folder to which paths of ``site`` are relative. ``stop`` ends the test between or within steps;
    the report then contains the steps so far and one that failed for that reason.

    Raises :class:`StoreError` if the report cannot be written: a result that cannot be recorded is not a pass. The
    reason is a step of its own before that, and is in the report if the disk has room for it.
    """
    began, clock = datetime.now().astimezone().isoformat(timespec="seconds"), time.monotonic()
    stop = stop or Stop()
    steps: list[SmokeStep] = []
    load: dict[str, object] | None = None
    refused: StoreError | None = None

    def add(found: Iterable[SmokeStep]) -> None:
        for step in found:
            steps.append(step)
            on_step(step)

    try:
        with stop.until(1):
            add(check_tokens(site))
            add(check_host(site, base, folder.parent / handshake.NAME))
            add(check_auth(site, key))
        if all(step.level != "fail" for step in steps):
            load = _run_load(site, key, folder=folder, add=lambda step: add([step]), stop=stop)
    except Stopped:
        # The step below reports it.
        pass
    except StoreError as error:
        refused = error
        add([SmokeStep("load", "fail", str(error))])
    if stop.requested:
        fix = "systemd sends SIGTERM when appliance.smoke.timeoutSec is over, or when the unit is stopped"
        add([SmokeStep("interrupted", "fail", seen=f"{stop.reason} ended the test before its end", fix=fix)])
    generation = system.running.generation
    proof = Proof(
        system=generation.system,
        number=generation.number,
        booted=system.booted,
        began=began,
        duration_s=time.monotonic() - clock,
        steps=tuple(steps),
        load=load,
        invocation=os.environ.get("INVOCATION_ID", ""),
    )
    report.save(proof, folder)
    if refused is not None:
        raise refused
    return proof


def check_host(site: Site, base: Path, known: Path) -> Iterator[SmokeStep]:
    """Run the doctor's checks of this host, with the last handshakes of the tunnel in the file ``known``."""
    machine = load_machine(MACHINE) if MACHINE.exists() else None
    host, tunnel = HostReader(Path("/")), machine.tunnel if machine is not None else None
    if tunnel is not None:
        handshake.wait_for_handshakes(host, tunnel)
    # Without the units: the smoke test is one of them and has not ended.
    only = [check.name for check in CHECKS if check.name != "units"]
    context = CheckContext(host, site, machine=machine, base=base, now=time.time())
    findings: Iterable[Finding] = examine(context, only).results
    if tunnel is not None:
        findings = handshake.attribute_fault(host, tunnel, findings, known=known, now=context.now)
    yield from map(step_of, findings)


def step_of(finding: Finding) -> SmokeStep:
    """Return a finding of the doctor as a step, which fails only if a generation can be the cause."""
    name = f"{finding.name} {finding.subject}".strip()
    external = finding.level == "fail" and finding.fault_domain == "external"
    # Checks that need root are warnings and never cause a rollback.
    level: report.Level = "warn" if external or finding.level == "unknown" else finding.level
    return SmokeStep(name, level, seen=finding.seen, fix=finding.fix, external=external)


def check_tokens(site: Site, timeout_s: float | None = None) -> Iterator[SmokeStep]:
    """Request one token from each engine that is always loaded, and retry while the engine may still be starting.

    ``timeout_s`` replaces the ``start_timeout_s`` of every engine.
    """
    clock = time.monotonic()
    for replica in started_replicas(site):
        name, model = f"token {replica.name}", replica.engine.model
        if replica.engine.residency == "on-demand":
            yield SmokeStep(name, "ok", "is loaded on demand; skipped")
            continue
        limit = replica.engine.start_timeout_s if timeout_s is None else timeout_s
        url = f"http://127.0.0.1:{replica.port}"
        while (reason := probe_token(url, model, site.models[model].task)) and time.monotonic() < clock + limit:
            time.sleep(BETWEEN_TRIES_S)
        if reason:
            unit = f"appliance-engine-{replica.name}"
            fix = f"systemctl status {unit}; journalctl -u {unit}"
            yield SmokeStep(name, "fail", seen=f"no token within {limit:.0f} s ({reason})", fix=fix)
        else:
            yield SmokeStep(name, "ok", f"responded after {time.monotonic() - clock:.0f} s")
            yield from check_quality(site, replica)


def check_quality(site: Site, replica: EngineReplica) -> Iterator[SmokeStep]:
    """Run the self-test of golden pairs on a replica of an embedder or a reranker that responds."""
    model = site.models[replica.engine.model]
    if model.task == "generate" or replica.engine.kind == "mock":
        return
    name = f"golden pairs {replica.name}"
    if model.golden_pairs_skipped is not None:
        yield SmokeStep(name, "ok", f"skipped: {model.golden_pairs_skipped}")
        return
    reason = golden_pairs.check(replica.url, replica.engine, site)
    fix = "appliance engine argv shows its pooling, its template and its overrides" if reason else ""
    yield SmokeStep(name, _level(not reason), reason or "related texts are clearly more similar", fix=fix)


def check_auth(site: Site, key: str) -> Iterator[SmokeStep]:
    """Check that the gateway rejects requests without a key or with an unknown one, and accepts ``key``."""
    url = f"http://{site.gateway.host}:{site.gateway.port}"
    for name, sent, wanted in (
        ("refuses no key", "", 401),
        ("refuses an unknown key", "sk-not-a-key", 401),
        ("takes a key", key, 200),
    ):
        try:
            status = send_request(url, "/v1/models", key=sent, direct=True, timeout_s=GATEWAY_TIMEOUT_S).status
        except NO_RESPONSE as error:
            fix = "systemctl status appliance-gateway; journalctl -u appliance-gateway"
            yield SmokeStep(f"gateway {name}", "fail", seen=f"no response ({type(error).__name__})", fix=fix)
            return
        fix = "" if status == wanted else "journalctl -u appliance-gateway"
        yield SmokeStep(
            f"gateway {name}", _level(status == wanted), seen=f"responded with status {status}", fix=fix
        )


def _level(holds: bool) -> report.Level:
    return "ok" if holds else "fail"


def _run_load(site: Site, key: str, folder: Path, add: OnStep, stop: Stop) -> dict[str, object] | None:
    url, model = f"http://{site.gateway.host}:{site.gateway.port}", load.default_model(site)
    try:
        result = load.run_load(site.smoke, url=url, key=key, model=model, folder=folder, stop=stop)
    except StoreError:
        raise
    except ApplianceError as error:
        add(SmokeStep("load", "fail", seen=str(error), fix="run `appliance loadtest` by hand"))
        return None
    for check in result.checks:
        measured = "not measured" if check.value is None else _amount(check.value, check.unit)
        limit = f"limit {_amount(check.limit, check.unit)}"
        fix = "" if check.holds else "`appliance loadtest` shows more; smoke.slo holds the limits"
        add(SmokeStep(f"load {check.name}", _level(check.holds), seen=f"{measured}, {limit}", fix=fix))
    if result.exit_code == reports.INVALID:
        reason = "; ".join(result.invalid) or "no request was made"
        add(SmokeStep("load", "fail", seen=f"the run is invalid: {reason}", fix=f"see {folder}"))
    page = folder / "load.html"
    try:
        # The page with plots; report.html links to it.
        page.write_text(html.render(result))
    except OSError as error:
        raise StoreError.unwritable(page, error) from None
    table: dict[str, object] = json.loads(result.to_json())
    return table


def _amount(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "share" else f"{value:.{0 if value >= 100 else 1}f} {unit}"
