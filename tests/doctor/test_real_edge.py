"""A real edge: nginx with certificates of a test authority, and a real gateway behind it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, RunningService, opens, wait_until
from tests.doctor.fakehost import KEYS
from tests.doctor.servers import Authority
from tests.nix import checker
from tests.ports import free_port

DOMAIN = "llm.example.org"


@dataclass
class EdgeProcess:
    """nginx on a port, and the machine's description of it."""

    folder: Path
    port: int
    machine: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def certificate(self) -> Path:
        return self.folder / "fullchain.pem"

    def use(self, issued: tuple[Path, Path]) -> None:
        """Replace certificate and key by new files.

        Since 1.27.4, a reload of nginx reads a file again only if its inode or its second of change differs.
        """
        for source, file in zip(issued, (self.certificate, self.folder / "key.pem"), strict=True):
            shutil.copy(source, new := file.with_suffix(".new"))
            new.replace(file)

    def start(self, gateway: int) -> None:
        folders = " ".join(
            f"{kind}_temp_path {self.folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        conf = self.folder / "nginx.conf"
        conf.write_text(
            f"daemon off; pid {self.folder}/pid; error_log {self.folder}/error.log; events {{}}\n"
            f"http {{ access_log off; {folders}\n"
            f"server {{ listen 127.0.0.1:{self.port} ssl; server_name {DOMAIN};\n"
            f"ssl_certificate {self.certificate}; ssl_certificate_key {self.folder}/key.pem;\n"
            f"location /v1/ {{ proxy_pass http://127.0.0.1:{gateway}; }} }} }}\n"
        )
        nginx = checker.require("nginx")
        self.process = subprocess.Popen(
            [nginx, "-c", conf, "-e", self.folder / "error.log"], stdin=subprocess.DEVNULL
        )
        wait_until(lambda: opens(self.port), "nginx")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=10)
            self.process = None

    def doctor(self, *only: str) -> tuple[int, dict[str, dict[str, str]], list[str]]:
        """Run the doctor; return its exit code, findings by name and subject, and causes."""
        file = self.folder / "machine.json"
        file.write_text(json.dumps(self.machine))
        argv = [sys.executable, "-m", "appliance", "doctor", "--json", "--machine", str(file)]
        argv += [f"--only={name}" for name in only]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=self.environment
        )
        assert done.stdout, done.stderr
        report = json.loads(done.stdout)
        found = {f"{c['name']} {c['subject']}".strip(): c for c in report["checks"]}
        return done.returncode, found, [cause["code"] for cause in report["causes"]]


@pytest.fixture
def edge(
    authority: Authority, service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EdgeProcess]:
    for program in ("nginx", "openssl", "faketime"):
        checker.require(program)
    port = free_port()
    machine = {
        "version": 1,
        "host": "vps",
        "tunnel": {
            "interface": "wg0", "address": "10.77.0.2", "mtu": 1420, "private_key_file": "/etc/wg0.key",
            "peers": {"gpu": {"public_key": KEYS["gpu"], "address": "10.77.0.1"}},
        },
        "edge": {
            "domain": DOMAIN, "https_port": port, "certificate": str(tmp_path / "fullchain.pem"), "nginx": "0",
            "gateways": [f"127.0.0.1:{service.gateway.port}"],
        },
    }  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    made = EdgeProcess(folder=tmp_path, port=port, machine=machine, environment=dict(os.environ))
    made.use(authority.issue(DOMAIN, 60, tmp_path / "first"))
    made.start(service.gateway.port)
    try:
        yield made
    finally:
        made.stop()


def test_a_healthy_edge(edge: EdgeProcess) -> None:
    code, found, causes = edge.doctor("edge", "certificate", "gateways")
    assert (code, causes) == (0, [])
    assert found["edge"]["seen"].endswith("gets the gateway's 401")
    assert found["certificate file"]["seen"] == "59 days left"
    assert found["certificate served"]["level"] == "ok"


def test_an_edge_without_a_gateway(edge: EdgeProcess) -> None:
    edge.stop()
    closed = free_port()
    edge.start(closed)
    edge.machine["edge"]["gateways"] = [f"127.0.0.1:{closed}"]
    code, found, causes = edge.doctor("edge", "gateways")
    assert (code, causes) == (1, ["gateway-unreachable"])
    assert "gets 502" in found["edge"]["seen"]
    assert found[f"gateways 127.0.0.1:{closed}"]["seen"] == "does not respond (ConnectionRefusedError)"


def test_one_of_two_gateways_is_down(edge: EdgeProcess) -> None:
    edge.machine["edge"]["gateways"].append(f"127.0.0.1:{free_port()}")
    code, found, _ = edge.doctor("gateways")
    assert (code, sorted(one["level"] for one in found.values())) == (3, ["ok", "warn"])


