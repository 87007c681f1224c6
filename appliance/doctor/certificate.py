"""The edge's certificate: what lies on the disk, what nginx serves, and whether a client would trust it."""

from __future__ import annotations

import hashlib
import http.client
import math
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

from appliance.contract.machine import Edge
from appliance.doctor.finding import Verdict, fail, ok, warn
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


def judge_certificate(edge: Edge, found: Certificate | None, served: Served, now: float) -> Iterator[Verdict]:
    """The file: there, valid, for this name, not about to end. Then what nginx makes of it."""
    order = f"acme-order-renew-{edge.domain}"
    mend = f"systemctl start {order}; journalctl -u {order}"
    if found is None:
        yield fail(
            f"{edge.certificate} is missing",
            "nginx has nothing to serve: no client gets in.",
            mend,
            "file",
            "certificate",
        )
    else:
        yield _file(edge, found, now, mend)
    if served.fingerprint is None:
        yield fail(
            f"nginx serves none on port {edge.https_port} ({served.error})",
            "No client gets in.",
            "systemctl status nginx; journalctl -u nginx",
            "served",
            "edge-down",
            "generation",
        )
    elif found is not None and served.fingerprint != found.fingerprint:
        yield fail(
            "nginx serves another one than lies on the disk",
            "It was renewed, and nginx was not told: clients will meet the old one until it ends.",
            "systemctl reload nginx",
            "served",
            fault_domain="generation",
        )
    elif served.distrust:
        yield fail(
            f"clients refuse it: {served.distrust}",
            "Every client gets a certificate error.",
            mend,
            "served",
            "certificate",
        )
    else:
        yield ok("nginx serves it, and a client trusts it", "served")


def _file(edge: Edge, found: Certificate, now: float, mend: str) -> Verdict:
    days = (found.ends - now) / DAY_S
    if found.begins > now:
        return fail(
            f"is valid only in {(found.begins - now) / DAY_S:.1f} days",
            "Either it is new and this host's clock is wrong, or the clock is right and clients refuse it.",
            "appliance doctor --only clock",
            "file",
            "certificate",
        )
    if days <= 0:
        return fail(f"ended {-days:.1f} days ago", "Every client refuses it.", mend, "file", "certificate")
    if not any(_covers(name, edge.domain) for name in found.names):
        return fail(
            f"is for {', '.join(found.names) or 'no name'}, not for {edge.domain}",
            "Every client refuses it.",
            mend,
            "file",
            "certificate",
            "generation",
        )
    if found.issuer == found.subject or "minica" in found.issuer:
        return fail(
            f"is a stand-in, signed by {found.issuer.removeprefix('issuer=')}",
            "The authority has not answered yet; NixOS serves its own until then, and clients refuse it.",
            mend,
            "file",
            "certificate",
        )
    if days < WARN_DAYS:
        level = fail if days < FAIL_DAYS else warn
        return level(f"{math.floor(days)} days left", "It should have been renewed at 30 days.", mend, "file")
    return ok(f"{math.floor(days)} days left", "file")


def _covers(name: str, domain: str) -> bool:
    return name == domain or (name.startswith("*.") and domain.partition(".")[2] == name[2:])


def read_front(domain: str, port: int, address: str = "127.0.0.1") -> int | str:
    """The status that nginx gives to a request without a key, or why there is none."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S) as raw,
            blind.wrap_socket(raw, server_hostname=domain) as connection,
        ):
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {domain}\r\nConnection: close\r\n\r\n".encode())
            answer = http.client.HTTPResponse(connection)
            with closing(answer):
                answer.begin()
                return answer.status
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def judge_front(edge: Edge, status: int | str) -> Verdict:
    """A request without a key goes all the way and is refused by the gateway itself: 401."""
    asked = f"https://{edge.domain}/v1/models without a key"
    if status == 401:
        return ok(f"{asked} gives the gateway's 401")
    if isinstance(status, str):
        return fail(
            f"{asked}: {status}",
            "No client gets in.",
            "systemctl status nginx; journalctl -u nginx",
            cause="edge-down",
        )
    if status in {502, 503, 504}:
        return fail(
            f"{asked} gives {status}",
            "nginx does not reach a gateway: the tunnel or the GPU host is down.",
            "appliance doctor --only tunnel --only gateways",
            cause="gateway-unreachable",
            fault_domain="external",
        )
    return fail(
        f"{asked} gives {status}, not 401",
        "Something else than the gateway answers, or it lets people in without a key.",
        f"curl -i https://{edge.domain}/v1/models",
    )
