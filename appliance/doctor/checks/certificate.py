"""The edge's certificate: the file, the one that nginx serves, and whether a client trusts it."""

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
"""NixOS renews 30 days before the end (security.acme's validMinDays). Ten days of failed attempts are a warning;
below five days the operator has little time left."""


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
    """The certificate that a client of this host's nginx receives, or the error, and why it is not trusted."""

    fingerprint: str | None
    error: str = ""
    distrust: str = ""


def read_certificate(host: HostReader, name: str) -> Certificate | None:
    """Read the first certificate of a PEM file with ``openssl``; ``None`` if the file does not exist.

    Raises :class:`CannotLookError` if it cannot be read or is not a certificate.
    """
    text = host.text(name)
    if text is None:
        return None
    wanted = ("-dates", "-subject", "-issuer", "-ext", "subjectAltName", "-fingerprint", "-sha256")
    done = host.run("openssl", "x509", "-in", str(host.path(name)), "-noout", *wanted)
    if done.code != 0:
        raise CannotLookError(f"{name} is not a certificate ({done.first_error})", f"openssl x509 -in {name} -text")
    return parse_openssl(done.out)


def parse_openssl(text: str) -> Certificate:
    """Parse the output of ``openssl x509``."""
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
        raise CannotLookError("the output of openssl is not a certificate", "openssl version") from None


def _epoch(text: str) -> float:
    return datetime.strptime(text.strip(), "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp()


def read_served(domain: str, port: int, address: str = "127.0.0.1") -> Served:
    """Connect to this host's nginx for ``domain``, first without verification and then with a client's."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        fingerprint = _tls_handshake(context=unverified, domain=domain, address=address, port=port)
    except OSError as error:
        return Served(None, error=f"{type(error).__name__}: {error.strerror or error}")
    verified = ssl.create_default_context()
    # The default of Python 3.13 and newer, and so of its clients: each Python reports the same.
    verified.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        _tls_handshake(context=verified, domain=domain, address=address, port=port)
    except ssl.SSLCertVerificationError as error:
        return Served(fingerprint, distrust=error.verify_message)
    except OSError as error:
        return Served(fingerprint, distrust=str(error))
    return Served(fingerprint)


def _tls_handshake(context: ssl.SSLContext, domain: str, address: str, port: int) -> str:
    with (
        socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S) as raw,
        context.wrap_socket(raw, server_hostname=domain) as connection,
    ):
        return hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()


def judge_certificate(edge: Edge, found: Certificate | None, served: Served, now: float) -> Iterator[Finding]:
    """Judge the file (its validity, name and remaining days), then the certificate that nginx serves."""
    order = f"acme-order-renew-{edge.domain}"
    fix = f"systemctl start {order}; journalctl -u {order}"
    if found is None:
        yield fail(
            f"{edge.certificate} is missing",
            meaning="nginx has no certificate to serve: no client can connect.",
            fix=fix,
            subject="file",
            cause="certificate",
        )
    else:
        yield _judge_file(edge=edge, found=found, now=now, fix=fix)
    if served.fingerprint is None:
        yield fail(
            f"nginx serves none on port {edge.https_port} ({served.error})",
            meaning="No client can connect.",
            fix="systemctl status nginx; journalctl -u nginx",
            subject="served",
            cause="edge-down",
            fault_domain="generation",
        )
    elif found is not None and served.fingerprint != found.fingerprint:
        yield fail(
            "nginx serves another one than the file",
            meaning="It was renewed without a reload of nginx: clients get the old one until it expires.",
            fix="systemctl reload nginx",
            subject="served",
            fault_domain="generation",
        )
    elif served.distrust:
        yield fail(
            f"clients reject it: {served.distrust}",
            meaning="Every client gets a certificate error.",
            fix=fix,
            subject="served",
            cause="certificate",
        )
    else:
        yield ok("nginx serves it, and a client trusts it", subject="served")


def _judge_file(edge: Edge, found: Certificate, now: float, fix: str) -> Finding:
    days = (found.ends - now) / DAY_S
    if found.begins > now:
        return fail(
            f"is valid only in {(found.begins - now) / DAY_S:.1f} days",
            meaning="Either this host's clock is behind, or clients reject the certificate.",
            fix="appliance doctor --only clock",
            subject="file",
            cause="certificate",
        )
    if days <= 0:
        return fail(
            f"expired {-days:.1f} days ago",
            meaning="Every client rejects it.",
            fix=fix,
            subject="file",
            cause="certificate",
        )
    if not any(_name_covers(name, edge.domain) for name in found.names):
        return fail(
            f"is for {', '.join(found.names) or 'no name'}, not for {edge.domain}",
            meaning="Every client rejects it.",
            fix=fix,
            subject="file",
            cause="certificate",
            fault_domain="generation",
        )
    if found.issuer == found.subject or "minica" in found.issuer:
        return fail(
            f"is a placeholder, signed by {found.issuer.removeprefix('issuer=')}",
            meaning="The authority has not responded yet; until then NixOS serves its own, which clients reject.",
            fix=fix,
            subject="file",
            cause="certificate",
        )
    if days < WARN_DAYS:
        level = fail if days < FAIL_DAYS else warn
        return level(
            f"{math.floor(days)} days left",
            meaning="It should have been renewed at 30 days.",
            fix=fix,
            subject="file",
        )
    return ok(f"{math.floor(days)} days left", subject="file")


def _name_covers(name: str, domain: str) -> bool:
    return name == domain or (name.startswith("*.") and domain.partition(".")[2] == name[2:])


@check(
    "certificate",
    looks="the file: days left, names, issuer; what nginx serves; whether a client trusts it",
    means="Every client gets a certificate error. Warns below 20 days, fails below 5; renewal is due at 30.",
    fix="`systemctl start acme-order-renew-DOMAIN`, `systemctl reload nginx`",
    requires=machine_part(lambda machine: machine.edge, "this host is not an edge"),
    fault_domain="external",
    exceptions="one that nginx does not serve, or that is for another name",
)
def check_certificate(context: CheckContext, expected: Edge) -> Iterator[Finding]:
    """Check the file, and the certificate that nginx serves."""
    served = read_served(expected.domain, expected.https_port)
    found = read_certificate(context.host, expected.certificate)
    yield from judge_certificate(edge=expected, found=found, served=served, now=context.now)