def test_an_edge_without_nginx(edge: EdgeProcess) -> None:
    edge.stop()
    code, _, causes = edge.doctor("edge", "certificate")
    assert (code, causes) == (1, ["edge-down"])


def test_a_404_is_not_the_response_of_a_gateway(edge: EdgeProcess) -> None:
    """nginx without the API's location."""
    edge.stop()
    assert edge.process is None
    text = (edge.folder / "nginx.conf").read_text()
    (edge.folder / "nginx.conf").write_text(text.replace("location /v1/", "location /v2/"))
    edge.process = subprocess.Popen(
        ["nginx", "-c", edge.folder / "nginx.conf", "-e", edge.folder / "error.log"], stdin=subprocess.DEVNULL
    )
    wait_until(lambda: opens(edge.port), "nginx")
    _, found, _ = edge.doctor("edge")
    assert "gets 404, not 401" in found["edge"]["seen"]


IssueCertificate = Callable[[Authority, Path], tuple[Path, Path]]


def _expired(authority: Authority, folder: Path) -> tuple[Path, Path]:
    return authority.issue(DOMAIN, 90, folder, begins="-100d")


def _expires_soon(authority: Authority, folder: Path) -> tuple[Path, Path]:
    return authority.issue(DOMAIN, 90, folder, begins="-76d")


def _expires_very_soon(authority: Authority, folder: Path) -> tuple[Path, Path]:
    return authority.issue(DOMAIN, 90, folder, begins="-87d")


def _not_yet_valid(authority: Authority, folder: Path) -> tuple[Path, Path]:
    return authority.issue(DOMAIN, 90, folder, begins="+3d")


def _another_name(authority: Authority, folder: Path) -> tuple[Path, Path]:
    return authority.issue("www.example.org", 90, folder)


def _wildcard(authority: Authority, folder: Path) -> tuple[Path, Path]:
    return authority.issue("*.example.org", 90, folder)


def _placeholder(_: Authority, folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    words = (
        f"req -x509 -newkey rsa:2048 -nodes -days 90 -subj /CN={DOMAIN} -addext subjectAltName=DNS:{DOMAIN}".split()
    )
    cert, key = folder / "fullchain.pem", folder / "key.pem"
    subprocess.run(["openssl", *words, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.mark.parametrize(
    ("make", "level", "file", "served"),
    [
        (_expired, "fail", "expired 10.0 days ago", "certificate has expired"),
        (_expires_soon, "warn", "13 days left", "a client trusts it"),
        (_expires_very_soon, "fail", "2 days left", "a client trusts it"),
        (_not_yet_valid, "fail", "is valid only in 3.0 days", "not yet valid"),
        (_another_name, "fail", f"is for www.example.org, not for {DOMAIN}", "mismatch"),
        (_wildcard, "ok", "89 days left", "a client trusts it"),
        (_placeholder, "fail", "is a placeholder", "self-signed"),
    ],
)
def test_the_finding_of_each_certificate(
    make: IssueCertificate,
    level: str,
    file: str,
    served: str,
    edge: EdgeProcess,
    authority: Authority,
    service: RunningService,
    tmp_path: Path,
) -> None:
    edge.stop()
    edge.use(make(authority, tmp_path / "other"))
    edge.start(service.gateway.port)
    code, found, _ = edge.doctor("certificate")
    assert (found["certificate file"]["level"], file in found["certificate file"]["seen"]) == (level, True), found
    assert served in found["certificate served"]["seen"], found
    assert code == {"ok": 0, "warn": 3, "fail": 1}[level]


def test_a_renewal_without_a_reload_of_nginx(edge: EdgeProcess, authority: Authority, tmp_path: Path) -> None:
    edge.use(authority.issue(DOMAIN, 90, tmp_path / "renewed"))
    _, found, _ = edge.doctor("certificate")
    assert found["certificate file"]["level"] == "ok"
    assert found["certificate served"]["seen"] == "nginx serves another one than the file"
    assert found["certificate served"]["fix"] == "systemctl reload nginx"
    assert edge.process is not None
    edge.process.send_signal(signal.SIGHUP)

    def reloaded() -> bool:
        return edge.doctor("certificate")[1]["certificate served"]["level"] == "ok"

    wait_until(reloaded, "the reload", 20)


def test_the_version_of_the_running_nginx(edge: EdgeProcess) -> None:
    running = (
        subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.split("/")[1].split()[0]
    )
    _, found, _ = edge.doctor("pins")
    assert (found["pins nginx"]["level"], found["pins nginx"]["seen"]) == (
        "warn",
        f"{running} runs; installed is 0",
    )
    edge.machine["edge"]["nginx"] = running
    assert edge.doctor("pins")[1]["pins nginx"]["level"] == "ok"
    edge.machine["edge"]["http2"] = True
    old = tuple(int(part) for part in running.split(".")) < (1, 30, 7)
    assert edge.doctor("pins")[1]["pins nginx"]["level"] == ("fail" if old else "ok")
