"""Each line with which a sandbox allows more than the common one. Without the line, a step of the unit fails."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import pytest

from tests.booted.controls import CONTROLS, NOT_SHOWN, SAME, STEPS, UNITS, SandboxControl
from tests.booted.machine import ENGINE, ENGINE_PACKAGES, SOURCE, BootedMachine, python_program, require
from tests.booted.programs import scripts
from tests.booted.sandbox import departures, hardened, with_command, without
from tests.booted.site import GPU, BootedHost, own_unit
from tests.nix import rendered

pytestmark = pytest.mark.timeout(900)
CASES = [(kind, line, control) for kind, table in CONTROLS.items() for line, control in table.items()]
NAMES = [f"{kind}-{line}" for kind, line, _ in CASES]
ALLOWED = [(kind, step) for kind, steps in STEPS.items() for step in steps]
PROBE = "/usr/local/bin/probe"
LANES = {"admin": "gateway", "smoke": "gateway", "alerts": "trial"}
"""Sandboxes that share a folder with another one."""


def allowed(kind: str, step: str) -> str:
    """Return the unit that runs a step in the rendered sandbox."""
    return f"allowed-{kind}-{digest(step)}.service"


def denied(kind: str, line: str) -> str:
    """Return the unit that runs the step of a line in the sandbox without the line."""
    return f"control-{kind}-{digest(line)}.service"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def host_units() -> Mapping[str, set[str]]:
    """Return the departures of each unit of ours with a sandbox of modules/lib.nix."""
    units, common = rendered.host("gpu", GPU).units, hardened()
    return {
        name: departures(unit, common)
        for name, unit in units.items()
        if own_unit(name) and name.startswith("appliance-") and unit.kind == "service"
    }


def test_every_departure_has_a_control_or_a_reason() -> None:
    rendered.require()
    kinds = {**{unit: kind for kind, unit in UNITS.items()}, **SAME}
    found = {}
    for unit, lines in host_units().items():
        kind = kinds.get(unit)
        own = {line.replace("engine-agents", "engine-pair") for line in lines}
        known = set(CONTROLS[kind]) | {line for one, line in NOT_SHOWN if one == kind} if kind else set()
        if (unit in UNITS.values() and own != known) or not own <= known:
            found[unit] = own ^ known
    assert found == {}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    require()
    rendered.require()
    host = BootedHost(rendered.host("gpu", GPU), BootedMachine(tmp_path_factory.mktemp("sandbox") / "gpu"))
    made, common = host.machine, hardened()
    made.write("usr/local/bin/probe", python_program(f"{SOURCE}/tests/booted/probes.py", ENGINE), executable=True)
    made.write("usr/local/bin/nvidia-smi", scripts()["nvidia-smi"], executable=True)
    made.write("var/lib/appliance-gateway/private", "")
    # This machine's own limit can be the default of systemd, which no unit can exceed.
    made.write("etc/systemd/system.conf.d/limits.conf", "[Manager]\nDefaultLimitMEMLOCK=64K\n")
    names: dict[str, list[str]] = {}
    for kind, line, control in CASES:
        text = with_command(host.text(UNITS[kind]), f"{PROBE} {control.probe}")
        for name, one in ((allowed(kind, control.probe), text), (denied(kind, line), without(text, line, common))):
            made.write(f"etc/systemd/system/{name}", one)
            names.setdefault(LANES.get(kind, kind), []).append(name)
    for kind, step in ALLOWED:
        name = allowed(kind, step)
        made.write(f"etc/systemd/system/{name}", with_command(host.text(UNITS[kind]), f"{PROBE} {step}"))
        names[LANES.get(kind, kind)].append(name)
    made.write("var/lib/appliance-notices/private", "")
    made.write("var/lib/appliance-models/weights", "")
    made.boot()
    try:
        # After the boot: the journal of the machine must not read the log of this kernel.
        made.run("mknod", "-m", "600", "/dev/kmsg", "c", "1", "11")
        made.run("chown", "-R", "appliance-gateway:", "/var/lib/appliance-gateway")
        made.run("chmod", "-R", "go=", "/var/lib/appliance-gateway")
        made.cable("wg0", "10.77.0.1/24", "peer", "10.77.0.2/24")
        made.run("ip", "route", "add", "default", "via", "10.77.0.2")
        # Units that share a folder start one after another.
        lanes = [
            f"for unit in {' '.join(dict.fromkeys(lane))}; do systemctl start $unit; done &"
            for lane in names.values()
        ]
        made.run("sh", "-c", "\n".join([*lanes, "wait"]), check=False)
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize(("kind", "line", "control"), CASES, ids=NAMES)
def test_a_line_is_needed(machine: BootedMachine, kind: str, line: str, control: SandboxControl) -> None:
    if control.probe == "compiled" and ENGINE_PACKAGES is None:
        pytest.skip("NOT CHECKED: the environment of a real engine is missing; run `make test` without ENGINE=fake")
    assert result(machine, allowed(kind, control.probe)) == "success", machine.journal(allowed(kind, control.probe))
    messages = machine.journal(denied(kind, line))
    assert result(machine, denied(kind, line)) == "exit-code", messages
    assert control.error in messages


@pytest.mark.parametrize(("kind", "step"), ALLOWED)
def test_a_step_needs_no_line(machine: BootedMachine, kind: str, step: str) -> None:
    assert result(machine, allowed(kind, step)) == "success", machine.journal(allowed(kind, step))


def result(machine: BootedMachine, unit: str) -> str:
    """Return the result of a unit."""
    return machine.show(unit, "Result")["Result"]
