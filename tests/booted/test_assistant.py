"""Gateway and assistant as two users under their rendered sandbox: a chat, a parsed PDF, a copy for the backup."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.assistant.made_documents import a_pdf
from tests.booted.machine import BootedMachine, require
from tests.booted.sandbox import departures, hardened
from tests.booted.site import GPU, BootedHost
from tests.conftest import wait_until
from tests.nix import rendered
from tests.nix.rendered import RenderedHost

pytestmark = pytest.mark.timeout(900)

UNITS = ("appliance-gateway.service", "appliance-assistant.service", "appliance-assistant-copy.service")
CHANGES = {
    "appliance": {
        "backup": {
            "enable": True,
            "repositories": {"local": {"url": "/srv/backups", "passwordFile": "/run/secrets/backup-password"}},
        },
    }
}
GATEWAY = "http://10.77.0.1:8000"
CONFIG = "/etc/appliance/appliance.json"
COPY = "/var/lib/appliance-assistant/backup/assistant.sqlite"


@pytest.fixture(scope="module")
def texts() -> RenderedHost:
    require()
    rendered.require()
    return rendered.host("gpu", GPU, changes=json.dumps(CHANGES))


@pytest.fixture(scope="module")
def machine(texts: RenderedHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    host = BootedHost(texts, BootedMachine(tmp_path_factory.mktemp("assistant") / "gpu"))
    made = host.machine
    host.install(list(UNITS))
    (made.root / "srv").mkdir(exist_ok=True)
    (made.root / "srv/report.pdf").write_bytes(a_pdf(["Годовой отчёт: выручка выросла на треть"]))
    made.boot()
    try:
        # The address of the tunnel, on which the gateway listens.
        made.run("ip", "link", "add", "wg0", "type", "veth", "peer", "name", "far0")
        made.run("ip", "address", "add", "10.77.0.1/24", "dev", "wg0")
        for end in ("wg0", "far0"):
            made.run("ip", "link", "set", end, "up")
        for unit in UNITS[:2]:
            made.start(unit)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def key(machine: BootedMachine) -> str:
    program = next(machine.root.glob("opt/store/*llm-appliance*/bin/appliance"))
    create = [f"/{program.relative_to(machine.root)}", "keys", "create", "ada", "--config", CONFIG]
    made = machine.run("runuser", "-u", "appliance-gateway", "--", *create).split()[-1]
    status = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Authorization: Bearer {made}"]
    wait_until(
        lambda: machine.run(*status, f"{GATEWAY}/v1/conversations", check=False) == "200",
        "gateway and assistant",
        120,
    )
    return made


def call(machine: BootedMachine, key: str, path: str, *more: str) -> Any:
    """Return the response of the gateway at ``path``."""
    head = ["curl", "-sS", "--max-time", "60", "-H", f"Authorization: Bearer {key}"]
    return json.loads(machine.run(*head, *more, f"{GATEWAY}{path}"))


def body(value: object) -> list[str]:
    """Return curl's arguments for a JSON body."""
    return ["-H", "Content-Type: application/json", "-d", json.dumps(value)]


def test_a_conversation_is_stored_behind_the_gateway(machine: BootedMachine, key: str) -> None:
    message = {"type": "message", "role": "user", "content": "привет"}
    made = call(machine, key, "/v1/conversations", *body({"items": [message], "metadata": {"title": "first"}}))
    assert made["object"] == "conversation", made
    items = call(machine, key, f"/v1/conversations/{made['id']}/items")
    assert [item["role"] for item in items["data"]] == ["user"]
    other = call(machine, key, "/v1/conversations/conv_0123456789abcdef0123456789abcdef")
    assert other["error"]["code"] == "not_found"


def test_a_pdf_is_parsed_in_the_sandbox_of_the_unit(machine: BootedMachine, key: str) -> None:
    """The filter of system calls and the ban on executable memory are those of the host."""
    file = call(machine, key, "/v1/files", "-F", "purpose=assistants", "-F", "file=@/srv/report.pdf")
    store = call(machine, key, "/v1/vector_stores", *body({"name": "reports", "file_ids": [file["id"]]}))
    path = f"/v1/vector_stores/{store['id']}/files/{file['id']}"
    seen: list[Any] = []

    def ended() -> bool:
        seen.append(call(machine, key, path))
        return bool(seen[-1]["status"] != "in_progress")

    wait_until(ended, "the file is parsed", 120)
    assert seen[-1]["status"] == "completed", seen[-1]["last_error"]
    found = call(machine, key, f"/v1/vector_stores/{store['id']}/search", *body({"query": "выручка отчета"}))
    assert [hit["filename"] for hit in found["data"]] == ["report.pdf"], found


def test_the_copy_for_the_backup_is_made_by_the_owner_of_the_data(machine: BootedMachine, key: str) -> None:
    machine.run("systemctl", "start", UNITS[2], check=False)
    assert machine.show(UNITS[2], "Result")["Result"] == "success", machine.journal(UNITS[2])
    assert machine.run("stat", "-c", "%U %a", COPY).strip() == "appliance-assistant 600"


def test_the_metrics_are_readable_for_node_exporter(machine: BootedMachine) -> None:
    file = "/run/appliance-assistant-metrics/assistant.prom"
    read = ["runuser", "-u", "nobody", "--", "cat", file]
    wait_until(
        lambda: "appliance_assistant_files_waiting" in machine.run(*read, check=False), "the file of metrics", 120
    )


def test_other_users_reach_no_data_and_no_socket(machine: BootedMachine) -> None:
    for path in ("/var/lib/appliance-assistant/assistant.sqlite", "/run/appliance-assistant/assistant.sock"):
        denied = machine.run("runuser", "-u", "nobody", "--", "stat", path, check=False)
        assert "appliance" not in denied
    reached = machine.run(
        "runuser", "-u", "nobody", "--", "curl", "-sS", "--unix-socket", "/run/appliance-acting/acting.sock",
        "http://gateway/v1/chat/completions", "-d", "{}", check=False,
    )  # fmt: skip
    assert "error" not in reached


def test_the_assistant_departs_from_the_common_sandbox_by_its_folder_only(texts: RenderedHost) -> None:
    common = hardened()
    assert departures(texts.unit(UNITS[1]), common) == {
        "StateDirectory=appliance-assistant", "LimitNOFILE=65536",
    }  # fmt: skip
    assert departures(texts.unit(UNITS[2]), common) == {"StateDirectory=appliance-assistant"}
