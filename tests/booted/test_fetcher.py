"""The fetcher under its rendered sandbox on a booted VPS: it reads a public page, and no private one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.booted.controls import DENIED, FAMILY, SandboxControl
from tests.booted.machine import ENGINE, SOURCE, BootedMachine, python_program, require
from tests.booted.sandbox import departures, hardened, with_command, without
from tests.booted.site import BootedHost
from tests.conftest import wait_until
from tests.nix import rendered
from tests.nix.rendered import RenderedHost

pytestmark = pytest.mark.timeout(900)

EVERYTHING = "tests/nix/everything_vps.nix"
SERVICE, SOCKET = "appliance-fetcher.service", "appliance-fetcher.socket"
PROBE = "/usr/local/bin/probe"
KEY = "key-of-the-fetcher-for-tests"
PUBLIC_WEB, PRIVATE_WEB = "93.184.216.34", "10.99.0.9"
"""Addresses of one web server: the cable of the VPS leads to both."""
CONTROLS: Mapping[str, SandboxControl] = {
    "RestrictAddressFamilies=AF_INET": SandboxControl("family AF_INET", FAMILY),
    "RestrictAddressFamilies=AF_INET6": SandboxControl("family AF_INET6", FAMILY),
}
"""Lines that allow more than the common sandbox. The networks of IPAddressDeny have tests of their own."""
PRIVATE = (PRIVATE_WEB, "127.0.0.1", "10.77.0.1", "169.254.169.254", "203.0.113.7", "::1")
PAGE = "<html><head><title>Harbour</title></head><body><p>The ferry leaves at nine.</p></body></html>"


@pytest.fixture(scope="module")
def texts() -> RenderedHost:
    require()
    rendered.require()
    return rendered.host("vps", EVERYTHING)


def probe_unit(probe: str, text: str) -> str:
    """Return the name of the unit that runs ``probe``; ``text`` distinguishes the sandboxes."""
    return f"{text}-{probe.replace(' ', '-').replace(':', '_')}.service"


def without_networks(text: str) -> str:
    """Return the text of the unit without its denied networks."""
    return "\n".join([line for line in text.splitlines() if not line.startswith("IPAddressDeny=")] + [""])


@pytest.fixture(scope="module")
def machine(texts: RenderedHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    host = BootedHost(texts, BootedMachine(tmp_path_factory.mktemp("fetcher") / "vps"))
    made, common, text = host.machine, hardened(), host.text(SERVICE)
    host.install([SERVICE, SOCKET, "nftables.service"])
    made.write(PROBE[1:], python_program(f"{SOURCE}/tests/booted/probes.py", ENGINE), executable=True)
    made.write("run-secrets/fetcher-key", f"{KEY}\n")
    made.write("etc/tmpfiles.d/nixos.conf", "C /run/secrets - - - - /run-secrets\n")
    made.write("srv/web/index.html", PAGE)
    steps = [*(f"send {one}" for one in (*PRIVATE, PUBLIC_WEB)), *(one.probe for one in CONTROLS.values())]
    probes = [(probe_unit(one, "own"), with_command(text, f"{PROBE} {one}")) for one in steps]
    for line, control in CONTROLS.items():
        one = with_command(without(text, line, common), f"{PROBE} {control.probe}")
        probes.append((probe_unit(control.probe, "control"), one))
    open_text = with_command(without_networks(text), f"{PROBE} send {PRIVATE_WEB}")
    probes.append((probe_unit(f"send {PRIVATE_WEB}", "control"), open_text))
    for name, one in probes:
        made.write(f"etc/systemd/system/{name}", one)
    made.boot()
    try:
        for space, device, own, far in (
            ("home", "wg0", "10.77.0.2/24", "10.77.0.1/24"),
            ("web", "eth0", "203.0.113.5/24", "203.0.113.1/24"),
        ):
            made.cable(device, own, space, far)
        for address in (PUBLIC_WEB, PRIVATE_WEB):
            made.run("ip", "-n", "web", "address", "add", f"{address}/32", "dev", "lo")
        made.run("ip", "route", "add", "default", "via", "203.0.113.1")
        serve = "ip netns exec web /usr/bin/python3 -m http.server 80 --directory /srv/web"
        made.run("systemd-run", "--quiet", "--unit=web", *serve.split())
        made.run("systemctl", "start", *(name for name, _ in probes), check=False)
        for address in (PUBLIC_WEB, PRIVATE_WEB):
            curl = ["curl", "-s", "--max-time", "5", f"http://{address}/"]
            wait_until(lambda curl=curl: made.run(*curl, check=False) == PAGE, f"{address} serves", 60)  # type: ignore[misc]
        made.start(SERVICE)
        yield made
    finally:
        made.stop()


def result(machine: BootedMachine, unit: str) -> str:
    """Return the result of a unit."""
    return machine.show(unit, "Result")["Result"]


def fetch(machine: BootedMachine, url: str, *, key: str = KEY) -> Any:
    """Return the fetcher's response to the host with the assistant."""
    head = ["ip", "netns", "exec", "home", "curl", "-sS", "--max-time", "60", "-H", f"Authorization: Bearer {key}"]
    return json.loads(machine.run(*head, "-d", json.dumps({"url": url}), "http://10.77.0.2:8889/fetch"))


