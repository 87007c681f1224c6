"""Runs the fetcher until SIGTERM or SIGINT."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from appliance.errors import StartError, UsageError
from appliance.search.address_rule import AddressRule, Network
from appliance.search.checked_dialer import CheckedDialer
from appliance.search.fetcher_app import make_app
from appliance.search.page_download import DownloadLimits, PageDownloader
from appliance.search.page_reader import PageReader
from appliance.system import text_file
from appliance.system.service_manager import notify

FIRST_DESCRIPTOR = 3
"""The first descriptor that systemd passes on."""


@dataclass(frozen=True, slots=True)
class FetcherOptions:
    """The options of ``appliance fetcher``."""

    host: str
    port: int
    denied: Sequence[Network] = ()
    key_file: Path | None = None


class _NotifyingFetcher(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            notify("READY=1")


def serve(options: FetcherOptions) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code.

    Raises :class:`UsageError` for an unusable key, :class:`StartError` for an unusable address.
    """
    key = None if options.key_file is None else read_fetcher_key(options.key_file)
    listener = inherited_socket() or _bind(options.host, options.port)
    limits = DownloadLimits()
    dialer = CheckedDialer(AddressRule(denied=options.denied))
    reader = PageReader(PageDownloader(dialer, ssl.create_default_context(), limits), limits)
    config = uvicorn.Config(
        make_app(reader, key),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    _NotifyingFetcher(config).run(sockets=[listener])
    return 0


def read_fetcher_key(path: Path) -> str:
    """Return the key in ``path``. Raises :class:`UsageError` if it is empty, :class:`ConfigError` if unreadable."""
    missing = "No such file or directory; put the key of the fetcher into it"
    key = text_file.key(text_file.read(path, missing=missing), str(path))
    if len(key) < 16:
        raise UsageError(f"{path}: a key has at least 16 characters; `openssl rand -hex 32` makes one")
    return key


def inherited_socket() -> socket.socket | None:
    """Return the listening socket that systemd passes to this process (sd_listen_fds(3)); None without one."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=FIRST_DESCRIPTOR)


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        fix = "use another port" if error.errno == errno.EADDRINUSE else "name an address of this host"
        raise StartError(f"the fetcher cannot listen on {host} port {port} ({reason}); {fix}") from None
    return listener
