"""Predictions of the planner for the manual's tables, through the command line that a reader would type."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from typing import Any

from appliance import cli
from appliance.errors import UsageError

CARD = "RTX PRO 6000 Blackwell Workstation"
MODELS = ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-32B")
"""The first one is the default model of the examples."""


@functools.cache
def predict(model: str, **options: float | str) -> dict[str, Any]:
    """Return the JSON of `appliance plan predict` for ``model``; an underscore in an option's name becomes a dash.

    Raises ``UsageError`` if the command fails.
    """
    argv = ["plan", "predict", "--card", CARD, "--model", model, "--json"]
    for name, value in options.items():
        argv += [f"--{name.replace('_', '-')}", value if isinstance(value, str) else f"{value:g}"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main(argv)
    if code != 0:
        raise UsageError(f"`appliance {' '.join(argv)}` failed with exit code {code}")
    row: dict[str, Any] = json.loads(out.getvalue())
    return row


def rounded(value: float) -> str:
    """Return ``value`` with two digits, so that a small change of the constants leaves the page as it is."""
    return f"{float(f'{value:.2g}'):g}"


def interval(row: dict[str, Any]) -> str:
    """Return the interval of a prediction, in output tokens per second."""
    return f"{rounded(row['low'])} – {rounded(row['high'])}"
