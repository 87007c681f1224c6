"""The choice between replicas on each host and one engine over several hosts.

Pure. With tensor parallelism over two hosts, a network of 10 Gbit/s adds about 28 ms to each token of a 235B model.
So a model that fits the cards of one host gets replicas. A larger one gets pipeline parallelism between the hosts,
which sends kilobytes per token, and tensor parallelism inside each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.planner.layout import Layout


def hosts_advice(parts: Sequence[tuple[str, Layout]], machines: int) -> Iterator[str]:
    """Yield a line for each model of ``parts``, with the layout of a replica; none for a site of one machine."""
    if machines < 2:
        return
    for model, layout in parts:
        if layout.hosts > 1:
            yield (
                f"{model} exceeds the cards of one host: one engine with nodes over {layout.hosts} hosts, "
                f"pipeline_parallel = {layout.pp}, tensor_parallel = {layout.tp}"
            )
        else:
            cards = "one card" if layout.cards_per_replica == 1 else f"{layout.cards_per_replica} cards of one host"
            yield f"{model} fits {cards}: replicas on each host, which share no token over the network"
