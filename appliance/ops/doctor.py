"""``appliance doctor``: is this host what its configuration says? Read-only; each finding names its remedy."""

from __future__ import annotations

import http.client
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from appliance.config import Site
from appliance.plan.fit import fit

Level = Literal["ok", "warn", "fail"]
EXIT_CODES: dict[Level, int] = {"ok": 0, "warn": 0, "fail": 1}

LEAST_DRIVER = 580
"""CUDA 13 needs a driver of this major version or newer (NVIDIA's minor-version compatibility page)."""

DRIVER = Path("/proc/driver/nvidia/version")
DISK_WARN, DISK_FAIL = 0.10, 0.03
"""Free share of the data disk below which usage rows and keys are in danger."""

READY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, how it is, what that means, what mends it."""

    check: str
    level: Level
    seen: str
    mend: str = ""


def examine(site: Site, base: Path, driver: Path = DRIVER) -> Iterator[Finding]:
    """Every check of this host, in the order in which one would mend them."""
    yield from _fits(site)
    yield from _driver(site, driver)
    yield _disk(site.data_path(base))
    yield from _service(site)


def _fits(site: Site) -> Iterator[Finding]:
    broken = fit(site)
    for violation in broken:
        yield Finding("fit", "fail", f"{violation.where}: {violation.what}", violation.fix)
    if not broken:
        yield Finding("fit", "ok", "every engine fits its cards and RAM")


def _driver(site: Site, path: Path) -> Iterator[Finding]:
    if not any(engine.device == "cuda" and engine.kind != "fake" for engine in site.engines.values()):
        return
    match = (
        re.search(r"Kernel Module(?: for x86_64)?\s+(\d+)(\.[\d.]+)", path.read_text()) if path.exists() else None
    )
    if match is None:
        mend = "`dmesg | grep -i nvidia` tells why; open modules are needed on Blackwell"
        yield Finding("driver", "fail", "the NVIDIA kernel module is not loaded", mend)
        return
    version = match[1] + match[2]
    if int(match[1]) < LEAST_DRIVER:
        yield Finding(
            "driver", "fail", f"{version}; CUDA 13 needs {LEAST_DRIVER}", "switch to the pinned system, reboot"
        )
    else:
        yield Finding("driver", "ok", version)


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(existing)
    free = usage.free / usage.total
    seen = f"{free:.0%} of {usage.total / 2**30:.0f} GiB free at {existing}"
    level: Level = "fail" if free < DISK_FAIL else "warn" if free < DISK_WARN else "ok"
    return Finding("disk", level, seen, "" if level == "ok" else f"free space, or move {folder} to a larger disk")


def _service(site: Site) -> Iterator[Finding]:
    address = f"{site.gateway.host}:{site.gateway.port}"
    try:
        status, body = _get(site.gateway.host, site.gateway.port, "/ready")
        engines: dict[str, str] = json.loads(body)["engines"]
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        mend = "systemctl status appliance-gateway; journalctl -u appliance-gateway"
        yield Finding("gateway", "fail", f"does not answer on {address} ({type(error).__name__})", mend)
        return
    yield Finding("gateway", "ok", f"answers on {address}")
    for name, word in engines.items():
        mend = f"systemctl status appliance-engine-{name}; journalctl -u appliance-engine-{name}"
        yield (
            Finding(f"engine {name}", "ok", "generated a token")
            if word == "ready"
            else Finding(
                # Another replica may serve the model meanwhile: then it is worth a look, not an alarm.
                f"engine {name}",
                "warn" if status == 200 else "fail",
                word,
                mend,
            )
        )


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=READY_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def exit_code(findings: list[Finding]) -> int:
    """By the worst finding: 1 when one failed."""
    return max((EXIT_CODES[finding.level] for finding in findings), default=0)


def as_json(findings: list[Finding]) -> str:
    """The findings for other programs."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)


def show(findings: list[Finding], console: Console) -> None:
    """The findings as a table."""
    table = Table("check", "is", "seen", "what mends it")
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for one in findings:
        table.add_row(one.check, f"[{colours[one.level]}]{one.level}[/]", one.seen, one.mend)
    console.print(table)
