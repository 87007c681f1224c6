"""The unit of a further rank in its rendered sandbox: it joins a leader over the link, and restarts with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.booted.machine import SOURCE, BootedMachine, python_program, require
from tests.booted.sandbox import departures, hardened, with_command, without
from tests.booted.site import GPU, BootedHost
from tests.conftest import wait_until
from tests.nix import rendered

pytestmark = pytest.mark.timeout(900)

RANK = "tests/booted/rank.nix"
UNIT = "appliance-engine-agents.rank1.service"
CONFIG = "/etc/appliance/appliance.json"
ENGINE = """#!/bin/sh
echo "vLLM runs: $*"
trap 'echo "vLLM ends"; exit 0' TERM
while :; do sleep 0.2; done
"""
"""In place of vLLM's Python."""
PROBE = "/usr/local/bin/probe"
LINK = ("10.88.0.1", "10.88.0.2")


def second() -> rendered.RenderedHost:
    """Return the second host of an engine over two hosts."""
    return rendered.host("gpu", RANK)


def test_the_sandbox_of_a_rank_is_that_of_an_engine_with_the_addresses_of_the_link() -> None:
    rendered.require()
    common = hardened()
    rank = departures(second().unit(UNIT), common)
    engine = departures(rendered.host("gpu", GPU).unit("appliance-engine-pair.service"), common)
    own = {line.replace("engine-agents", "engine-pair") for line in rank}
    assert own - engine == {f"IPAddressAllow={address}" for address in LINK}
    assert engine - own == set()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedHost]:
    require()
    rendered.require()
    made = BootedHost(second(), BootedMachine(tmp_path_factory.mktemp("rank") / "gpu2"))
    machine, text = made.machine, made.text(UNIT)
    machine.write("opt/vllm/bin/python", ENGINE, executable=True)
    machine.write("opt/vllm/lib/python3.13/site-packages/vllm-0.33.0.dist-info/METADATA", "")
    machine.write("usr/local/bin/probe", python_program(f"{SOURCE}/tests/booted/probes.py"), executable=True)
    for address in LINK:
        probe, line = f"{PROBE} send {address}", f"IPAddressAllow={address}"
        machine.write(f"etc/systemd/system/allowed-{address}.service", with_command(text, probe))
        machine.write(
            f"etc/systemd/system/denied-{address}.service", with_command(without(text, line, hardened()), probe)
        )
    made.install([UNIT, "nftables.service"])
    machine.boot()
    try:
        machine.cable("lan0", "10.88.0.2/24", "peer", "10.88.0.1/24")
        yield made
    finally:
        machine.stop()


def start_leader(host: BootedHost) -> None:
    """Start the first rank on the other end of the link, without a sandbox."""
    program = next(host.machine.root.glob("opt/store/*llm-appliance*/bin/appliance"))
    command = [f"/{program.relative_to(host.machine.root)}", "engine", "exec", "agents", "--config", CONFIG]
    run = ["systemd-run", "--unit=leader", "--collect", "--property=KillMode=control-group"]
    host.machine.run(*run, "/usr/sbin/ip", "netns", "exec", "peer", *command)


def count(host: BootedHost, text: str) -> int:
    """Return how often the unit has logged ``text``."""
    return host.machine.journal(UNIT).count(text)


def reports(host: BootedHost, text: str, times: int = 1) -> None:
    """Wait until the unit has logged ``text`` that often; fail with its messages if it does not."""
    try:
        wait_until(lambda: count(host, text) >= times, f"{UNIT} reports {text}", 200)
    except pytest.fail.Exception:
        pytest.fail(f"{UNIT} without {text!r} x {times}: {host.machine.journal(UNIT)}")


@pytest.mark.parametrize("address", LINK)
def test_an_address_of_the_link_is_needed(host: BootedHost, address: str) -> None:
    machine = host.machine
    for kind in ("allowed", "denied"):
        machine.run("systemctl", "start", f"{kind}-{address}.service", check=False)
    assert machine.show(f"allowed-{address}.service", "Result")["Result"] == "success"
    assert machine.show(f"denied-{address}.service", "Result")["Result"] == "exit-code"
    assert "Operation not permitted" in machine.journal(f"denied-{address}.service")


def test_a_rank_waits_joins_its_leader_ends_with_it_and_starts_again(host: BootedHost) -> None:
    machine = host.machine
    machine.run("systemctl", "start", "--no-block", UNIT)
    reports(host, "cannot reach the leader gpu (10.88.0.1), port 29502")
    assert count(host, "vLLM runs") == 0
    start_leader(host)
    reports(host, "vLLM runs: ")
    assert "--node-rank 1" in machine.journal(UNIT)
    assert machine.show(UNIT, "ActiveState")["ActiveState"] == "active"
    machine.run("systemctl", "kill", "--signal=KILL", "leader")
    reports(host, "lost the leader gpu (10.88.0.1)")
    reports(host, "vLLM ends")
    wait_until(lambda: int(machine.show(UNIT, "NRestarts")["NRestarts"]) >= 1, "systemd starts the rank again", 100)
    start_leader(host)
    reports(host, "vLLM runs: ", times=2)
