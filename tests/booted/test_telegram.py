"""The Telegram bot under its rendered sandbox: its user, its credential, a link, a response that is delivered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.booted.controls import DENIED, FAMILY, READ_ONLY, SandboxControl
from tests.booted.machine import ENGINE, SOURCE, BootedMachine, appliance_program, python_program, require
from tests.booted.sandbox import departures, hardened, with_command, without
from tests.booted.site import GPU, BootedHost
from tests.conftest import wait_until
from tests.fakes.telegram_api import CHAT_TOKEN
from tests.nix import rendered
from tests.nix.rendered import RenderedHost

pytestmark = pytest.mark.timeout(900)

BOT, ENGINE_UNIT = "appliance-telegram.service", "appliance-engine-embed.service"
UNITS = ("appliance-gateway.service", "appliance-assistant.service", ENGINE_UNIT, BOT)
USER = "appliance-telegram"
CONFIG = "/etc/appliance/appliance.json"
GATEWAY = "http://10.77.0.1:8000"
API = "http://127.0.0.1:8091"
PROBE = "/usr/local/bin/probe"
CHANGES = {
    "appliance": {
        "telegram": {"enable": True, "tokenFile": "/run/secrets/bot-of-the-users"},
        "settings": {"telegram": {"api": API}},
    }
}
CONTROLS: Mapping[str, SandboxControl] = {
    "IPAddressDeny=": SandboxControl("send 203.0.113.5", DENIED),
    "RestrictAddressFamilies=AF_INET": SandboxControl("family AF_INET", FAMILY),
    "RestrictAddressFamilies=AF_INET6": SandboxControl("family AF_INET6", FAMILY),
    "StateDirectory=appliance-telegram": SandboxControl("write /var/lib/appliance-telegram", READ_ONLY),
    "ReadWritePaths=/run/appliance-telegram-metrics": SandboxControl("write /run/appliance-telegram-metrics", ""),
}
"""A control of each line by which the bot's sandbox departs from the common one."""
NOT_SHOWN = {"ReadWritePaths=/run/appliance-telegram-metrics": "systemd leaves /run writable in every sandbox"}
FOLDERS = """d /run/appliance-telegram-acting 2750 appliance-gateway appliance-telegram
d /run/appliance-telegram-metrics 0755 appliance-telegram appliance-telegram
C /run/secrets - - - - /run-secrets
"""
"""The folders of modules/telegram.nix, for systemd-tmpfiles."""


@pytest.fixture(scope="module")
def texts() -> RenderedHost:
    require()
    rendered.require()
    return rendered.host("gpu", GPU, changes=json.dumps(CHANGES))


def probe_unit(line: str, kind: str) -> str:
    """Return the name of the unit that runs the step of a line."""
    return f"{kind}-{list(CONTROLS).index(line)}.service"


