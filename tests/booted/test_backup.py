"""Backup, restore drill and report under their rendered sandbox with the real restic; a control of each line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest

from tests.booted.controls import DENIED, FAMILY, READ_ONLY, SandboxControl
from tests.booted.machine import ENGINE, SOURCE, BootedMachine, python_program, require
from tests.booted.sandbox import departures, hardened, with_command, without
from tests.booted.site import GPU, BootedHost
from tests.nix import rendered
from tests.nix.rendered import RenderedHost

pytestmark = pytest.mark.timeout(900)

REPOSITORY = "/srv/backups"
PASSWORD = "correct-horse-battery-staple"
CHANGES = {
    "appliance": {
        "backup": {
            "enable": True,
            "repositories": {"local": {"url": REPOSITORY, "passwordFile": "/run/secrets/backup-password"}},
            "drill": {"enable": True, "escrowFile": "/run/secrets/escrow"},
        }
    }
}
ESCROW = f'version = 1\nhost = "gpu"\n[repositories.local]\nurl = "{REPOSITORY}"\npassword = "{PASSWORD}"\n'
UNITS = {
    "stage": "appliance-backup-stage.service",
    "backup": "appliance-backup-local.service",
    "drill": "appliance-restore-drill.service",
    "report": "appliance-backup-report.service",
}
PROBE = "/usr/local/bin/probe"
CLOSED = "Permission denied"
SECRET = "read /var/lib/wireguard/wg0.key"

_ONLINE: Mapping[str, SandboxControl] = {
    "IPAddressDeny=": SandboxControl("send 203.0.113.5", DENIED),
    "RestrictAddressFamilies=AF_INET": SandboxControl("family AF_INET", FAMILY),
    "RestrictAddressFamilies=AF_INET6": SandboxControl("family AF_INET6", FAMILY),
}
CONTROLS: Mapping[str, Mapping[str, SandboxControl]] = {
    "stage": {
        "StateDirectory=appliance-backup-stage": SandboxControl("write /var/lib/appliance-backup-stage", READ_ONLY),
        "StateDirectory=appliance-gateway": SandboxControl("write /var/lib/appliance-gateway", READ_ONLY),
    },
    "backup": {
        **_ONLINE,
        "AmbientCapabilities=CAP_DAC_READ_SEARCH": SandboxControl(SECRET, CLOSED),
        "CapabilityBoundingSet=CAP_DAC_READ_SEARCH": SandboxControl(SECRET, CLOSED),
        "CacheDirectory=appliance-backup-local": SandboxControl(
            "write /var/cache/appliance-backup-local", READ_ONLY
        ),
        # In a user namespace, the capability covers no file of a user that the namespace does not have.
        "PrivateUsers=false": SandboxControl("read /var/lib/appliance-gateway/private", CLOSED),
        "ProtectHome=read-only": SandboxControl("read /root/chats", "No such file"),
        f"ReadWritePaths=-{REPOSITORY}": SandboxControl(f"write {REPOSITORY}", READ_ONLY),
        "StateDirectory=appliance-backup": SandboxControl("write /var/lib/appliance-backup", READ_ONLY),
        "UMask=0022": SandboxControl("public /var/lib/appliance-backup", "is private"),
    },
    "drill": {
        **_ONLINE,
        "CacheDirectory=appliance-restore-drill": SandboxControl(
            "write /var/cache/appliance-restore-drill", READ_ONLY
        ),
        "StateDirectory=appliance-restore-drill": SandboxControl(
            "write /var/lib/appliance-restore-drill", READ_ONLY
        ),
        "UMask=0022": SandboxControl("public /var/lib/appliance-restore-drill", "is private"),
    },
    "report": {
        "ReadWritePaths=-/var/lib/appliance-notices": SandboxControl("write /var/lib/appliance-notices", READ_ONLY),
        "StateDirectory=appliance-backup-report": SandboxControl(
            "write /var/lib/appliance-backup-report", READ_ONLY
        ),
        "User=root": SandboxControl("write /run/appliance-metrics", CLOSED),
    },
}
CASES = [(kind, line, control) for kind, table in CONTROLS.items() for line, control in table.items()]


@pytest.fixture(scope="module")
def texts() -> RenderedHost:
    require()
    rendered.require()
    return rendered.host("gpu", GPU, changes=json.dumps(CHANGES))


def probe_unit(kind: str, line: str, *, control: bool) -> str:
    number = [(one, other) for one, other, _ in CASES].index((kind, line))
    return f"{'control' if control else 'allowed'}-{kind}-{number}.service"


@pytest.fixture(scope="module")
def machine(texts: RenderedHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    host = BootedHost(texts, BootedMachine(tmp_path_factory.mktemp("backup") / "gpu"))
    made, common = host.machine, hardened()
    host.install(list(UNITS.values()))
    made.write("usr/local/bin/probe", python_program(f"{SOURCE}/tests/booted/probes.py", ENGINE), executable=True)
    made.write("etc/sysusers.d/backup.conf", "u appliance-backup - - -\n")
    made.write("etc/appliance/backup.json", texts.etc_text("appliance/backup.json"))
    made.write("run-secrets/backup-password", f"{PASSWORD}\n")
    made.write("run-secrets/escrow", ESCROW)
    made.write("etc/tmpfiles.d/nixos.conf", "C /run/secrets - - - - /run-secrets\n")
    for kind in ("rsa", "ed25519"):
        made.write(f"etc/ssh/ssh_host_{kind}_key", "a private key\n")
    made.write("var/lib/wireguard/wg0.key", "a private key\n")
    made.write("root/chats", "a chat\n")
    for kind, line, control in CASES:
        text = with_command(host.text(UNITS[kind]), f"{PROBE} {control.probe}")
        made.write(f"etc/systemd/system/{probe_unit(kind, line, control=False)}", text)
        denied = without(text, line, common)
        made.write(f"etc/systemd/system/{probe_unit(kind, line, control=True)}", denied)
    made.boot()
    try:
        made.run("chmod", "-R", "go=", "/var/lib/wireguard", "/etc/ssh", "/run/secrets", "/root")
        made.run("install", "-d", "-o", "appliance-backup", "-m", "0700", REPOSITORY)
        made.run("install", "-d", "-o", "appliance-gateway", "-m", "0700", "/var/lib/appliance-gateway")
        # As systemd-tmpfiles does on the host.
        for folder in ("", "/backup", "/files"):
            path = f"/var/lib/appliance-assistant{folder}"
            made.run("install", "-d", "-o", "appliance-assistant", "-m", "0700", path)
        private = "/var/lib/appliance-gateway/private"
        made.run("install", "-o", "appliance-gateway", "-m", "0600", "/dev/null", private)
        made.run("install", "-d", "/run/appliance-metrics", "/var/lib/appliance-notices")
        program = next(made.root.glob("opt/store/*llm-appliance*/bin/appliance"))
        create = [f"/{program.relative_to(made.root)}", "keys", "create", "ada"]
        made.run("runuser", "-u", "appliance-gateway", "--", *create, "--config", "/etc/appliance/appliance.json")
        # A route, so that only the sandbox can refuse a packet.
        made.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0")
        made.run("ip", "address", "add", "203.0.113.50/24", "dev", "up0")
        for end in ("up0", "far0"):
            made.run("ip", "link", "set", end, "up")
        yield made
    finally:
        made.stop()


def succeeds(machine: BootedMachine, unit: str) -> str:
    """Start ``unit``, which must end with success; return its messages."""
    machine.run("systemctl", "start", unit, check=False)
    assert machine.show(unit, "Result")["Result"] == "success", machine.journal(unit)
    return machine.journal(unit)


def test_a_backup_a_drill_and_a_report_in_their_sandbox(machine: BootedMachine) -> None:
    assert "snapshot" in succeeds(machine, UNITS["backup"])
    assert "copied 1 keys" in machine.journal(UNITS["stage"])
    messages = succeeds(machine, UNITS["drill"])
    assert "a gateway on the restored data accepts the key of the backup" in messages
    succeeds(machine, UNITS["report"])
    metrics = machine.run("cat", "/run/appliance-metrics/backup.prom")
    assert "appliance_backup_drill_failed 0.0" in metrics
    assert 'appliance_backup_failed{repository="local",step="backup"} 0.0' in metrics
    # The private keys are in the snapshot, although the user of the backup owns none of them.
    owner = ["runuser", "-u", "appliance-backup", "--", "env", f"RESTIC_PASSWORD={PASSWORD}"]
    files = machine.run(*owner, "restic", "-r", REPOSITORY, "--no-lock", "--no-cache", "ls", "latest")
    for path in ("/var/lib/wireguard/wg0.key", "/etc/ssh/ssh_host_ed25519_key"):
        assert path in files
    assert PASSWORD not in machine.journal(UNITS["backup"]) + messages


def test_a_damaged_repository_fails_the_drill_and_is_reported(machine: BootedMachine) -> None:
    succeeds(machine, UNITS["backup"])
    damage = (
        f"find {REPOSITORY}/data -type f -exec sh -c 'printf xxxx | dd of=$0 bs=1 seek=40 conv=notrunc' {{}} ';'"
    )
    machine.run("cp", "-a", REPOSITORY, "/srv/whole")
    machine.run("sh", "-c", damage)
    machine.run("systemctl", "start", UNITS["drill"], check=False)
    assert machine.show(UNITS["drill"], "Result")["Result"] == "exit-code"
    assert "cannot be restored" in machine.journal(UNITS["drill"])
    succeeds(machine, UNITS["report"])
    assert "appliance_backup_drill_failed 1.0" in machine.run("cat", "/run/appliance-metrics/backup.prom")
    assert "drill-failed" in machine.run("sh", "-c", "cat /var/lib/appliance-notices/*.json")
    machine.run("sh", "-c", f"rm -r {REPOSITORY} && mv /srv/whole {REPOSITORY}")


def test_every_departure_has_a_control(texts: RenderedHost) -> None:
    common = hardened()
    found = {kind: departures(texts.unit(unit), common) for kind, unit in UNITS.items()}
    assert found == {kind: set(table) for kind, table in CONTROLS.items()}


@pytest.mark.parametrize(("kind", "line", "control"), CASES, ids=[f"{kind}-{line}" for kind, line, _ in CASES])
def test_a_line_is_needed(machine: BootedMachine, kind: str, line: str, control: SandboxControl) -> None:
    succeeds(machine, probe_unit(kind, line, control=False))
    denied = probe_unit(kind, line, control=True)
    machine.run("systemctl", "start", denied, check=False)
    assert machine.show(denied, "Result")["Result"] == "exit-code", machine.journal(denied)
    assert control.error in machine.journal(denied)
