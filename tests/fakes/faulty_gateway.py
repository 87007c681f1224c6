"""A gateway in which one part fails once: ``python -m tests.fakes.faulty_gateway PART gateway --config FILE``.

SIGUSR1 arms the part, and the log shows ``armed``; its next call raises an error that no code expects.
Some parts are private methods of the product: the error must occur inside them.
"""

from __future__ import annotations

import functools
import signal
import sys
from typing import Any

from appliance.cli import main as appliance
from appliance.gateway import (
    app,
    auth,
    health,
    idempotency,
    lifecycle,
    limits,
    media,
    metrics,
    routing,
    sse,
)
from appliance.http1 import parser, server
from appliance.store import keys as key_store

PARTS: dict[str, tuple[object, str]] = {
    "headers": (parser.RequestParser, "on_header"),
    "begin": (app.GatewayApp, "begin"),
    "authenticate": (auth.Authenticator, "authenticate_any"),
    "handle": (app.GatewayApp, "handle"),
    "find_recording": (idempotency.IdempotencyCache, "find"),
    "decode": (lifecycle, "decode"),
    "find": (routing.Router, "find"),
    "check": (lifecycle, "check"),
    "media": (media, "check"),
    "admit": (limits.Ledger, "admit"),
    "weight": (limits.Ledger, "weight"),
    "sequences": (lifecycle, "sequences"),
    "with_usage": (lifecycle, "with_usage"),
    "submit": (routing.Service, "submit"),
    "pick": (routing.Service, "_pick"),
    "granted": (lifecycle.ProxiedRequest, "_post"),
    "charge": (lifecycle.RequestAccounting, "charge"),
    "feed": (sse.SseFilter, "feed"),
    "read_usage": (lifecycle, "read_usage"),
    "id_headers": (lifecycle.ProxiedRequest, "_id_headers"),
    "whole": (server, "encode_response"),
    "end": (server.ResponseWriter, "end_stream"),
    "finished": (server.ClientConnection, "finish"),
    "count": (metrics.Metrics, "count"),
    "finish": (limits.Ledger, "finish"),
}
"""The parts that a request passes, about in order."""

BACKGROUND: dict[str, tuple[object, str]] = {
    "keys": (key_store.KeyStore, "snapshot"),
    "canary": (health, "canary_passed"),
}
"""Parts that run independently of requests."""


class UnexpectedError(Exception):
    """An error that no code expects."""


def make_part_fail(name: str) -> None:
    owner, attribute = (PARTS | BACKGROUND)[name]
    function = getattr(owner, attribute)
    armed: list[bool] = []

    def arm(number: int, frame: object) -> None:
        armed.append(True)
        print("armed", file=sys.stderr, flush=True)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if armed:
            armed.clear()
            raise UnexpectedError(name)
        return function(*args, **kwargs)

    signal.signal(signal.SIGUSR1, arm)
    static = isinstance(vars(owner).get(attribute), staticmethod)
    setattr(owner, attribute, staticmethod(run) if static else run)


def main() -> int:
    """Run the gateway with the part of the command line."""
    make_part_fail(sys.argv[1])
    return appliance(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
