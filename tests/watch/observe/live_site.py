"""A site whose pages a real Prometheus scrapes: the real gateway and node exporter, recorded pages of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import RunningService, chat, serving, wait_until
from tests.watch.observe import stack
from tests.watch.observe.stack import Pages, Prometheus


def load(service: RunningService) -> None:
    """Send requests with every kind of outcome that a panel shows."""
    for _ in range(3):
        assert service.post("/v1/chat/completions", chat("fake: tokens=4", stream=True)).status == 200
        assert service.post("/v1/chat/completions", chat("fake: tokens=4")).status == 200
    service.post("/v1/chat/completions", chat("fake: fault=status:500"))
    service.post("/v1/chat/completions", chat(), key="sk-unknown")
    service.post("/v1/chat/completions", {"model": "unknown", "messages": []})


@contextmanager
def scraped_site(folder: Path) -> Iterator[tuple[Prometheus, RunningService]]:
    """Run the site and Prometheus in ``folder`` until each query of a panel has data."""
    texts = folder / "texts"
    texts.mkdir()
    stack.write_text_files(texts)
    pages = Pages()
    node = None
    try:
        pages.pages["/vllm"] = stack.growing(stack.RECORDED.read_text())
        pages.pages["/switch"] = stack.fresh("deadman")
        pages.pages["/probe"] = lambda: "probe_success 1\n"
        node = stack.start_node_exporter(folder, texts)
        with serving(folder / "site") as service:
            targets = [
                stack.scrape("gateway", service.gateway.port),
                stack.scrape("node", node.port),
                stack.scrape("engine", pages.port, "/vllm", engine="chat"),
                stack.scrape("deadman", pages.port, "/switch"),
                stack.scrape("public", pages.port, "/probe"),
            ]
            load(service)
            with stack.start_prometheus(folder, targets) as running:
                started = f'min(count_over_time(up{{job!=""}}[1m])) > 4 and count(up == 1) == {len(targets)}'
                wait_until(lambda: running.value(started) is not None, "four scrapes of each target", 60)
                load(service)
                grown = "sum(rate(appliance_gateway_time_to_first_token_seconds_count[30s])) > 0"
                wait_until(lambda: running.value(grown) is not None, "a scrape after the second load", 60)
                yield running, service
    finally:
        if node is not None:
            node.stop()
        pages.close()
