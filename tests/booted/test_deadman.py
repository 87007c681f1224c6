"""The dead man's switch and its sender under their rendered sandbox on a booted VPS, and a control of each line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest

from tests.booted.controls import DENIED, FAMILY, NFT, READ_ONLY, SandboxControl
from tests.booted.machine import ENGINE, SOURCE, BootedMachine, python_program, require
from tests.booted.sandbox import departures, hardened, with_command, without
from tests.booted.site import BootedHost
from tests.conftest import wait_until
from tests.nix import rendered
from tests.nix.rendered import RenderedHost

pytestmark = pytest.mark.timeout(900)

EVERYTHING = "tests/nix/everything_vps.nix"
UNITS = {"switch": "appliance-deadman.service", "sender": "appliance-deadman-notify.service"}
PROBE = "/usr/local/bin/probe"
FOLDER = "/var/lib/appliance-deadman"
TOKEN = "123456:fake-token_for-tests-only_0123456789"
NFT_FAILS = "returned non-zero exit status"
_STATE = SandboxControl(f"write {FOLDER}", READ_ONLY)

CONTROLS: Mapping[str, Mapping[str, SandboxControl]] = {
    "switch": {
        "AmbientCapabilities=CAP_NET_ADMIN": SandboxControl(NFT, NFT_FAILS),
        "CapabilityBoundingSet=CAP_NET_ADMIN": SandboxControl(NFT, NFT_FAILS),
        "PrivateUsers=false": SandboxControl(NFT, NFT_FAILS),
        "RestrictAddressFamilies=AF_NETLINK": SandboxControl(NFT, FAMILY),
        "RestrictAddressFamilies=AF_INET": SandboxControl("family AF_INET", FAMILY),
        "IPAddressAllow=10.77.0.1": SandboxControl("send 10.77.0.1", DENIED),
        "IPAddressAllow=10.77.0.2": SandboxControl("send 10.77.0.2", DENIED),
        "StateDirectory=appliance-deadman": _STATE,
    },
    "sender": {
        "IPAddressDeny=": SandboxControl("send 203.0.113.50", DENIED),
        "RestrictAddressFamilies=AF_INET": SandboxControl("family AF_INET", FAMILY),
        "RestrictAddressFamilies=AF_INET6": SandboxControl("family AF_INET6", FAMILY),
        "StateDirectory=appliance-deadman": _STATE,
    },
}
WITH_PING = {
    "IPAddressAllow=any": SandboxControl("send 203.0.113.50", DENIED),
    "RestrictAddressFamilies=AF_INET6": SandboxControl("family AF_INET6", FAMILY),
}
"""Lines of a switch that requests a URL of an outside service, in place of the addresses of the tunnel."""
CASES = [(kind, line, control) for kind, table in CONTROLS.items() for line, control in table.items()]


@pytest.fixture(scope="module")
def texts() -> RenderedHost:
    require()
    rendered.require()
    ping = json.dumps({"appliance": {"deadman": {"pingUrlFile": None}}})
    return rendered.host("vps", EVERYTHING, changes=ping)


def probe_unit(kind: str, line: str, *, control: bool) -> str:
    number = [(one, other) for one, other, _ in CASES].index((kind, line))
    return f"{'control' if control else 'allowed'}-{kind}-{number}.service"


def test_every_departure_has_a_control(texts: RenderedHost) -> None:
    common = hardened()
    assert {kind: departures(texts.unit(unit), common) for kind, unit in UNITS.items()} == {
        kind: set(table) for kind, table in CONTROLS.items()
    }


def test_a_switch_with_a_ping_departs_further() -> None:
    """The lines of :data:`WITH_PING` have the same controls as those of the sender."""
    rendered.require()
    unit = rendered.host("vps", EVERYTHING).unit(UNITS["switch"])
    kept = {line for line in CONTROLS["switch"] if not line.startswith("IPAddressAllow")}
    assert departures(unit, hardened()) == kept | set(WITH_PING)


@pytest.fixture(scope="module")
def machine(texts: RenderedHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    host = BootedHost(texts, BootedMachine(tmp_path_factory.mktemp("deadman") / "vps"))
    made, common = host.machine, hardened()
    host.install(list(UNITS.values()))
    made.write(PROBE[1:], python_program(f"{SOURCE}/tests/booted/probes.py", ENGINE), executable=True)
    made.write("etc/sysusers.d/deadman.conf", "u appliance-deadman - - -\n")
    made.write("run-secrets/deadman-bot-token", f"{TOKEN}\n")
    made.write("etc/tmpfiles.d/nixos.conf", "C /run/secrets - - - - /run-secrets\n")
    made.write("srv/gateway/ready", json.dumps({"status": "ready", "engines": {}}))
    lanes: dict[str, list[str]] = {}
    for kind, line, control in CASES:
        text = with_command(host.text(UNITS[kind]), f"{PROBE} {control.probe}")
        for of_control, one in ((False, text), (True, without(text, line, common))):
            name = probe_unit(kind, line, control=of_control)
            made.write(f"etc/systemd/system/{name}", one)
            lanes.setdefault(kind, []).append(name)
    made.boot()
    try:
        # Home at the other end of a cable, in place of the tunnel: the kernel of this machine has no WireGuard.
        made.cable("wg0", "10.77.0.2/24", "home", "10.77.0.1/24")
        made.run("ip", "route", "add", "default", "via", "10.77.0.1")
        # The probes share the folder of the unit: one after another, before the units themselves.
        units = " ".join(name for lane in lanes.values() for name in lane)
        made.run("sh", "-c", f"for unit in {units}; do systemctl start $unit; done", check=False)
        serve = "/usr/bin/python3 -m http.server 8000 --bind 10.77.0.1 --directory /srv/gateway"
        made.run("systemd-run", "--quiet", "--unit=home-gateway", "ip", "netns", "exec", "home", *serve.split())
        yield made
    finally:
        made.stop()


def result(machine: BootedMachine, unit: str) -> str:
    return machine.show(unit, "Result")["Result"]


@pytest.mark.parametrize(("kind", "line", "control"), CASES, ids=[f"{kind}-{line}" for kind, line, _ in CASES])
def test_a_line_is_needed(machine: BootedMachine, kind: str, line: str, control: SandboxControl) -> None:
    allowed, denied = (probe_unit(kind, line, control=one) for one in (False, True))
    assert result(machine, allowed) == "success", machine.journal(allowed)
    messages = machine.journal(denied)
    assert result(machine, denied) == "exit-code", messages
    assert control.error in messages


def test_the_switch_sees_home_and_home_reaches_the_switch(machine: BootedMachine) -> None:
    machine.run("systemctl", "start", *UNITS.values())
    curl = ["ip", "netns", "exec", "home", "curl", "-sS", "--max-time", "10"]

    def metrics() -> str:
        return machine.run(*curl, "http://10.77.0.2:9097/metrics", check=False)

    wait_until(lambda: "appliance_deadman_ready 1.0" in metrics(), "a look at home", 200)
    announce = ["-d", '{"kind": "reboot", "planned_s": 60}', "http://10.77.0.2:9097/announce"]
    assert machine.run(*curl, *announce) == '{"quiet_s": 360}'
    assert machine.run(*curl, "-X", "POST", "http://10.77.0.2:9097/beat") == '{"counted": true}'
    machine.run("test", "-s", f"{FOLDER}/state.json")
    for unit in UNITS.values():
        assert machine.show(unit, "SubState")["SubState"] == "running", machine.journal(unit)
    # The sender has read its token and shares the outbox.
    machine.run("test", "-d", f"{FOLDER}/notices")
    assert "sending the notices of" in machine.journal(UNITS["sender"])
