"""The choice between replicas on each host and one engine over several hosts.

Pure. With tensor parallelism over two hosts, a network of 10 Gbit/s adds about 28 ms to each token of a 235B model.
So a model that fits the cards of one host gets replicas. A larger one gets pipeline parallelism between the hosts,
which sends kilobytes per token, and tensor parallelism inside each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.contract.card_memory import GIB
from appliance.planner import precision
from appliance.planner.candidates import Candidate
from appliance.planner.hardware import HardwareSpec


def prefer_one_host(found: Sequence[Candidate]) -> list[Candidate]:
    """Return ``found``, without those over several hosts if the cards of one host can hold the model."""
    if not any(one.kind == "cards" and one.layout.hosts == 1 for one in found):
        return list(found)
    return [one for one in found if one.layout.hosts == 1]


def hosts_advice(chosen: Sequence[Candidate], machines: Sequence[HardwareSpec]) -> Iterator[str]:
    """Yield a line for each of ``chosen`` on cards; none for a site of one machine."""
    if len(machines) < 2:
        return
    for candidate in chosen:
        if candidate.card is None:
            continue
        model, layout = candidate.model, candidate.layout
        if layout.hosts > 1:
            weights = precision.weights(model.shape, model.precision).total / GIB
            count, size = layout.cards_per_replica // layout.hosts, candidate.card.memory_bytes / GIB
            yield (
                f"{model.name} exceeds the cards of one host: {weights:.0f} GiB of weights and the KV cache of "
                f"{model.context} tokens do not fit {count} x {size:.0f} GiB. So no host can have a replica. "
                f"One engine with nodes over {layout.hosts} hosts: pipeline_parallel = {layout.pp}, "
                f"tensor_parallel = {layout.tp}. The loss of a host stops it."
            )
        else:
            cards = "one card" if layout.cards_per_replica == 1 else f"{layout.cards_per_replica} cards of one host"
            yield f"{model.name} fits {cards}: replicas on each host, which share no token over the network."
