"""A silent peer: the evidence that a failure is the generation's, or that of the other end."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.doctor.finding import FaultDomain, Finding
from appliance.errors import StoreError
from appliance.smoketest import handshake, run
from appliance.smoketest.handshake import Hop, LocalPeer, fault_domain
from appliance.smoketest.report import SmokeStep
from tests.conftest import ROOT, wait_until
from tests.doctor.fakehost import KEYS, FakeHost, dump
from tests.smalldisk import SmallDisk

LINE = LocalPeer(KEYS["gpu"], KEYS["vps"], "203.0.113.5:51820", None)
ROUTER = Hop("enp5s0", "192.168.1.1", responds=True)


@pytest.mark.parametrize(
    ("changed", "last", "hop", "domain", "why"),
    [
        # This side is unchanged and works: the VPS is off, or the line beyond the first hop.
        ({}, LINE, ROUTER, "external", "those of the last handshake"),
        # Another key or port in the new generation, whether or not the VPS is off as well.
        ({"own": KEYS["stranger"]}, LINE, ROUTER, "generation", "another key of this host"),
        ({"own": None}, LINE, ROUTER, "generation", "key of this host"),
        ({"peer": KEYS["stranger"]}, LINE, ROUTER, "generation", "key of the peer"),
        ({"endpoint": "203.0.113.5:51821"}, LINE, ROUTER, "generation", "another endpoint"),
        ({"endpoint": "203.0.113.6:51820"}, LINE, ROUTER, "generation", "another endpoint"),
        ({"listen_port": 51820}, LINE, ROUTER, "generation", "another port"),
        # Its network does not reach the first hop, which a driver or an address can cause.
        ({}, LINE, None, "generation", "no route to 203.0.113.5:51820"),
        ({}, LINE, dataclasses.replace(ROUTER, responds=False), "generation", "does not respond"),
        # There is no evidence.
        ({}, None, ROUTER, "generation", "never completed a handshake"),
    ],
)
def test_the_fault_domain_of_a_silent_peer(
    changed: dict[str, str], last: LocalPeer | None, hop: Hop | None, domain: FaultDomain, why: str
) -> None:
    found, evidence = fault_domain(dataclasses.replace(LINE, **changed), last, hop)  # type: ignore[arg-type]
    assert (found, why in evidence) == (domain, True), evidence


IP = """#!/bin/sh
case "$*" in
  *"route get 203.0.113.5") cat "$FAKE/route" ;;
  *"neigh show to 192.168.1.1 dev enp5s0") cat "$FAKE/neigh" ;;
  *) echo "RTNETLINK answers: Network is unreachable" >&2; exit 2 ;;
esac
"""


@pytest.fixture
def host(gpu: FakeHost, programs: Path) -> FakeHost:
    (programs / "ip").write_text(IP)
    (programs / "ip").chmod(0o755)
    gpu.set_output("route", '[{"dst":"203.0.113.5","gateway":"192.168.1.1","dev":"enp5s0","flags":[]}]')
    gpu.set_output("neigh", '[{"dst":"192.168.1.1","lladdr":"02:00:00:00:00:01","state":["REACHABLE"]}]')
    return gpu


def look(host: FakeHost, known: Path) -> Finding:
    """Return the peer's finding in the smoke test."""
    context = host.context()
    assert context.machine is not None
    assert context.machine.tunnel is not None
    results = handshake.attribute_fault(
        context.host, context.machine.tunnel, host.findings("tunnel"), known=known, now=context.now
    )
    (found,) = [one for one in results if one.subject == "peer vps"]
    return found


def test_a_vps_that_is_off_differs_from_another_key(host: FakeHost, tmp_path: Path) -> None:
    known = tmp_path / "handshakes.json"
    host.set_output("wg", dump(KEYS["gpu"], {KEYS["vps"]: None}))
    assert look(host, known).fault_domain == "generation", "no handshake was recorded yet"
    host.set_output("wg", dump(KEYS["gpu"], {KEYS["vps"]: 41}))
    assert look(host, known).level == "ok"
    for age in (None, 900):
        host.set_output("wg", dump(KEYS["gpu"], {KEYS["vps"]: age}))
        found = look(host, known)
        assert (found.level, found.fault_domain) == ("fail", "external")
        assert "the first hop 192.168.1.1 responds" in found.seen
    # The same silence, with another key of its own.
    host.set_output("wg", dump(KEYS["stranger"], {KEYS["vps"]: None}))
    assert look(host, known).fault_domain == "generation"
    # And with another port.
    host.set_output("wg", dump(KEYS["gpu"], {KEYS["vps"]: None}))
    host.machine["tunnel"]["peers"]["vps"]["endpoint"] = "203.0.113.5:51821"
    found = look(host, known)
    assert (found.fault_domain, "with another endpoint" in found.seen) == ("generation", True)


def test_a_first_hop_that_does_not_respond_is_a_failure_of_the_generation(host: FakeHost, tmp_path: Path) -> None:
    known = tmp_path / "handshakes.json"
    look(host, known)
    host.set_output("wg", dump(KEYS["gpu"], {KEYS["vps"]: None}))
    for state in ("FAILED", "INCOMPLETE"):
        host.set_output("neigh", f'[{{"dst":"192.168.1.1","state":["{state}"]}}]')
        found = look(host, known)
        assert (found.fault_domain, "does not respond" in found.seen) == ("generation", True)
    host.set_output("neigh", "[]")
    assert look(host, known).fault_domain == "generation"
    # A link without neighbours, such as PPP.
    host.write("/sys/class/net/enp5s0/flags", "0x10d1\n")
    assert look(host, known).fault_domain == "external"
    host.set_output("route", "not JSON")
    assert look(host, known).fault_domain == "generation"


