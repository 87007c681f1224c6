"""Both hosts with their rendered units under the real sandbox: each reaches its state, and they serve together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.booted import debian, states
from tests.booted.machine import BootedMachine, require
from tests.booted.site import GPU, PUBLIC, BootedHost, connect, own_unit, prepare, rendered_hosts
from tests.booted.states import LATER, NOT_STARTED, STATES, ReachedState
from tests.conftest import wait_until
from tests.nix import rendered
from tools.wheels.debian import DebianRoot

pytestmark = pytest.mark.timeout(900)
Site = dict[str, BootedHost]
GATEWAY = "http://10.77.0.1:8000"
CONFIG = "/etc/appliance/appliance.json"
RECEIVED = "/var/lib/appliance/trial/received"
DELIVERED = "/run/delivered"
"""Texts that reached the chat of the fake Bot API."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require()
    rendered.require()
    folder = tmp_path_factory.mktemp("site")
    hosts = {}
    with ExitStack() as stack:
        for name, texts in rendered_hosts(folder).items():
            host = BootedHost(texts, BootedMachine(folder / name))
            stack.callback(host.machine.stop)
            host.install([unit for unit in texts.units if unit in STATES[name] or unit in LATER[name]])
            prepare(host, folder)
            host.machine.boot()
            # After the boot: the journal of the machine must not read the log of this kernel.
            host.machine.run("mknod", "-m", "600", "/dev/kmsg", "c", "1", "11")
            hosts[name] = host
        connect({name: host.machine for name, host in hosts.items()})
        for name in reversed(PUBLIC):
            hosts[name].machine.run("systemctl", "start", "--no-block", "multi-user.target", "timers.target")
        yield hosts


def state_of(machine: BootedMachine, unit: str) -> ReachedState:
    """Return the state of a unit."""
    shown = machine.show(unit, "ActiveState", "SubState", "Result", "ExecMainExitTimestampMonotonic")
    ran = shown.get("ExecMainExitTimestampMonotonic", "0") != "0"
    state, sub = shown["ActiveState"], shown["SubState"]
    return ReachedState(state, sub, shown.get("Result", "success"), ran and state != "active")


def reaches(host: BootedHost, unit: str, state: ReachedState) -> None:
    """Wait until a unit has this state; fail with its messages if it has another one."""
    try:
        wait_until(lambda: state_of(host.machine, unit) == state, f"{unit} reaches {state}", 400)
    except pytest.fail.Exception:
        pytest.fail(f"{unit}: {state_of(host.machine, unit)}, not {state}: {host.machine.journal(unit)}")


def reports(host: BootedHost, unit: str, text: str) -> None:
    """Wait until a unit logs ``text``; fail with its state and its messages if it does not."""
    try:
        wait_until(lambda: text in host.machine.journal(unit), f"{unit} reports {text}", 400)
    except pytest.fail.Exception:
        pytest.fail(f"{unit}: {state_of(host.machine, unit)}, without {text}: {host.machine.journal(unit)}")


@pytest.mark.parametrize("name", STATES)
def test_every_unit_of_ours_has_a_state_or_a_reason(name: str) -> None:
    rendered.require()
    host = rendered.host(name, *([GPU] if name == "gpu" else []))
    own = sorted(unit for unit in host.units if own_unit(unit))
    assert own == sorted(unit for table in (STATES[name], LATER[name], NOT_STARTED[name]) for unit in table)


@pytest.mark.parametrize(("name", "unit"), [(name, unit) for name, table in STATES.items() for unit in table])
def test_a_unit_reaches_its_state(site: Site, name: str, unit: str) -> None:
    reaches(site[name], unit, STATES[name][unit])


def test_each_card_gets_its_power_limit(site: Site) -> None:
    reaches(site["gpu"], "appliance-gpu-power.service", states.STAYS)
    lines = site["gpu"].machine.journal("appliance-gpu-power").splitlines()
    assert [line for line in lines if line.startswith("power")] == [
        "power limit of card 0: 450 W", "power limit of card 1: 450 W",
    ]  # fmt: skip


