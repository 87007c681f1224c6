"""Runs the gateway: opens its stores, binds its port, serves until SIGTERM or SIGINT."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from appliance.config import Site
from appliance.errors import StartError
from appliance.gateway.app import Gateway
from appliance.gateway.keys import KeyStore
from appliance.gateway.usage import UsageWriter


def bind(host: str, port: int, instead: str = "another gateway.port in the configuration") -> socket.socket:
    """A listening socket; raises :class:`StartError` that names a taken port and what to use ``instead``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is taken by another program"
            raise StartError(f"{message}; use {instead}") from None
        raise StartError(f"cannot listen on {host} port {port} ({error.strerror}); check gateway.host") from None
    return listener


def serve(site: Site, base: Path) -> int:
    """Serve until told to stop; the exit code. Data folders are relative to ``base``."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    listener = bind(site.gateway.host, site.gateway.port)
    folder = site.data_path(base)
    keys = KeyStore(folder)
    usage = UsageWriter(folder)
    config = uvicorn.Config(
        Gateway(site, keys, usage),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_graceful_shutdown=site.gateway.drain_timeout_s,
    )
    # uvicorn raises the signal that stopped it once more when it is done; unhandled, that would kill us
    # before the last usage rows are written.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        usage.close()
        keys.close()
    return 0
