"""Case 7: certificates by ACME from Debian's pebble, requested by lego as in NixOS's security.acme."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.network.client import PATH, Stream, chat
from tests.network.site import NetworkSite
from tests.nix import checker

RecordRow = Callable[[str, str, str], None]
PEBBLE = "203.0.113.1"


@dataclass
class Acme:
    """pebble on the Internet, and lego on the VPS."""

    site: NetworkSite

    def lego(self, *command: str) -> None:
        """Request a certificate like the unit of NixOS, and copy it to the folder of nginx."""
        host = self.site.hosts["vps-a"]
        values = host.values
        defaults, domain = values["security.acme.defaults"], self.site.client.domain
        assert values["security.acme.acceptTerms"]
        root = values["services.nginx.virtualHosts"][domain]["acmeRoot"]
        argv = ["env", f"LEGO_CA_CERTIFICATES={self.site.folder}/pebble/root.pem", "lego", "--accept-tos"]
        argv += ["--server", f"https://{PEBBLE}:14000/dir", "--email", defaults["email"], "-d", domain]
        argv += ["--key-type", defaults["keyType"], "--http", "--http.webroot", root]
        host.machine.run(*argv, "--path", "/var/lib/acme/.lego", *command, timeout=60)
        made, put = host.machine.disk / "acme/.lego/certificates", host.machine.disk / "acme" / domain
        (put / "fullchain.pem").write_bytes((made / f"{domain}.crt").read_bytes())
        (put / "key.pem").write_bytes((made / f"{domain}.key").read_bytes())

    def trust(self) -> ssl.SSLContext:
        """Return a context with pebble's root certificate, which changes at each start."""
        with self.site.internet.machine.inside():
            argv = ["curl", "-sfk", f"https://{PEBBLE}:15000/roots/0"]
            return ssl.create_default_context(
                cadata=subprocess.run(argv, capture_output=True, text=True, check=True).stdout
            )

    def reload(self) -> float:
        """Reload nginx, like NixOS after a renewal (`systemctl reload nginx`); return the seconds until it is done.

        The earlier workers accept connections until the master stops them, like the new ones.
        """
        master = self.site.hosts["vps-a"].daemons["nginx"]
        before = accepting_workers(master.pid)
        assert before
        master.send_signal(signal.SIGHUP)
        return wait_until(lambda: not before & accepting_workers(master.pid), "nginx has replaced its workers")

    def serial(self) -> str:
        """Return the serial number of the certificate that a new client gets."""
        with self.site.client.connect(context=self.trust()) as channel:
            assert isinstance(channel, ssl.SSLSocket)
            found = channel.getpeercert()
            assert found
            return str(found["serialNumber"])


def accepting_workers(master: int) -> set[int]:
    """Return the workers of nginx that are not shutting down; nginx writes its state into its command line."""
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    found = set()
    for worker in children:
        try:
            title = Path(f"/proc/{worker}/cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if title.startswith("nginx: worker process") and "shutting down" not in title:
            found.add(int(worker))
    return found


@pytest.fixture
def acme(site: NetworkSite) -> Iterator[Acme]:
    for program in ("pebble", "pebble-challtestsrv", "lego", "curl"):
        checker.require(program)
    internet, folder = site.internet.machine, site.folder / "pebble"
    folder.mkdir()
    certificate(folder)
    listening = {"listenAddress": f"{PEBBLE}:14000", "managementListenAddress": f"{PEBBLE}:15000"}
    own = {"certificate": str(folder / "cert.pem"), "privateKey": str(folder / "key.pem")}
    (folder / "pebble.json").write_text(
        json.dumps({"pebble": {**listening, **own, "httpPort": 80, "tlsPort": 443}})
    )
    edge = site.edge("vps-a")
    dns = ["-dns01", "127.0.0.1:8053", "-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
    quick = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    started = [
        internet.start("dns", ["pebble-challtestsrv", "-management", "127.0.0.1:8055", *dns, "-defaultIPv4", edge]),
        internet.start(
            "pebble", ["pebble", "-config", str(folder / "pebble.json"), "-dnsserver", "127.0.0.1:8053"], quick
        ),
    ]
    wait_until(lambda: internet.listens(14000) and internet.listens(8053, "-u"), "pebble is up")
    host = site.hosts["vps-a"]
    kept = {file: file.read_bytes() for file in (host.machine.disk / "acme" / site.client.domain).iterdir()}
    yield Acme(site)
    for process in started:
        internet.stop(process)
    for file, content in kept.items():
        file.write_bytes(content)
    host.restart("nginx")


def certificate(folder: Path) -> None:
    """Write the certificate of pebble's API to ``folder``."""
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    argv += ["-subj", "/CN=pebble", "-addext", f"subjectAltName=IP:{PEBBLE}", "-keyout", str(folder / "key.pem")]
    subprocess.run([*argv, "-out", str(folder / "cert.pem")], check=True, capture_output=True)
    (folder / "root.pem").write_text((folder / "cert.pem").read_text())


async def ten_streams(acme: Acme, action: Callable[[], None]) -> list[Stream]:
    """Run ``action`` during ten streams; return the streams."""
    site = acme.site
    site.client.trust = acme.trust()
    streams = [Stream() for _ in range(10)]
    tasks = [
        asyncio.create_task(site.client.stream(chat("tokens=30 itl_ms=100"), user=n, into=stream))
        for n, stream in enumerate(streams)
    ]
    await asyncio.to_thread(wait_until, lambda: all(stream.tokens for stream in streams), "ten streams run")
    await asyncio.to_thread(action)
    await asyncio.gather(*tasks)
    return streams


async def test_a_certificate_is_issued_and_renewed(acme: Acme, record_row: RecordRow) -> None:
    site, nginx = acme.site, acme.site.hosts["vps-a"]
    with pytest.raises(ssl.SSLCertVerificationError):  # the control: pebble has issued none yet
        site.client.connect(context=acme.trust())
    acme.lego("run")
    took = acme.reload()
    own, authority = site.client.trust, acme.trust()
    try:
        assert site.client.post(PATH, chat("tokens=1"), context=authority).status == 200
        serials = [acme.serial()]

        def renew() -> None:
            acme.lego("renew", "--days", "36500", "--no-random-sleep")
            acme.reload()
            assert acme.serial() != serials[0], "nginx does not have the renewed certificate"

        streams = await ten_streams(acme, renew)
        whole = sum(stream.done and len(stream.tokens) == 30 for stream in streams)
        record_row("7 ACME: issue, and renewal under 10 streams", "a certificate of the authority; no lost stream",
            f"shown {took:.1f} s after the reload; {whole} of 10 whole")  # fmt: skip
        assert whole == 10

        # The control: a restart of nginx would have cut them.
        master = nginx.daemons["nginx"]
        streams = await ten_streams(acme, lambda: master.send_signal(signal.SIGTERM))
        assert sum(stream.done for stream in streams) < 10
        assert master.wait(10) == 0
    finally:
        site.client.trust = own
        if nginx.daemons["nginx"].poll() is not None:
            nginx.start("nginx")
