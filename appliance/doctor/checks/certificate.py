"""The edge's certificate: what lies on the disk, what nginx serves, and whether a client would trust it."""

from __future__ import annotations

import hashlib
import math
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from appliance.contract.machine import Edge
from appliance.doctor.check import (
    check,
    machine_part,
)
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, warn
from appliance.doctor.host import CannotLookError, HostReader

DAY_S = 86400.0


WARN_DAYS, FAIL_DAYS = 20, 5
"""NixOS renews 30 days before the end (security.acme's validMinDays); ten days of failed attempts are a warning,
and below five there is little time left for a person."""


CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """A leaf certificate. Times in seconds since the epoch; ``fingerprint`` is SHA-256 in hexadecimal."""

    begins: float
    ends: float
    names: tuple[str, ...]
    issuer: str
    subject: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Served:
    """What a client of this host's own nginx sees."""

    fingerprint: str | None
    error: str = ""
    distrust: str = ""


def read_certificate(host: HostReader, name: str) -> Certificate | None:
    """The first certificate of a PEM file, by ``openssl``; ``None`` where there is no file.

    Raises :class:`CannotLookError` where it is not to be read, or is none.
    """
    text = host.text(name)
    if text is None:
        return None
    wanted = ("-dates", "-subject", "-issuer", "-ext", "subjectAltName", "-fingerprint", "-sha256")
    done = host.run("openssl", "x509", "-in", str(host.path(name)), "-noout", *wanted)
    if done.code != 0:
        raise CannotLookError(f"{name} holds no certificate ({done.first_error})", f"openssl x509 -in {name} -text")
    return parse_openssl(done.out)


def parse_openssl(text: str) -> Certificate:
    """What ``openssl x509`` prints."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    print_of = next((value for key, value in values.items() if "ingerprint" in key), "")
    try:
        return Certificate(
            begins=_epoch(values["notBefore"]),
            ends=_epoch(values["notAfter"]),
            names=tuple(re.findall(r"DNS:([^,\s]+)", text)),
            issuer=values["issuer"].strip(),
            subject=values["subject"].strip(),
            fingerprint=print_of.replace(":", "").lower(),
        )
    except (KeyError, ValueError):
        raise CannotLookError("openssl answers what is no certificate", "openssl version") from None


def _epoch(text: str) -> float:
    return datetime.strptime(text.strip(), "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp()


def read_served(domain: str, port: int, address: str = "127.0.0.1") -> Served:
    """Ask this host's own nginx for ``domain``, once without and once with a client's eyes."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    try:
        fingerprint = _shake(blind, domain, address, port)
    except OSError as error:
        return Served(None, error=f"{type(error).__name__}: {error.strerror or error}")
    try:
        _shake(ssl.create_default_context(), domain, address, port)
    except ssl.SSLCertVerificationError as error:
        return Served(fingerprint, distrust=error.verify_message)
    except OSError as error:
        return Served(fingerprint, distrust=str(error))
    return Served(fingerprint)


def _shake(context: ssl.SSLContext, domain: str, address: str, port: int) -> str:
    with (
        socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S) as raw,
        context.wrap_socket(raw, server_hostname=domain) as connection,
    ):
        return hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()


def judge_certificate(edge: Edge, found: Certificate | None, served: Served, now: float) -> Iterator[Finding]:
    """The file: there, valid, for this name, not about to end. Then what nginx makes of it."""
    order = f"acme-order-renew-{edge.domain}"
    mend = f"systemctl start {order}; journalctl -u {order}"
    if found is None:
        yield fail(
            f"{edge.certificate} is missing",
            meaning="nginx has nothing to serve: no client gets in.",
            fix=mend,
            subject="file",
            cause="certificate",
        )
    else:
        yield _file(edge, found, now, mend)
    if served.fingerprint is None:
        yield fail(
            f"nginx serves none on port {edge.https_port} ({served.error})",
            meaning="No client gets in.",
            fix="systemctl status nginx; journalctl -u nginx",
            subject="served",
            cause="edge-down",
            fault_domain="generation",
        )
    elif found is not None and served.fingerprint != found.fingerprint:
        yield fail(
            "nginx serves another one than lies on the disk",
            meaning="It was renewed, and nginx was not told: clients will meet the old one until it ends.",
            fix="systemctl reload nginx",
            subject="served",
            fault_domain="generation",
        )
    elif served.distrust:
        yield fail(
            f"clients refuse it: {served.distrust}",
            meaning="Every client gets a certificate error.",
            fix=mend,
            subject="served",
            cause="certificate",
        )
    else:
        yield ok("nginx serves it, and a client trusts it", subject="served")


def _file(edge: Edge, found: Certificate, now: float, mend: str) -> Finding:
    days = (found.ends - now) / DAY_S
    if found.begins > now:
        return fail(
            f"is valid only in {(found.begins - now) / DAY_S:.1f} days",
            meaning="Either it is new and this host's clock is wrong, or the clock is right and clients refuse it.",
            fix="appliance doctor --only clock",
            subject="file",
            cause="certificate",
        )
    if days <= 0:
        return fail(
            f"ended {-days:.1f} days ago",
            meaning="Every client refuses it.",
            fix=mend,
            subject="file",
            cause="certificate",
        )
    if not any(_covers(name, edge.domain) for name in found.names):
        return fail(
            f"is for {', '.join(found.names) or 'no name'}, not for {edge.domain}",
            meaning="Every client refuses it.",
            fix=mend,
            subject="file",
            cause="certificate",
            fault_domain="generation",
        )
    if found.issuer == found.subject or "minica" in found.issuer:
        return fail(
            f"is a stand-in, signed by {found.issuer.removeprefix('issuer=')}",
            meaning="The authority has not answered yet; NixOS serves its own until then, and clients refuse it.",
            fix=mend,
            subject="file",
            cause="certificate",
        )
    if days < WARN_DAYS:
        level = fail if days < FAIL_DAYS else warn
        return level(
            f"{math.floor(days)} days left",
            meaning="It should have been renewed at 30 days.",
            fix=mend,
            subject="file",
        )
    return ok(f"{math.floor(days)} days left", subject="file")


def _covers(name: str, domain: str) -> bool:
    return name == domain or (name.startswith("*.") and domain.partition(".")[2] == name[2:])


@check(
    "certificate",
    looks="the file: days left, names, issuer; what nginx serves; whether a client trusts it",
    means="Every client gets a certificate error. Warns below 20 days, fails below 5; renewal is due at 30.",
    fix="`systemctl start acme-order-renew-DOMAIN`, `systemctl reload nginx`",
    requires=machine_part(lambda machine: machine.edge, "this host is no edge"),
    fault_domain="external",
    exceptions="one that nginx does not serve, or that is for another name",
)
def check_certificate(context: CheckContext, expected: Edge) -> Iterator[Finding]:
    """The file, and what nginx serves."""
    served = read_served(expected.domain, expected.https_port)
    found = read_certificate(context.host, expected.certificate)
    yield from judge_certificate(expected, found, served, context.now)
