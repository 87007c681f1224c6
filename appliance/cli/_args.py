"""Options that several commands share, and the one grammar of durations."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from appliance.errors import UsageError
from appliance.system import text_file

DEFAULT_CONFIG = "/etc/appliance/appliance.json"
KEY_VARIABLE = "APPLIANCE_API_KEY"

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Units of a duration, in seconds."""

MAX_DURATION_S = 1e11
"""Upper limit of a duration, some 3000 years: a time that far from now still has a date."""

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|s|m|h|d)?")


def duration(text: str, option: str) -> float:
    """Return ``text`` in seconds: a decimal number with a unit of :data:`SECONDS`, without a unit in seconds.

    Raises :class:`UsageError` that begins with ``option``.

    Example::

        duration("90m", "--since") == duration("1.5h", "--since") == duration("5400", "--since")
    """
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * SECONDS[match[2] or "s"] if match is not None else MAX_DURATION_S
    if seconds >= MAX_DURATION_S:
        raise UsageError(
            f"{option}: {text[:40]!r} is not a duration; write a number and ms, s, m, h or d, such as 90s or 30d"
        )
    return seconds


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``; its default is the host's own configuration, or ``$APPLIANCE_CONFIG``."""
    path = Path(os.environ.get("APPLIANCE_CONFIG", DEFAULT_CONFIG))
    parser.add_argument(
        "--config", type=Path, default=path, metavar="FILE", help="configuration of the site (%(default)s)"
    )


def add_json(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--json``: the output for programs, instead of tables."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_json_file(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--json FILE``: a report for programs, in addition to the table."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")


def add_url(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--url``: the server to test."""
    parser.add_argument("--url", help="base URL of the gateway; default: the gateway of --config")


def api_key() -> str:
    """Return the API key of :data:`KEY_VARIABLE`; empty if there is none.

    Raises :class:`UsageError` if it cannot be a key.
    """
    return text_file.key(os.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE)
