"""NUT, the power agent and the last minute of a battery, as rendered, on a booted machine whose UPS is a file.

The kernel ends the process 1 of namespaces with a signal that names the request. So a test sees a power off or a
reboot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.booted.controls import ABSENT, DENIED, FAMILY, OTHER_MACHINE, READ_ONLY, SET, SandboxControl
from tests.booted.machine import ENGINE, SOURCE, BootedMachine, python_program, require
from tests.booted.sandbox import departures, hardened, with_command, without
from tests.booted.site import GPU, BootedHost, prepare
from tests.conftest import wait_until
from tests.nix import rendered
from tests.nix.rendered import RenderedHost

pytestmark = pytest.mark.timeout(900)

UPS = "/etc/ups.dev"
CHANGES = {
    "appliance": {
        "power": {
            "enable": True,
            "ups": {"driver": "dummy-ups", "port": UPS, "directives": ["pollinterval = 1"]},
            # The order of events is that of the defaults, with shorter waits.
            "limits": {"pause_after_s": 2, "drain_s": 20, "stable_s": 2, "short_s": 2, "start_s": 300},
        },
        "settings": {"gateway": {"host": "127.0.0.1"}, "hosts": {"gpu": {"ups": {"watts": 2000}}}},
    }
}
NUT = ("appliance-power-password.service", "upsd.service", "upsdrv.service", "upsmon.service")
SERVICE = (
    "nftables.service",
    "nvidia-persistenced.service",
    "appliance-gpu-power.service",
    "appliance-models-verify.service",
    "appliance-gateway.service",
    "appliance-engine-embed.service",
)
ENGINE_UNIT = "appliance-engine-embed.service"
KILLPOWER = "ups-killpower.service"
UNITS = {
    "agent": "appliance-power.service",
    "off": "appliance-power-off.service",
    "password": "appliance-power-password.service",
}
PROBE = "/usr/local/bin/probe"
CLOSED = "Permission denied"
DRIVER_PID = "/var/lib/nut/dummy-ups-ups.pid"
UPSMON_PID = "/run/nut/upsmon.pid"
METRICS = "/run/appliance-metrics/power.prom"
CONFIG = "/etc/appliance/appliance.json"
GATEWAY = "http://127.0.0.1:8000"
RACE = "the UPS cuts the power; if it does not within 80 s, this host reboots"
"""Message of the rendered script that reboots a host whose UPS cuts nothing."""
FOLDERS = """d /run/appliance-metrics 0755 root root
d /run/appliance-card-power 0755 root root
d /var/lib/nut 0700 root root
"""
"""The folders of modules/power.nix and of NixOS's module of NUT, for systemd-tmpfiles."""

CONTROLS: Mapping[str, Mapping[str, SandboxControl]] = {
    "agent": {
        "CapabilityBoundingSet=CAP_DAC_OVERRIDE": SandboxControl("read /var/lib/appliance-gateway/private", CLOSED),
        "CapabilityBoundingSet=CAP_SYS_ADMIN": SandboxControl(SET, DENIED),
        "DeviceAllow=char-nvidia rw": SandboxControl(SET, DENIED),
        "IPAddressAllow=localhost": SandboxControl("send 127.0.0.1", DENIED),
        "PrivateDevices=false": SandboxControl(SET, ABSENT),
        "PrivateUsers=false": SandboxControl(SET, DENIED),
        "ProcSubset=all": SandboxControl("read /proc/sys/kernel/random/boot_id", ABSENT),
        "ReadWritePaths=-/var/lib/appliance-notices": SandboxControl("write /var/lib/appliance-notices", READ_ONLY),
        "RestrictAddressFamilies=AF_INET": SandboxControl("family AF_INET", FAMILY),
        # Addresses of engines may be ::1.
        "RestrictAddressFamilies=AF_INET6": SandboxControl("send ::1", FAMILY),
        "StateDirectory=appliance-power": SandboxControl("write /var/lib/appliance-power", READ_ONLY),
        "UMask=0022": SandboxControl("public /run/appliance-metrics", "is private"),
        "User=root": SandboxControl(SET, DENIED),
    },
    "off": {
        "CapabilityBoundingSet=CAP_KILL": SandboxControl(f"signal {UPSMON_PID}", DENIED),
        "PrivateUsers=false": SandboxControl(f"signal {UPSMON_PID}", DENIED),
        "User=root": SandboxControl("write /run", CLOSED),
    },
}
# upsmon reads the name of the process that it signals.
STEPS = (("off", f"name {UPSMON_PID}"), ("off", "write /run"), ("agent", "write /run/appliance-card-power"))
"""Further steps of a unit that its sandbox allows without a line of its own."""
RUN_WRITABLE = "this systemd leaves /run writable; its manual does not promise that"
NOT_SHOWN: Mapping[tuple[str, str], str] = {
    ("agent", "ReadWritePaths=/run/appliance-card-power"): RUN_WRITABLE,
    ("agent", "ReadWritePaths=/run/appliance-metrics"): RUN_WRITABLE,
    ("off", "ReadWritePaths=/run"): RUN_WRITABLE,
    ("agent", "DeviceAllow=char-nvidia-uvm rw"): OTHER_MACHINE + "nvidia-smi may open it for some figures",
    ("password", "User=root"): "systemd gives the folder of the password to the unit's own user",
}
CASES = [(kind, line, control) for kind, table in CONTROLS.items() for line, control in table.items()]


