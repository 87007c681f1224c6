"""Measures a swap of a model through the gateway, by the states that its control socket shows."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from appliance.errors import StartError, UsageError
from appliance.gateway import control_client
from appliance.system.stopping import Stop, Stopped

POLL_S = 0.05


def on_demand(data: Path) -> dict[str, dict[str, Any]]:
    """Return the state of each on-demand engine by name. Raises :class:`StartError` without a gateway."""
    found: dict[str, dict[str, Any]] = control_client.status(data)["on_demand"]
    return found


def loaded_models(data: Path) -> list[str]:
    """Return the models of the on-demand engines that are ready."""
    return [one["model"] for one in on_demand(data).values() if one["state"] == "ready"]


def swap_to(data: Path, model: str, *, stop: Stop, timeout_s: float) -> dict[str, float]:
    """Load ``model`` and return the seconds of its stages: ``unload``, ``load`` with the first token, ``total``.

    Raises :class:`StartError` if it does not load, and :class:`Stopped`. The gateway then restores the model that
    it unloaded.
    """
    mine = [name for name, one in on_demand(data).items() if one["model"] == model]
    if not mine:
        raise UsageError(f'{model}: no on-demand engine serves it; swaps need residency = "on-demand"')
    (name, *_) = mine
    began = time.monotonic()
    control_client.swap(data, model)
    unloaded: float | None = None
    begun = False
    while True:
        one, now = on_demand(data)[name], time.monotonic()
        if one["state"] == "loading":
            begun = True
            unloaded = unloaded or now
        if one["state"] == "ready":
            unloaded = unloaded or now
            return {"unload": unloaded - began, "load": now - unloaded, "total": now - began}
        if one["state"] == "failed" or (begun and one["state"] in ("stopped", "asleep")):
            raise StartError(f"{model} was not loaded: {one['error'] or one['state']}")
        if now - began > timeout_s:
            raise StartError(f"{model} was not loaded within {timeout_s:.0f} s; see the gateway's log")
        if stop.wait(POLL_S):
            raise Stopped(stop.reason)


def load_again(data: Path, models: Iterable[str], *, timeout_s: float) -> None:
    """Load each of ``models`` that is not loaded; no signal ends it. Raises :class:`StartError`."""
    for model in models:
        if model not in loaded_models(data):
            swap_to(data, model, stop=Stop(), timeout_s=timeout_s)