@pytest.fixture(scope="module")
def machine(texts: RenderedHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    host = BootedHost(texts, BootedMachine(tmp_path_factory.mktemp("telegram") / "gpu"))
    made, common = host.machine, hardened()
    host.install(list(UNITS))
    # The mock engine has no weights to verify.
    text = host.text(ENGINE_UNIT).replace(" --lock /etc/appliance/models.lock", "")
    made.write(f"etc/systemd/system/{ENGINE_UNIT}", text)
    made.write("etc/sysusers.d/telegram.conf", f"u {USER} - - -\n")
    made.write("etc/tmpfiles.d/telegram.conf", FOLDERS)
    made.write("run-secrets/bot-of-the-users", f"{CHAT_TOKEN}\n")
    made.write(PROBE[1:], python_program(f"{SOURCE}/tests/booted/probes.py", ENGINE), executable=True)
    person = appliance_program().replace("-m appliance", "-m tests.fakes.telegram_person")
    made.write("usr/local/bin/person", person, executable=True)
    probes = []
    for line in CONTROLS:
        for kind, one in (("allowed", host.text(BOT)), ("control", without(host.text(BOT), line, common))):
            probes.append(probe_unit(line, kind))
            made.write(f"etc/systemd/system/{probes[-1]}", with_command(one, f"{PROBE} {CONTROLS[line].probe}"))
    made.boot()
    try:
        # The address of the tunnel, on which the gateway listens.
        made.run("ip", "link", "add", "wg0", "type", "veth", "peer", "name", "far0")
        made.run("ip", "address", "add", "10.77.0.1/24", "dev", "wg0")
        for end in ("wg0", "far0"):
            made.run("ip", "link", "set", end, "up")
        made.run("ip", "route", "add", "default", "via", "10.77.0.2")
        # They share the folder of the bot: one after another, before the bot itself.
        made.run("sh", "-c", f"for unit in {' '.join(probes)}; do systemctl start $unit; done", check=False)
        made.run("systemd-run", "--quiet", "--unit=person", "/usr/local/bin/person", API.rpartition(":")[2])
        wait_until(lambda: made.run("curl", "-s", f"{API}/person", check=False) == "[]", "the Bot API", 120)
        for unit in UNITS:
            made.start(unit)
        yield made
    finally:
        made.stop()


def appliance(machine: BootedMachine, user: str, *argv: str, check: bool = True) -> str:
    """Return the output of our program as ``user``."""
    program = next(machine.root.glob("opt/store/*llm-appliance*/bin/appliance"))
    path = f"/{program.relative_to(machine.root)}"
    return machine.run("runuser", "-u", user, "--", path, *argv, "--config", CONFIG, check=check)


@pytest.fixture(scope="module")
def linked(machine: BootedMachine) -> str:
    """Link the person at Telegram to a user; return the user's key."""
    key = appliance(machine, "appliance-gateway", "keys", "create", "ada").split()[-1]
    [made] = json.loads(appliance(machine, "appliance-gateway", "keys", "list", "--json"))
    status = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Authorization: Bearer {key}"]
    conversations = f"{GATEWAY}/v1/conversations"
    wait_until(lambda: machine.run(*status, conversations, check=False) == "200", "gateway and assistant", 200)
    body = json.dumps({"model": "qwen3-30b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
    chat = [*status, "-H", "Content-Type: application/json", "-d", body, f"{GATEWAY}/v1/chat/completions"]
    wait_until(lambda: machine.run(*chat, check=False) == "200", "the engine", 200)
    printed = appliance(machine, USER, "telegram", "link", "ada", "--key", made["id"])
    say(machine, next(line for line in printed.splitlines() if line.startswith("/start ")))
    wait_until(lambda: any(one.startswith("Linked to ada.") for one in shown(machine)), "the link", 120)
    return key


def say(machine: BootedMachine, text: str) -> None:
    """Send a message of the person to the bot."""
    machine.run("curl", "-sSf", "--data-raw", text, f"{API}/person")


def shown(machine: BootedMachine) -> list[str]:
    """Return the texts that the bot shows."""
    texts: list[str] = json.loads(machine.run("curl", "-sSf", f"{API}/person"))
    return texts


def test_a_message_of_a_linked_person_gets_its_response(machine: BootedMachine, linked: str) -> None:
    say(machine, "fake: tokens=3")
    wait_until(lambda: "the quick brown" in shown(machine), "the response", 200)
    head = ["curl", "-sS", "-H", f"Authorization: Bearer {linked}"]
    listed: Any = json.loads(machine.run(*head, f"{GATEWAY}/v1/conversations"))
    assert len(listed["data"]) == 1, "the chat is stored in the name of the linked user"


def test_the_bot_runs_as_its_user_with_its_credential(machine: BootedMachine) -> None:
    assert machine.show(BOT, "User", "SubState") == {"User": USER, "SubState": "running"}, machine.journal(BOT)
    token = ["runuser", "-u", USER, "--", "cat", "/run/secrets/bot-of-the-users"]
    machine.run("chmod", "600", "/run/secrets/bot-of-the-users")
    assert CHAT_TOKEN not in machine.run(*token, check=False), "only systemd reads the secret"
    assert CHAT_TOKEN not in machine.journal(BOT)


def test_other_users_reach_neither_the_bots_socket_nor_its_links(machine: BootedMachine, linked: str) -> None:
    assert linked
    socket, folder = "/run/appliance-telegram-acting/acting.sock", "/var/lib/appliance-telegram"
    for user in ("nobody", "appliance-assistant"):
        for path in (socket, f"{folder}/telegram.sqlite"):
            seen = machine.run("runuser", "-u", user, "--", "stat", path, check=False)
            assert "appliance" not in seen
    assert machine.run("runuser", "-u", USER, "--", "stat", "-c", "%G", socket).strip() == USER


def test_the_metrics_are_readable_for_node_exporter(machine: BootedMachine) -> None:
    read = ["runuser", "-u", "nobody", "--", "cat", "/run/appliance-telegram-metrics/telegram.prom"]
    wait_until(lambda: "appliance_telegram_updates" in machine.run(*read, check=False), "the file of metrics", 120)


@pytest.mark.parametrize("line", [line for line in CONTROLS if line not in NOT_SHOWN])
def test_a_line_is_needed(machine: BootedMachine, line: str) -> None:
    allowed, denied = (probe_unit(line, kind) for kind in ("allowed", "control"))
    assert machine.show(allowed, "Result")["Result"] == "success", machine.journal(allowed)
    assert machine.show(denied, "Result")["Result"] == "exit-code", machine.journal(denied)
    assert CONTROLS[line].error in machine.journal(denied)


def test_every_departure_has_a_control(texts: RenderedHost) -> None:
    assert departures(texts.unit(BOT), hardened()) == set(CONTROLS)
