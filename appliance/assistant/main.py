"""Runs the assistant on its Unix socket until SIGTERM or SIGINT."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from appliance.assistant.app import make_app
from appliance.assistant.context import AssistantContext
from appliance.assistant.inference import InferenceClient
from appliance.assistant.store.conversations import ConversationStore
from appliance.assistant.store.database import Database, assistant_of
from appliance.contract.model import Site
from appliance.errors import StartError, write_fix
from appliance.system.service_manager import notify
from appliance.system.unix_socket import address

STOP_S = 30
"""Seconds that running responses have to finish when the assistant stops."""


class NotifyingServer(uvicorn.Server):
    """uvicorn, which reports its start to systemd: units after the assistant start when it accepts connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the background work, listen on ``sockets``, then send ``READY=1``; a failed start sends nothing."""
        await super().startup(sockets=sockets)
        if self.started:
            notify("READY=1")


def open_context(site: Site, base: Path) -> AssistantContext:
    """Open the database and the way to the gateway; relative paths begin at ``base``.

    Raises :class:`ConfigError` for a site without an assistant, :class:`StoreError` for an unusable database.
    """
    settings = assistant_of(site)
    folder = settings.data_path(base)
    return AssistantContext(
        site=site,
        settings=settings,
        database=Database(folder, settings.database_url),
        inference=InferenceClient(settings.acting_path(base)),
        folder=folder,
    )


@contextmanager
def open_chats(site: Site, base: Path, *, read_only: bool = True) -> Iterator[ConversationStore]:
    """Open the conversations of a site whose assistant may run or not; relative paths begin at ``base``.

    Raises :class:`ConfigError` for a site without an assistant, :class:`StoreError` for an unusable database.
    """
    settings = assistant_of(site)
    database = Database(settings.data_path(base), settings.database_url, read_only=read_only)
    try:
        yield ConversationStore(database)
    finally:
        database.close()


def serve(site: Site, base: Path, metrics: Path | None = None) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code; relative paths begin at ``base``.

    ``metrics`` is the file that gets the metrics for node_exporter.
    """
    context = open_context(site, base)
    listener = bind(context.settings.socket_path(base))
    config = uvicorn.Config(
        make_app(context, metrics),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_S,
    )
    NotifyingServer(config).run(sockets=[listener])
    return 0


def bind(path: Path) -> socket.socket:
    """Return a listening socket at ``path``, for the owner and the group of its folder.

    Raises :class:`StartError` if another process serves there or the folder cannot be written.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with address(path) as name:
            served = _served(name)
            if not served:
                path.unlink(missing_ok=True)
                listener.bind(name)
                path.chmod(0o660)
    except OSError as error:
        listener.close()
        reason = f"{error.strerror}); {write_fix(path, error.errno)}"
        raise StartError(f"cannot listen on {path} ({reason}") from None
    if served:
        listener.close()
        raise StartError(f"{path} is used by another process; stop it, or change assistant.socket")
    return listener


def _served(name: str) -> bool:
    """Return whether a process accepts connections at ``name``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(name) == 0