def test_a_passed_smoke_test_makes_the_generation_known_good(site: Site) -> None:
    host = site["gpu"]
    reaches(host, "appliance-trial-passed.service", states.DONE)
    assert re.search(r"smoke test of generation 1: PASS, \d+ steps", host.machine.journal("appliance-smoke"))
    record = json.loads(host.machine.run("cat", "/var/lib/appliance/trial/record.json"))
    assert record["proven"]["number"] == 1


def test_a_client_of_the_vps_reaches_an_engine(site: Site) -> None:
    """Through nginx, the tunnel, the gateway's list of addresses and the engine's."""
    for name, unit in (("vps", "nginx.service"), ("gpu", "appliance-trial-passed.service")):
        reaches(site[name], unit, STATES[name][unit])
    own = ["--resolve", "llm.example.org:443:127.0.0.1", "https://llm.example.org/v1/chat/completions"]
    response = request(site["vps"], site["gpu"], *own, model="qwen3-30b")
    assert "choices" in response, response


def test_nginx_reloads_its_configuration(site: Site) -> None:
    host, unit = site["vps"], "nginx-config-reload.service"
    reaches(host, "nginx.service", states.RUNNING)
    host.machine.start(unit)
    reaches(host, unit, LATER["vps"][unit])


def test_the_gateway_starts_an_engine_on_demand(site: Site) -> None:
    """By systemctl in its sandbox, which polkitd allows by the rendered rule."""
    host, unit = site["gpu"], "appliance-engine-pair.service"
    reaches(host, "appliance-gateway.service", states.RUNNING)
    assert state_of(host.machine, unit).active == "inactive"
    response = request(host, host, f"{GATEWAY}/v1/chat/completions", model="rare")
    assert "choices" in response, response
    reaches(host, unit, LATER["gpu"][unit])


def test_a_failed_verdict_is_sent_as_an_alert(site: Site) -> None:
    host = site["gpu"]
    reaches(host, "appliance-trial-passed.service", states.DONE)
    for unit in ("appliance-trial-deadline.service", "appliance-trial-failed.service"):
        host.machine.start(unit)
        reaches(host, unit, LATER["gpu"][unit])
    # The path unit starts the other one as soon as an alert waits.
    reaches(host, "appliance-trial-alerts.service", LATER["gpu"]["appliance-trial-alerts.service"])
    wait_until(lambda: "failed its smoke test" in host.machine.run("cat", RECEIVED, check=False), "the alert", 200)


def test_a_notice_of_an_agent_and_an_alert_reach_the_chat(site: Site) -> None:
    """The agent is root without capabilities, in a user namespace, as the units of the watchers are."""
    host = site["gpu"]
    reaches(host, "appliance-notify.service", states.RUNNING)
    host.machine.run("systemd-run", "--unit=bot-api", "/usr/local/bin/bot-api", "8090", DELIVERED)
    program = next(host.machine.root.glob("opt/store/*llm-appliance*/bin/appliance"))
    send = [f"/{program.relative_to(host.machine.root)}", "notify", "send", "the battery is low", "--page"]
    sandbox = [
        f"--property={line}"
        for line in (
            "PrivateUsers=yes", "ProtectSystem=strict", "CapabilityBoundingSet=", "UMask=0077",
            "RestrictSUIDSGID=yes", "NoNewPrivileges=yes", "ReadWritePaths=-/var/lib/appliance-notices",
        )
    ]  # fmt: skip
    host.machine.run("systemd-run", "--wait", "--pipe", *sandbox, *send)
    alert = {"labels": {"alertname": "EngineDown", "severity": "page"}, "annotations": {"summary": "engine down"}}
    post = ["curl", "-sSf", "--max-time", "60", "-d", json.dumps({"alerts": [alert]})]
    host.machine.run(*post, "http://127.0.0.1:9096/alerts")
    for text in ("the battery is low", "engine down"):
        wait_until(lambda text=text: text in host.machine.run("cat", DELIVERED, check=False), text, 200)  # type: ignore[misc]
    metrics = host.machine.run("cat", "/run/appliance-notify/notify.prom")
    assert "appliance_notify_refused_total 0.0" in metrics


