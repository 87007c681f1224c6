"""The fit rule of a card: its memory times ``gpu_memory_utilization`` must hold weights and working space.

Pure. The rule exists once and has two callers with different facts. :mod:`appliance.contract.rules` applies it
wherever a site is loaded, also during the Nix build, and must not need the catalog. Its weights are the
``weights_gib`` of the site, its working space is :data:`WORKING_SPACE`. :mod:`appliance.planner.fit` applies it to
models and cards of the catalog, in ``appliance check`` and in the doctor. It computes both sizes from the model's
shape, and also requires room for the KV cache of one request.

An MTP head is a part of the checkpoint, so ``weights_gib`` contains it. An EAGLE3 head is a model of its own, which
only the planner counts, as it does the KV cache of both (:mod:`appliance.planner.drafts`).
"""

from __future__ import annotations

MIB = 2.0**20
GIB = 2.0**30

WORKING_SPACE = 3.5 * GIB
"""Bytes on a card in addition to weights and KV cache: CUDA context, activations, graphs, NCCL. Source: NVIDIA
aiconfigurator's "other_mem" for the RTX PRO 6000 Blackwell Server Edition."""


USUAL_UTILIZATION = 0.92
"""Share of a card's memory that an engine may use, unless the site or a measurement states another one."""


def budget(memory: float, utilization: float) -> float:
    """Return the bytes that an engine may use on a card with ``memory`` bytes."""
    return memory * utilization


def shortage(*, weights: float, working_space: float, memory: float, utilization: float) -> str | None:
    """Return why the weights do not fit, without the fix; None if they fit. All sizes are bytes on one card."""
    room = budget(memory, utilization) - working_space
    if weights <= room:
        return None
    return (
        f"{weights / GIB:.1f} GiB of weights per card do not fit the {max(room, 0) / GIB:.1f} GiB that "
        f"gpu_memory_utilization = {utilization:g} leaves after {working_space / GIB:.1f} GiB of working space"
    )