@pytest.fixture(scope="module")
def texts() -> RenderedHost:
    require()
    rendered.require()
    return rendered.host("gpu", GPU, changes=json.dumps(CHANGES))


def figures(status: str, charge: int = 100) -> str:
    """Return the file of a UPS with this status and charge in percent."""
    values = {"ups.status": status, "battery.charge": charge, "battery.runtime": charge * 9, "ups.load": 40}
    return "".join(f"{name}: {value}\n" for name, value in values.items())


def set_ups(machine: BootedMachine, status: str, charge: int = 100) -> None:
    """Change the status of the UPS; the driver reads the file again."""
    machine.run("sh", "-c", f"printf '%s' '{figures(status, charge)}' > {UPS}.new && mv {UPS}.new {UPS}")


def installed(texts: RenderedHost, folder: Path, *units: str) -> BootedHost:
    """Return a machine with NUT, ``units`` and the unit that cuts the power, not booted yet."""
    host = BootedHost(texts, BootedMachine(folder))
    (folder.parent / "gpu.key").write_text("a private key\n")
    prepare(host, folder.parent)
    made = host.machine
    host.install([*NUT, *units, KILLPOWER])
    made.write("etc/sysusers.d/power.conf", "u nutmon - - -\n")
    made.write("etc/tmpfiles.d/power.conf", FOLDERS)
    made.hide("etc/nut")
    for name in ("nut.conf", "ups.conf", "upsd.conf"):
        made.write(f"etc/nut/{name}", texts.etc_text(f"nut/{name}"))
    for name in ("upsd.users", "upsmon.conf"):
        made.link(f"etc/nut/{name}", texts.etc[f"nut/{name}"])
    made.write(UPS[1:], figures("OL"))
    # With this folder, the journal outlasts the machine.
    (made.root / "var/log/journal").mkdir(parents=True)
    return host


@contextmanager
def booted(host: BootedHost) -> Iterator[BootedMachine]:
    """Boot the machine, start NUT, and stop the machine at the end."""
    host.machine.boot()
    try:
        host.machine.run("systemctl", "start", *NUT)
        wait_until(lambda: upsc(host.machine) == "OL", "the UPS is on mains", 200)
        yield host.machine
    finally:
        host.machine.stop()


def upsc(machine: BootedMachine) -> str:
    """Return the status of the UPS, as upsd reports it."""
    return machine.run("upsc", "ups@127.0.0.1", "ups.status", check=False).strip()


def probe_unit(kind: str, line: str, *, control: bool) -> str:
    number = [(one, other) for one, other, _ in CASES].index((kind, line))
    return f"{'control' if control else 'allowed'}-{kind}-{number}.service"


