"""Runs the gateway: opens the stores, binds the port, serves until SIGTERM or SIGINT, drains."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from pathlib import Path

import uvloop

from appliance.contract.model import Site
from appliance.engines.lifecycle import ChildControl, EngineControl, SystemdControl
from appliance.gateway import log
from appliance.gateway.acting_socket import ActingSocket, allowed_users
from appliance.gateway.app import GatewayApp
from appliance.gateway.control_client import SOCKET
from appliance.gateway.control_socket import Control
from appliance.gateway.drains import NAME as DRAINED
from appliance.gateway.drains import DrainFile
from appliance.gateway.plan_sales import PlanSales
from appliance.gateway.usage_writer import UsageWriter
from appliance.http1.server import Server
from appliance.http1.types import Timeouts
from appliance.store.keys import KeyStore
from appliance.store.users import UserStore
from appliance.system.listener import bind
from appliance.system.unix_socket import address

BACKLOG = 2048
"""Connections that the kernel holds until the gateway accepts them."""

FLUSH_S = 2.0
"""Seconds after the drain's deadline within which clients must read the ends of their streams."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(site: Site, base: Path) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. Data folders are relative to ``base``."""
    log.set_up()
    listener = bind(site.gateway.host, site.gateway.port)
    folder = site.data_path(base)
    url = site.gateway.database_url
    keys = KeyStore(folder, url)
    users = UserStore(folder, url)
    usage = UsageWriter(folder, url, keep_days=site.gateway.usage_keep_days)
    try:
        uvloop.run(_serve(site, base, listener, keys, users, usage))
    finally:
        _ignore_signals()
        usage.close()
        users.close()
        keys.close()
    return 0


def _ignore_signals() -> None:
    """Ignore SIGTERM and SIGINT until the process ends: a further one must not cost rows or the exit code."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _engine_control(site: Site, base: Path) -> EngineControl | None:
    """Return the control of on-demand engines, or ``None`` if the site has none."""
    if all(engine.residency == "always" for engine in site.engines.values()):
        return None
    if site.gateway.engine_control == "systemd":
        return SystemdControl(site)
    return ChildControl(site, base, site.data_path(base) / "log")


async def _local_sockets(
    site: Site, base: Path, app: GatewayApp, accounts: UserStore, timeouts: Timeouts
) -> tuple[ActingSocket | None, ActingSocket | None]:
    """Listen for the Telegram bot and for the assistant, as far as the site has them."""
    local: ActingSocket | None = None
    if site.telegram is not None:
        users = allowed_users(site.telegram.user, "telegram.user")
        local = ActingSocket(
            app,
            site.telegram.acting_path(base),
            users,
            timeouts,
            PlanSales(site, accounts, app.named_key),
        )
        await local.listen()
    acting: ActingSocket | None = None
    if site.assistant is not None:
        users = allowed_users(site.assistant.user)
        acting = ActingSocket(app, site.assistant.acting_path(base), users, timeouts)
        await acting.listen()
    return local, acting


async def _serve(
    site: Site, base: Path, listener: socket.socket, keys: KeyStore, users: UserStore, usage: UsageWriter
) -> None:
    loop = asyncio.get_running_loop()
    stop_requested = asyncio.Event()
    for number in STOP_SIGNALS:
        # Not a handler of the loop: its end would restore the default, by which a further signal kills.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop_requested.set))
    settings = site.gateway
    app = GatewayApp(
        site,
        keys,
        users,
        usage,
        DrainFile(site.data_path(base) / DRAINED),
        _engine_control(site, base),
        base=base,
    )
    # Before the port accepts requests: a budget that was used up stays so after a restart.
    await app.accounts.open()
    timeouts = Timeouts(
        head_s=settings.header_timeout_s,
        body_s=settings.body_timeout_s,
        idle_s=settings.idle_timeout_s,
        read_s=settings.reader_timeout_s,
    )
    server = Server(app, timeouts, app.coalescer)
    # The objects of the start stay: the collector inspects new objects only, and less often. Reference counting
    # frees nearly all of them.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    # The usage writer releases the interpreter to the loop after a millisecond, not after five.
    sys.setswitchinterval(0.001)
    control = Server(Control(app), timeouts, app.coalescer)
    path = site.data_path(base) / SOCKET
    with address(path) as name:
        controlling = await loop.create_unix_server(control.connect, name)
    path.chmod(0o600)
    local, acting = await _local_sockets(site, base, app, users, timeouts)
    # Last, so that a gateway that accepts requests also has its other sockets.
    listening = await loop.create_server(server.connect, sock=listener, backlog=BACKLOG)
    try:
        await stop_requested.wait()
        _ignore_signals()
        # Keep listening while draining, so that new requests get 503 with Retry-After.
        app.drain()
        server.drain()
        try:
            async with asyncio.timeout(settings.drain_timeout_s):
                await server.drained()
                if local is not None:
                    await local.drain()
                if acting is not None:
                    # Until here, a turn that a client waits for could send its next request.
                    await acting.drain()
                # The end of a stream may still be buffered for a slow reader.
                await server.flushed()
        except TimeoutError:
            app.stop()
            try:
                async with asyncio.timeout(FLUSH_S):
                    await server.flushed()
            except TimeoutError:
                logging.getLogger(__name__).warning("some clients did not read the ends of their streams")
    finally:
        listening.close()
        controlling.close()
        control.close()
        for socket_of in (local, acting):
            if socket_of is not None:
                socket_of.close()
        await app.close()
        server.close()
