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


def judge_front(edge: Edge, status: int | str) -> Finding:
    """A request without a key goes all the way and is refused by the gateway itself: 401."""
    asked = f"https://{edge.domain}/v1/models without a key"
    if status == 401:
        return ok(f"{asked} gives the gateway's 401")
    if isinstance(status, str):
        return fail(
            f"{asked}: {status}",
            meaning="No client gets in.",
            fix="systemctl status nginx; journalctl -u nginx",
            cause="edge-down",
        )
    if status in {502, 503, 504}:
        return fail(
            f"{asked} gives {status}",
            meaning="nginx does not reach a gateway: the tunnel or the GPU host is down.",
            fix="appliance doctor --only tunnel --only gateways",
            cause="gateway-unreachable",
            fault_domain="external",
        )
    return fail(
        f"{asked} gives {status}, not 401",
        meaning="Something else than the gateway answers, or it lets people in without a key.",
        fix=f"curl -i https://{edge.domain}/v1/models",
    )


@check(
    "edge",
    looks="a request without a key through nginx and tunnel: the gateway's own 401 comes back",
    means="The whole way in works, or not.",
    fix="what `tunnel`, `gateways` and `certificate` say",
    requires=machine_part(lambda machine: machine.edge, "this host is no edge"),
    fault_domain="generation",
    exceptions="502, 503 and 504: no gateway behind it answers",
)
def check_front(_context: CheckContext, expected: Edge) -> Iterator[Finding]:
    """One request through the whole way in."""
    yield judge_front(expected, read_front(expected.domain, expected.https_port))