@pytest.fixture(scope="module")
def machine(texts: RenderedHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    host = installed(texts, tmp_path_factory.mktemp("power") / "power", *SERVICE, UNITS["agent"], UNITS["off"])
    made, common = host.machine, hardened()
    made.write(PROBE[1:], python_program(f"{SOURCE}/tests/booted/probes.py", ENGINE), executable=True)
    program = next((made.root / "opt/store").glob("*nvidia-x11*/bin/nvidia-smi"))
    made.write("usr/local/bin/nvidia-smi", program.read_text(), executable=True)
    probes = []
    for kind, line, control in CASES:
        text = with_command(host.text(UNITS[kind]), f"{PROBE} {control.probe}")
        for of_control, one in ((False, text), (True, without(text, line, common))):
            probes.append(probe_unit(kind, line, control=of_control))
            made.write(f"etc/systemd/system/{probes[-1]}", one)
    for number, (kind, step) in enumerate(STEPS):
        probes.append(f"step-{number}.service")
        made.write(f"etc/systemd/system/{probes[-1]}", with_command(host.text(UNITS[kind]), f"{PROBE} {step}"))
    with booted(host) as made:
        made.run("install", "-d", "-o", "appliance-gateway", "-m", "0700", "/var/lib/appliance-gateway")
        private = "/var/lib/appliance-gateway/private"
        made.run("install", "-o", "appliance-gateway", "-m", "0600", "/dev/null", private)
        # The probes share the folders of the agent: one after another, before the agent itself.
        made.run("sh", "-c", f"for unit in {' '.join(probes)}; do systemctl start $unit; done", check=False)
        made.run("systemctl", "start", *SERVICE, UNITS["agent"])
        wait_until(lambda: phase(made) == "mains", "the agent has read the UPS", 200)
        yield made


def phase(machine: BootedMachine) -> str:
    """Return the phase of an outage in the agent's metrics."""
    found = re.findall(r'^appliance_power_phase\{phase="([a-z-]+)"\} 1\.0$', metrics(machine), re.MULTILINE)
    return str(found[0]) if found else ""


def metrics(machine: BootedMachine) -> str:
    return machine.run("cat", METRICS, check=False)


def chat(machine: BootedMachine, key: str) -> tuple[str, str]:
    """Return status and body of the gateway's response to a chat."""
    body = json.dumps({"model": "qwen3-30b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3})
    head = ["-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json"]
    curl = ["curl", "-s", "-w", "\n%{http_code}", "--max-time", "60", *head, "-d", body]
    text, _, status = machine.run(*curl, f"{GATEWAY}/v1/chat/completions", check=False).rpartition("\n")
    return status, text


def new_key(machine: BootedMachine) -> str:
    """Return a key of the gateway."""
    program = next(machine.root.glob("opt/store/*llm-appliance*/bin/appliance"))
    create = [f"/{program.relative_to(machine.root)}", "keys", "create", "test", "--config", CONFIG]
    return machine.run("runuser", "-u", "appliance-gateway", "--", *create).split()[-1]


def result(machine: BootedMachine, unit: str) -> str:
    return machine.show(unit, "Result")["Result"]


def test_every_departure_has_a_control_or_a_reason(texts: RenderedHost) -> None:
    common = hardened()
    for kind, unit in UNITS.items():
        known = {*CONTROLS.get(kind, {}), *(line for one, line in NOT_SHOWN if one == kind)}
        assert departures(texts.unit(unit), common) == known, unit


@pytest.mark.parametrize(("kind", "line", "control"), CASES, ids=[f"{kind}-{line}" for kind, line, _ in CASES])
def test_a_line_is_needed(machine: BootedMachine, kind: str, line: str, control: SandboxControl) -> None:
    allowed, denied = (probe_unit(kind, line, control=one) for one in (False, True))
    assert result(machine, allowed) == "success", machine.journal(allowed)
    messages = machine.journal(denied)
    assert result(machine, denied) == "exit-code", messages
    assert control.error in messages


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_a_step_needs_no_line(machine: BootedMachine, number: int) -> None:
    assert result(machine, f"step-{number}.service") == "success", machine.journal(f"step-{number}.service")


def test_upsmon_has_the_password_of_upsd_and_no_other_user_can_read_it(machine: BootedMachine) -> None:
    wait_until(lambda: "127.0.0.1" in machine.run("upsc", "-c", "ups@127.0.0.1"), "upsmon has logged in", 200)
    password = machine.run("cat", "/run/appliance-nut/password").strip()
    assert len(password) == 32
    for file, owner in (("upsd.users", "root"), ("upsmon.conf", "nutmon")):
        assert f'"{password}"' in machine.run("cat", f"/run/nut/{file}")
        assert machine.run("stat", "-c", "%U %a", f"/run/nut/{file}").strip() == f"{owner} 400"


def test_a_cut_that_ends_stops_the_engines_and_brings_them_back(machine: BootedMachine) -> None:
    key = new_key(machine)
    wait_until(lambda: chat(machine, key)[0] == "200", "the gateway and its engine serve", 200)
    set_ups(machine, "OB DISCHRG", 95)
    wait_until(lambda: phase(machine) == "idle", "the host waits with its engines off", 200)
    wait_until(
        lambda: machine.show(ENGINE_UNIT, "ActiveState")["ActiveState"] == "inactive", "the engine ends", 200
    )
    status, body = chat(machine, key)
    assert status == "503"
    assert "on battery after a power cut" in body
    assert "appliance_power_on_battery 1.0" in metrics(machine)
    assert json.loads(machine.run("cat", "/run/appliance-power/state"))["phase"] == "idle"
    # The cards run at minimum watts: both wishes are recorded, and nvidia-smi was called in this sandbox.
    wishes = json.loads(machine.run("cat", "/run/appliance-card-power/power.json"))
    assert set(wishes.values()) == {150}
    wait_until(lambda: "on battery" in machine.journal("upsmon"), "upsmon reports the cut", 200)
    set_ups(machine, "OL CHRG", 95)
    wait_until(lambda: phase(machine) == "mains", "the service is complete again", 400)
    assert machine.show(ENGINE_UNIT, "ActiveState")["ActiveState"] == "active"
    assert chat(machine, key)[0] == "200"
    assert machine.run("cat", "/run/appliance-card-power/power.json").strip() == "{}"
    assert machine.show(UNITS["off"], "ExecMainStartTimestampMonotonic")["ExecMainStartTimestampMonotonic"] == "0"
    notices = machine.run("sh", "-c", "cat /var/lib/appliance-notices/*.json")
    assert "The power is cut" in notices
    assert "The power is back" in notices


def test_a_driver_that_ends_is_started_again(machine: BootedMachine) -> None:
    """NixOS itself starts the drivers once: https://github.com/NixOS/nixpkgs/issues/525205."""
    before = machine.run("cat", DRIVER_PID).strip()
    machine.run("kill", "-KILL", before)
    wait_until(lambda: machine.run("cat", DRIVER_PID, check=False).strip() not in ("", before), "a new driver", 200)
    set_ups(machine, "OL TRIM")
    wait_until(lambda: upsc(machine) == "OL TRIM", "upsd reads the new driver", 200)
    assert phase(machine) == "mains"


def quick(name: str, text: str) -> str:
    """Shorten the wait for the cut of the power."""
    return re.sub(r"(bin/sleep) 80\b", r"\1 2", text) if name == "appliance-power-race" else text


def test_the_reserve_ends_the_machine_and_it_reboots_if_the_power_stays(
    texts: RenderedHost, tmp_path: Path
) -> None:
    """From the agent by its unit and upsmon to the order to the UPS, which cuts nothing here."""
    host = installed(texts.edited(quick), tmp_path / "reserve", *SERVICE, UNITS["agent"], UNITS["off"])
    with booted(host) as machine:
        machine.run("systemctl", "start", *SERVICE, UNITS["agent"])
        wait_until(lambda: phase(machine) == "mains", "the agent has read the UPS", 200)
        key = new_key(machine)
        wait_until(lambda: chat(machine, key)[0] == "200", "the gateway and its engine serve", 200)
        # Without LB: upsmon itself would act on that.
        set_ups(machine, "OB DISCHRG", 10)
        assert machine.wait_for_end(400) == "reboot"
        journal = machine.kept_journal()
    events = (
        "The machine shuts down now: 90 s of runtime are left, below the reserve",
        "Shutdown at the end of the battery",
        "Executing automatic power-fail shutdown",
        "UPS Kill Power",
        RACE,
    )
    places = [journal.find(event) for event in events]
    assert -1 not in places, list(zip(events, places, strict=True))
    assert places == sorted(places), list(zip(events, places, strict=True))
    assert "upsmon did not shut this host down" not in journal
    for unit in (ENGINE_UNIT, "appliance-gateway.service"):
        stopped = journal.find(f"Stopped {unit}")
        assert 0 < stopped < journal.find(RACE), unit


def test_without_upsmon_the_unit_ends_the_machine_with_the_flag(texts: RenderedHost, tmp_path: Path) -> None:
    host = installed(texts.edited(quick), tmp_path / "alone", UNITS["off"])
    with booted(host) as machine:
        machine.run("systemctl", "stop", "upsmon")
        machine.run("systemctl", "start", "--no-block", UNITS["off"])
        assert machine.wait_for_end(400) == "reboot"
        journal = machine.kept_journal()
    assert "upsmon did not shut this host down" in journal
    assert RACE in journal


def test_control_without_the_race_a_machine_that_upsmon_ends_stays_off(texts: RenderedHost, tmp_path: Path) -> None:
    def without_race(name: str, text: str) -> str:
        return re.sub(r"^ExecStart=.*power-race\n", "", text, flags=re.MULTILINE) if name == KILLPOWER else text

    host = installed(texts.edited(without_race), tmp_path / "control")
    with booted(host) as machine:
        set_ups(machine, "OB LB DISCHRG", 10)
        assert machine.wait_for_end(400) == "power off"
        journal = machine.kept_journal()
    assert "Executing automatic power-fail shutdown" in journal
    assert "UPS Kill Power" in journal
    assert RACE not in journal


def test_control_an_ordinary_shutdown_leaves_the_ups_alone(texts: RenderedHost, tmp_path: Path) -> None:
    host = installed(texts.edited(quick), tmp_path / "ordinary")
    with booted(host) as machine:
        machine.run("systemctl", "poweroff")
        assert machine.wait_for_end(400) == "power off"
        assert RACE not in machine.kept_journal()