def test_all_weights_are_hashed_each_month(site: Site) -> None:
    host, unit = site["gpu"], "appliance-models-verify-all.service"
    reaches(host, "appliance-models-verify.service", states.STAYS)
    host.machine.start(unit)
    reaches(host, unit, LATER["gpu"][unit])
    assert "were hashed" in host.machine.journal(unit)


def test_an_engine_does_not_start_with_other_weights(site: Site) -> None:
    """An engine of another model starts all the same."""
    host, verify = site["gpu"], "appliance-models-verify.service"
    engine, other = "appliance-engine-embed.service", "appliance-engine-pair.service"
    reaches(host, verify, states.STAYS)
    reaches(host, engine, states.RUNNING)
    host.machine.run("systemctl", "stop", engine, other, verify)
    lock = host.machine.run("cat", "/etc/appliance/models.lock")
    host.machine.run("sed", "-i", "s/^.../000/", "/etc/appliance/models.lock")
    try:
        host.machine.run("systemctl", "start", "--no-block", engine, other)
        refused = "model.safetensors: not verified in its present state"
        reports(host, engine, refused)
        assert state_of(host.machine, verify).result == "exit-code"
        assert "model.safetensors" in host.machine.journal(verify)
        # systemd starts it again and again, and each start is active until the command has compared the files.
        wait_until(lambda: state_of(host.machine, engine).active == "failed", f"{engine} fails for good", 200)
        reaches(host, other, states.RUNNING)
    finally:
        host.machine.run("sh", "-c", f"printf %s '{lock}' > /etc/appliance/models.lock")
        host.machine.run("systemctl", "stop", engine, other)
        host.machine.run("systemctl", "reset-failed", engine, verify, check=False)
        host.machine.run("systemctl", "start", engine)
    reaches(host, engine, states.RUNNING)


def request(client: BootedHost, host: BootedHost, *target: str, model: str) -> Any:
    """Return the response of a chat from ``client``, with a new key of ``host``."""
    program = next(host.machine.root.glob("opt/store/*llm-appliance*/bin/appliance"))
    create = [f"/{program.relative_to(host.machine.root)}", "keys", "create", "test", "--config", CONFIG]
    key = host.machine.run("runuser", "-u", "appliance-gateway", "--", *create).split()[-1]
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3})
    head = ["-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json"]
    models = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *head[:2], f"{GATEWAY}/v1/models"]
    wait_until(lambda: host.machine.run(*models, check=False) == "200", "the gateway accepts the key", 60)
    return json.loads(client.machine.run("curl", "-sSk", "--max-time", "100", *head, "-d", body, *target))


def test_the_debian_is_missing_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(debian, "ROOT", DebianRoot(tmp_path))
    with pytest.raises(pytest.skip.Exception) as raised:
        require()
    assert re.fullmatch(
        r"NOT CHECKED: \S+ has no Debian trixie; run `python -m tests.booted.debian`", str(raised.value)
    )


def test_a_machine_that_does_not_boot_ends_in_one_line(tmp_path: Path) -> None:
    require()
    machine = BootedMachine(tmp_path / "second")
    machine.write("usr/lib/systemd/systemd", "#!/bin/sh\necho no init here\nexit 1\n", executable=True)
    with pytest.raises(pytest.fail.Exception) as raised:
        machine.boot()
    assert str(raised.value) == "the machine second ended before it had booted: no init here"


def test_a_machine_that_hangs_ends_in_one_line(tmp_path: Path) -> None:
    require()
    machine = BootedMachine(tmp_path / "second")
    machine.write("usr/lib/systemd/systemd", "#!/bin/sh\nexec sleep infinity\n", executable=True)
    with pytest.raises(pytest.fail.Exception) as raised:
        machine.boot(timeout_s=1)
    assert str(raised.value) == "the machine second did not boot within 1 s; its console is empty"
