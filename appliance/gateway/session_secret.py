"""The secret of a site that signs its browser sessions: a file of the gateway, made at the first start."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from appliance.errors import StartError, write_fix

NAME = "session.secret"
SECRET_BYTES = 32


def read_secret(folder: Path) -> bytes:
    """Return the secret in ``folder``; make it, readable by its owner only, if there is none.

    Raises :class:`StartError` if the file is damaged, or cannot be read or written.
    """
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two gateways may start at once: both use the file that was complete first.
        partial = folder / f"{NAME}.{os.getpid()}"
        if not path.exists():
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(SECRET_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                path.hardlink_to(partial)
            partial.unlink()
        secret = path.read_bytes()
    except OSError as error:
        raise StartError(f"cannot use {path} ({error.strerror}); {write_fix(path, error.errno)}") from None
    if len(secret) != SECRET_BYTES:
        raise StartError(
            f"{path} has {len(secret)} bytes, not {SECRET_BYTES}; remove it: all users of the page log in again"
        )
    return secret
