"""Checks a port number that a user gives. Standard library only: the bootstrap checks ports before it installs."""

from __future__ import annotations

import re

from appliance.errors import UsageError


def port(text: str, name: str) -> int:
    """Return the port that ``text`` holds; raises :class:`UsageError` that begins with ``name``.

    0 is rejected as well: the kernel would choose a port, and no client could find it.
    """
    # ASCII digits only: int() also reads "8_000", " 8000" and digits of other scripts.
    if re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= 65535:
        return int(text)
    raise UsageError(f"{name}: {text[:20]!r} is not a port; use a whole number from 1 to 65535")