def test_a_public_page_is_read_and_parsed_in_the_sandbox(machine: BootedMachine) -> None:
    """The page is parsed by a child process of the unit, with limits of its own."""
    page = fetch(machine, f"http://{PUBLIC_WEB}/")
    assert "The ferry leaves at nine." in page["text"], page
    assert page["title"] == "Harbour"


@pytest.mark.parametrize("address", [PRIVATE_WEB, "127.0.0.1", "203.0.113.5", "[::1]"])
def test_a_private_page_is_refused(machine: BootedMachine, address: str) -> None:
    refused = fetch(machine, f"http://{address}/")
    assert refused["error"]["code"] == "address_not_allowed", refused


def test_a_request_without_the_key_of_the_credential_is_refused(machine: BootedMachine) -> None:
    assert (
        "key of the fetcher"
        in fetch(machine, f"http://{PUBLIC_WEB}/", key="another-key-of-16-x")["error"]["message"]
    )


def test_the_socket_accepts_the_host_with_the_assistant_only(machine: BootedMachine) -> None:
    """The web server's host reaches the address, and the kernel drops its packets."""
    machine.run("ip", "-n", "web", "route", "replace", "10.77.0.2", "via", "203.0.113.5")
    curl = ["ip", "netns", "exec", "web", "curl", "-sS", "--max-time", "3", "http://10.77.0.2:8889/health"]
    assert machine.run(*curl, check=False) == ""
    home = ["ip", "netns", "exec", "home", *curl[4:]]
    assert "ok" in machine.run(*home)


@pytest.mark.parametrize("address", PRIVATE)
def test_the_kernel_refuses_a_private_address_once_more(machine: BootedMachine, address: str) -> None:
    unit = probe_unit(f"send {address}", "own")
    assert result(machine, unit) == "exit-code", machine.journal(unit)
    assert DENIED in machine.journal(unit)


def test_the_networks_of_the_unit_decide_it(machine: BootedMachine) -> None:
    for unit in (probe_unit(f"send {PUBLIC_WEB}", "own"), probe_unit(f"send {PRIVATE_WEB}", "control")):
        assert result(machine, unit) == "success", machine.journal(unit)


@pytest.mark.parametrize("line", CONTROLS)
def test_a_line_is_needed(machine: BootedMachine, line: str) -> None:
    allowed, denied = (probe_unit(CONTROLS[line].probe, kind) for kind in ("own", "control"))
    assert result(machine, allowed) == "success", machine.journal(allowed)
    assert result(machine, denied) == "exit-code", machine.journal(denied)
    assert CONTROLS[line].error in machine.journal(denied)


def test_every_departure_has_a_control(texts: RenderedHost) -> None:
    found = departures(texts.unit(SERVICE), hardened())
    assert {line for line in found if not line.startswith("IPAddressDeny=")} == set(CONTROLS)
