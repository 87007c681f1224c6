"""Runs the dead man's switch: a look at the host at home in each interval, and the HTTP server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.notices.outbox import Outbox
from appliance.system import files
from appliance.system.http_request import NO_RESPONSE, send_request
from appliance.system.stopping import listening
from appliance.watch.deadman.observe import HandshakeReader, read_ready
from appliance.watch.deadman.policy import HomeLook, SwitchLimits
from appliance.watch.deadman.server import SwitchServer
from appliance.watch.deadman.switch import DeadMansSwitch

LOG = logging.getLogger(__name__)

LOOK_S = 5.0
PING_S = 60.0
PING_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class SwitchOptions:
    """Settings of the process."""

    home: str
    """Name of the host at home, for messages."""
    address: str
    gateway_port: int
    interface: str
    peer: str
    """Public key of the host's peer; empty if handshakes are not read."""
    listen: str
    port: int
    folder: Path
    """Folder of the state and of the outbox."""
    limits: SwitchLimits
    look_s: float = LOOK_S
    """Limit of one GET /ready, in seconds."""
    ping_url: str = ""
    """URL that gets a request each minute while all is well; empty for none."""
    ping_s: float = PING_S


def serve(options: SwitchOptions) -> int:
    """Run the switch until SIGTERM or SIGINT; return the exit code.

    Raises :class:`~appliance.errors.StartError` if it cannot listen and :class:`~appliance.errors.StoreError` if
    its folder cannot be made.
    """
    files.make_folder(options.folder)
    switch = DeadMansSwitch(
        options.home,
        limits=options.limits,
        outbox=Outbox(options.folder / "notices"),
        state=options.folder / "state.json",
    )
    server = SwitchServer(options.listen, options.port, switch)
    handshakes = HandshakeReader(options.interface, options.peer) if options.peer else None
    with listening() as stop:
        serving = threading.Thread(target=server.serve_forever, args=(0.2,), name="http")
        serving.start()
        if options.ping_url:
            # A daemon: a ping that hangs must not delay the end of the process.
            ping = OutsidePing(options.ping_url, switch.healthy)
            pinging = threading.Thread(target=ping.run, args=(options.ping_s,), name="ping", daemon=True)
            pinging.start()
        LOG.info("watches %s at %s:%d", options.home, options.address, options.gateway_port)
        try:
            due = time.monotonic()
            while not stop.wait(max(due - time.monotonic(), 0.0)):
                switch.look(_look(options, handshakes))
                due = max(due + options.limits.interval_s, time.monotonic())
        finally:
            server.shutdown()
            serving.join()
            server.server_close()
    LOG.info("ends after %s", stop.reason)
    return 0


def _look(options: SwitchOptions, handshakes: HandshakeReader | None) -> HomeLook:
    ready, detail = read_ready(options.address, options.gateway_port, timeout_s=options.look_s)
    return HomeLook(ready, detail, handshakes.age_s() if handshakes is not None else None)


class OutsidePing:
    """Requests a URL while all is well, so that an outside service notices the end of the VPS or of its line."""

    def __init__(self, url: str, healthy: Callable[[], bool]) -> None:
        self._url = url
        self._healthy = healthy
        self._last = ""

    def run(self, interval_s: float) -> None:
        """Ping for ever."""
        while True:
            self.ping()
            time.sleep(interval_s)

    def ping(self) -> None:
        """Send one request if all is well. The log has each change of the result once, without the URL."""
        if not self._healthy():
            result = "withheld: the host at home is silent, or notices cannot be sent"
        else:
            try:
                status = send_request(self._url, "", timeout_s=PING_TIMEOUT_S).status
                result = "sent" if status < 400 else f"refused with HTTP {status}"
            except (*NO_RESPONSE, ApplianceError, ValueError) as error:
                result = f"not sent: {type(error).__name__}"
        if result != self._last:
            LOG.info("outside ping: %s", result)
        self._last = result
