"""Versions against their pins: kernel, driver, CUDA, Python, torch, vLLM; nginx on a VPS; the booted kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.contract.machine import Edge, Machine, Pins
from appliance.doctor.check import (
    NotApplicable,
    check,
    described_machine,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, unknown, warn
from appliance.doctor.host import CannotLookError, HostReader
from appliance.doctor.nvidia import read_module
from appliance.doctor.processes import Listener

DISTRIBUTIONS = {"vllm": "vllm", "torch": "torch", "nvidia_cuda_runtime": "cuda"}
"""Folders `NAME-VERSION.dist-info` of the engine's environment, and the name of the pin of each."""


OLDEST_SAFE_NGINX = (1, 30, 7)
"""Older versions have a memory corruption in HTTP/2 (CVE-2026-123007)."""


SWITCH = "nixos-rebuild boot --flake .#gpu && reboot"


@dataclass(frozen=True, slots=True)
class BootedVersions:
    """The kernel of the booted system and that of the current system."""

    running: str | None
    current: str | None


def read_versions(host: HostReader, command: str | None) -> dict[str, str]:
    """Return the actual versions by the name of the pin. ``command`` is the Python of the engine's environment."""
    found = {}
    release = host.text("/proc/sys/kernel/osrelease")
    if release:
        found["kernel"] = release.strip()
    module = read_module(host)
    if module is not None:
        found["driver"] = module.version
    if command is None:
        return found
    library = Path(command).parent.parent / "lib"
    for python in host.folder(library):
        match = re.fullmatch(r"python(\d+\.\d+)", python)
        packages = list(host.folder(library / python / "site-packages")) if match else []
        if match and packages:
            found["python"] = match[1]
        for package in packages:
            part = re.fullmatch(r"([\w.]+?)-([^-]+)\.dist-info", package)
            pin = DISTRIBUTIONS.get(re.sub(r"[-.]+", "_", part[1]).lower()) if part else None
            if part and pin:
                found[pin] = part[2]
    return found


def judge_versions(pins: Pins, found: Mapping[str, str], *, environment: bool) -> Iterator[Finding]:
    """Compare every pin with the actual version. A pin of two numbers is a series.

    Without an ``environment``, because no vLLM runs here, compare only kernel and driver.
    """
    for name, wanted in pins.model_dump().items():
        if name not in {"kernel", "driver"} and not environment:
            continue
        actual = found.get(name)
        if actual is None:
            what = "the kernel module is not loaded" if name == "driver" else "is not found"
            yield (
                fail(what, meaning="The version of the driver is unknown.", fix=SWITCH, subject=name)
                if name == "driver"
                else unknown(what, fix="appliance doctor as root, on the GPU host", subject=name)
            )
        elif of_series(actual, wanted):
            yield ok(actual, subject=name)
        else:
            yield fail(
                f"{actual}; pinned is {wanted}",
                meaning="This set of versions was not tested: driver, kernel and engine may not work together.",
                fix=SWITCH if name in {"kernel", "driver"} else "nixos-rebuild switch --flake .#gpu",
                subject=name,
            )


def of_series(actual: str, wanted: str) -> bool:
    """Return whether ``actual`` is ``wanted`` or a version of that series; ignores a local part (`+cu130`)."""
    have = re.split(r"[.\-]", actual.partition("+")[0])
    want = wanted.split(".")
    return have[: len(want)] == want


def read_booted(host: HostReader) -> BootedVersions:
    """Read the kernels of the booted and of the current system; both are ``None`` if this is not NixOS."""
    return BootedVersions(host.link("/run/booted-system/kernel"), host.link("/run/current-system/kernel"))


def judge_booted(booted: BootedVersions) -> Iterator[Finding]:
    """Judge whether a new kernel is installed that needs a reboot."""
    if booted.running is None or booted.current is None:
        return
    if booted.running != booted.current:
        yield warn(
            "a newer kernel is installed than the running one",
            meaning="Modules of the new system do not fit the running kernel: a driver loaded late fails.",
            fix="reboot, at a convenient time",
            subject="booted system",
        )
    else:
        yield ok("runs the current system's kernel", subject="booted system")


def read_nginx(host: HostReader, listeners: list[Listener], port: int) -> str:
    """Read the version of the running nginx; raises :class:`CannotLookError` if no process is visible."""
    process = next((one.process for one in listeners if one.port == port and one.process is not None), None)
    if process is None or not process.program:
        raise CannotLookError(f"no process is visible on port {port}", "run `appliance doctor` as root")
    done = host.run(process.program, "-v")
    match = re.search(r"nginx/(\d+(?:\.\d+)+)", done.err + done.out)
    if match is None:
        raise CannotLookError(f"{process.program} is not nginx", f"ss -lntp 'sport = :{port}'")
    return match[1]


def judge_nginx(edge: Edge, version: str) -> Finding:
    """Judge whether the running nginx is the installed one, without a known vulnerability in its protocols."""
    numbers = tuple(int(part) for part in version.split("."))
    if edge.http2 and numbers < OLDEST_SAFE_NGINX:
        return fail(
            f"{version} speaks HTTP/2",
            meaning="Its HTTP/2 has a memory corruption (CVE-2026-123007, fixed in 1.30.7).",
            fix="disable http2, or upgrade nginx; nixos-rebuild switch --flake .#vps",
            subject="nginx",
        )
    if version != edge.nginx:
        return warn(
            f"{version} runs; installed is {edge.nginx}",
            meaning="The old program still runs, with its old bugs.",
            fix="systemctl restart nginx",
            subject="nginx",
        )
    return ok(version, subject="nginx")


def pinned_machine(context: CheckContext) -> Machine | NotApplicable:
    """Require a machine with pins: cards or an edge."""
    machine = described_machine(context)
    if isinstance(machine, NotApplicable) or machine.cards is not None or machine.edge is not None:
        return machine
    return NotApplicable("nothing is pinned on this host")


@check(
    "pins",
    looks="kernel, driver, CUDA, Python, torch, vLLM against their pins; nginx on a VPS; a newer kernel",
    means="The running versions are not the tested set.",
    fix="`nixos-rebuild boot --flake .#gpu && reboot`",
    requires=pinned_machine,
    fault_domain="generation",
)
def check_pins(context: CheckContext, machine: Machine) -> Iterator[Finding]:
    """Check kernel, driver and environment of a GPU host, nginx of an edge, and the booted kernel of both."""
    if machine.cards is not None:
        command = next((r.engine.command for r in context.on_cards if r.engine.kind == "vllm"), None)
        found = read_versions(context.host, command)
        yield from judge_versions(machine.cards.pins, found, environment=command is not None)
    yield from judge_booted(read_booted(context.host))
    if machine.edge is not None:
        version = read_nginx(context.host, context.listeners, machine.edge.https_port)
        yield judge_nginx(machine.edge, version)
