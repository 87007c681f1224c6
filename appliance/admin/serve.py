"""Runs the admin API."""

from __future__ import annotations

import os
import re
from pathlib import Path

import uvicorn

from appliance.admin.app import make_app
from appliance.contract.model import Site
from appliance.errors import UsageError
from appliance.system import text_file
from appliance.system.listener import bind

CREDENTIAL = "admin-token"
VARIABLE = "APPLIANCE_ADMIN_TOKEN_FILE"
TOKEN = re.compile(r"[!-~]{16,512}")


def serve(site: Site, base: Path) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code; relative paths begin at ``base``."""
    token = read_token()
    listener = bind(site.admin.host, site.admin.port, "another admin.port in the configuration")
    config = uvicorn.Config(
        make_app(site, site.data_path(base), token),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def read_token() -> str:
    """Return the admin token, from systemd's credentials or a file.

    Raises :class:`UsageError` if it is missing or not valid, :class:`ConfigError` if its file cannot be read.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    named = os.environ.get(VARIABLE) or (f"{folder}/{CREDENTIAL}" if folder else None)
    if named is None:
        raise UsageError(
            f"there is no admin token; put at least 16 characters into a file and name it in {VARIABLE}, "
            f"or give the unit a credential {CREDENTIAL}"
        )
    token = text_file.key(
        text_file.read(Path(named), missing="No such file or directory; put the admin token into it"), named
    )
    if not TOKEN.fullmatch(token):
        raise UsageError(
            f"{named}: an admin token has 16 to 512 printable characters; `openssl rand -hex 32` makes one"
        )
    return token
