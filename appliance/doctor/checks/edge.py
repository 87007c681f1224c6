"""One request through nginx and the tunnel to the gateway."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing

from appliance.contract.machine import Edge
from appliance.doctor.check import (
    check,
    machine_part,
)
from appliance.doctor.checks.certificate import CONNECT_TIMEOUT_S
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok


def read_front(domain: str, port: int, address: str = "127.0.0.1") -> int | str:
    """Return the status of a request without a key to nginx, or the error if there was no response."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S) as raw,
            unverified.wrap_socket(raw, server_hostname=domain) as connection,
        ):
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {domain}\r\nConnection: close\r\n\r\n".encode())
            response = http.client.HTTPResponse(connection)
            with closing(response):
                response.begin()
                return response.status
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def judge_front(edge: Edge, status: int | str) -> Finding:
    """Judge whether the gateway itself rejects a request without a key with 401."""
    request = f"https://{edge.domain}/v1/models without a key"
    if status == 401:
        return ok(f"{request} gets the gateway's 401")
    if isinstance(status, str):
        return fail(
            f"{request}: {status}",
            meaning="No client can connect.",
            fix="systemctl status nginx; journalctl -u nginx",
            cause="edge-down",
        )
    if status in {502, 503, 504}:
        return fail(
            f"{request} gets {status}",
            meaning="nginx does not reach a gateway: the tunnel or the GPU host is down.",
            fix="appliance doctor --only tunnel --only gateways",
            cause="gateway-unreachable",
            fault_domain="external",
        )
    return fail(
        f"{request} gets {status}, not 401",
        meaning="Another server responds, or the gateway accepts requests without a key.",
        fix=f"curl -i https://{edge.domain}/v1/models",
    )


@check(
    "edge",
    looks="a request without a key through nginx and tunnel: the gateway's own 401 is returned",
    means="Clients cannot reach the gateway through this edge.",
    fix="the fixes of `tunnel`, `gateways` and `certificate`",
    requires=machine_part(lambda machine: machine.edge, "this host is not an edge"),
    fault_domain="generation",
    exceptions="502, 503 and 504: no gateway behind it responds",
)
def check_front(_context: CheckContext, expected: Edge) -> Iterator[Finding]:
    """Check one request through the edge."""
    yield judge_front(expected, read_front(expected.domain, expected.https_port))