def test_other_failures_of_the_tunnel_stay_in_the_domain_of_the_generation(host: FakeHost, tmp_path: Path) -> None:
    known = tmp_path / "handshakes.json"
    look(host, known)
    host.set_output("wg", dump(KEYS["gpu"], {KEYS["stranger"]: 4}))
    assert look(host, known).fault_domain == "generation"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 7}'])
def test_damaged_evidence_is_ignored(content: str, host: FakeHost, tmp_path: Path) -> None:
    known = tmp_path / "handshakes.json"
    known.write_text(content)
    host.set_output("wg", dump(KEYS["gpu"], {KEYS["vps"]: None}))
    assert look(host, known).fault_domain == "generation"


def test_evidence_that_cannot_be_saved_is_an_error(host: FakeHost, small_disk: SmallDisk) -> None:
    small_disk.fill()
    with pytest.raises(StoreError, match=r"handshakes\.json cannot be written \(No space left"):
        look(host, small_disk.folder / "handshakes.json")


def test_unchanged_evidence_is_not_written_again(host: FakeHost, small_disk: SmallDisk) -> None:
    known = small_disk.folder / "handshakes.json"
    look(host, known)
    small_disk.read_only()
    assert look(host, known).level == "ok"


def test_the_smoke_test_waits_for_the_first_handshake(host: FakeHost, programs: Path) -> None:
    """The peer is silent for the first two reads."""
    live, silent = host.fake / "live", host.fake / "silent"
    live.write_text(dump(KEYS["gpu"], {KEYS["vps"]: 0}))
    silent.write_text(dump(KEYS["gpu"], {KEYS["vps"]: None}))
    (programs / "wg").write_text(
        '#!/bin/sh\necho x >> "$FAKE/looks"\n[ "$(wc -l < "$FAKE/looks")" -gt 2 ] && exec cat "$FAKE/live"\n'
        'exec cat "$FAKE/silent"\n'
    )
    context = host.context()
    assert context.machine is not None
    assert context.machine.tunnel is not None
    began = time.monotonic()
    handshake.wait_for_handshakes(context.host, context.machine.tunnel)
    assert time.monotonic() - began < handshake.WAIT_S
    assert (host.fake / "looks").read_text().split() == ["x"] * 3
    (host.fake / "live").write_text(silent.read_text())
    began = time.monotonic()
    handshake.wait_for_handshakes(context.host, context.machine.tunnel, wait_s=1.5)
    assert time.monotonic() - began >= 1.5, "it did not wait"


def test_the_smoke_test_reports_an_external_failure_as_a_warning(
    host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checks as in the smoke test: a VPS that is off is a warning after a recorded handshake."""
    context = host.context()
    assert context.site is not None
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps(host.machine))
    monkeypatch.setattr(run, "MACHINE", machine)
    monkeypatch.setattr(run, "HostReader", lambda _: context.host)
    monkeypatch.setattr(handshake, "wait_for_handshakes", lambda *_: None)

    def peer() -> SmokeStep:
        assert context.site is not None
        steps = run.check_host(context.site, context.base, tmp_path / "handshakes.json")
        return next(step for step in steps if step.name == "tunnel peer vps")

    assert peer().level == "ok"
    host.set_output("wg", dump(KEYS["gpu"], {KEYS["vps"]: None}))
    assert (peer().level, peer().external) == ("warn", True)
    host.set_output("wg", dump(KEYS["stranger"], {KEYS["vps"]: None}))
    assert (peer().level, peer().external) == ("fail", False)


def test_the_first_hop_in_network_namespaces(tmp_path: Path) -> None:
    """A router in a network namespace of its own: it responds, it does not, there is no route."""
    if shutil.which("ip") is None:
        pytest.skip("NOT CHECKED: ip is not installed")
    here, router = (f"hop-{name}-{time.monotonic_ns() % 10**8}" for name in ("a", "b"))

    def do(*words: str) -> str:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout

    def hop() -> str:
        script = (
            "import socket\n"
            "from appliance.smoketest.handshake import read_hop\n"
            "from appliance.doctor.host import HostReader\n"
            "try: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('203.0.113.5', 9))\n"
            "except OSError: pass\n"
            "print(read_hop(HostReader(), '203.0.113.5'))"
        )
        return do("netns", "exec", here, sys.executable, "-c", f"import sys; sys.path[0] = {str(ROOT)!r}\n{script}")

    try:
        try:
            do("netns", "add", here)
        except OSError as error:
            pytest.skip(f"NOT CHECKED: no network namespace can be made here ({error}); run as root")
        do("netns", "add", router)
        do("-n", here, "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", router)
        do("-n", here, "address", "add", "192.168.1.2/24", "dev", "lan")
        do("-n", router, "address", "add", "192.168.1.1/24", "dev", "lan")
        for one in (here, router):
            do("-n", one, "link", "set", "lan", "up")
        assert hop() == "None\n"
        do("-n", here, "route", "add", "default", "via", "192.168.1.1")
        wait_until(lambda: "responds=True" in hop(), "the router's response", 90)
        assert "device='lan', address='192.168.1.1'" in hop()
        # Remove its address, but not the link, as if the router hung.
        do("-n", router, "address", "flush", "dev", "lan")
        do("-n", here, "neigh", "flush", "dev", "lan")
        wait_until(lambda: "responds=False" in hop(), "the router's silence", 90)
    finally:
        for one in (here, router):
            subprocess.run(["ip", "netns", "delete", one], capture_output=True, check=False)
