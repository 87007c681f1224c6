"""The TOML and CSV files that are shipped with the catalog."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

MEASUREMENTS = FOLDER / "measurements.csv"
"""Published measurements of throughput, with their sources."""


def read_table(file: str, key: str) -> dict[str, dict[str, Any]]:
    """Return the tables under ``key`` of the shipped TOML ``file``, by name.

    A figure with its source (``{ value = 600, source = "…" }``) is reduced to its value.
    """
    tables = tomllib.loads((FOLDER / file).read_text("utf-8"))[key]
    return {name: {field: _figure(value) for field, value in table.items()} for name, table in tables.items()}


def _figure(value: Any) -> Any:
    return value["value"] if isinstance(value, dict) and "value" in value else value
