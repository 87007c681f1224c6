"""Case 1: chats and streams from the TLS of the client to the loopback of the engine."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from tests.network.client import PATH, NetworkClient, Stream, chat
from tests.network.site import NetworkSite

RecordRow = Callable[[str, str, str], None]
ITL_S = 0.1
STAMPED = f"tokens=12 itl_ms={ITL_S * 1000:g} ttft_ms=200 stamp=1"


def delays(stream: Stream) -> list[float]:
    """Return the seconds from the generation of each token to its arrival, by the engine's stamps."""
    return [when - int(text.partition("=")[2]) / 1e6 for when, text in stream.tokens]


def buffered(stream: Stream) -> int:
    """Return the number of tokens that arrived only after the generation of the next one."""
    return sum(delay > ITL_S for delay in delays(stream)[:-1])


def test_chat(site: NetworkSite, record_row: RecordRow) -> None:
    response = site.client.post(PATH, chat("tokens=5"))
    assert response.status == 200, response.body
    assert response.json["usage"]["completion_tokens"] == 5
    assert response.json["system_fingerprint"] == "fake-engine"
    models = site.client.get("/v1/models").json["data"]
    assert [model["id"] for model in models] == ["qwen3-30b"]
    unknown = site.client.post(PATH, chat(), headers={"Authorization": "Bearer sk-nobody"})
    assert unknown.status == 401
    record_row("1 chat", "200 with the engine's own response; 401 without a key", "200, 5 tokens; 401")


async def test_tokens_are_not_buffered(site: NetworkSite, record_row: RecordRow) -> None:
    late = 12
    # A busy machine may delay all tokens of one stream; an edge that buffers delays them each time.
    for _ in range(3):
        stream = await site.client.stream(chat(STAMPED))
        assert stream.done, stream
        assert len(stream.tokens) == 12
        late = min(late, buffered(stream))
        if late <= 2:
            break
    record_row("1 no buffering", "each token arrives before the next is generated", f"{11 - late} of 11")
    assert late <= 2, delays(stream)


async def test_control_an_edge_that_buffers_is_detected(site: NetworkSite) -> None:
    slow = "proxy_buffering on;\nproxy_ignore_headers X-Accel-Buffering;\nlimit_rate 1000;"
    with site.hosts["vps-a"].edited("nginx", lambda text: text.replace("proxy_buffering off;", slow)):
        stream = await site.client.stream(chat(STAMPED))
    assert stream.done
    assert buffered(stream) > 5


async def test_time_added_per_token(site: NetworkSite, record_row: RecordRow) -> None:
    """Measured at three points of the path; the only assertion is that it is positive."""

    async def median_ms(client: NetworkClient) -> float:
        streams = await client.streams([chat(STAMPED)] * 3)
        assert all(stream.done for stream in streams)
        return statistics.median(delay for stream in streams for delay in delays(stream)) * 1000

    gpu, vps = site.hosts["gpu"].machine, site.hosts["vps-a"].machine
    gateway = await median_ms(site.client.on_machine(gpu, "10.77.0.1", 8000))
    tunnel = await median_ms(site.client.on_machine(vps, "10.77.0.1", 8000))
    edge = await median_ms(site.client)
    assert min(gateway, tunnel, edge) > 0
    seen = f"gateway {gateway:.1f} ms, + tunnel {tunnel - gateway:.1f} ms, + edge {edge - tunnel:.1f} ms"
    record_row("1 time per token", "measured (median from making to arrival)", seen)


async def test_200_streams_at_once(site: NetworkSite, record_row: RecordRow) -> None:
    before = site.stats()["tokens"]
    streams = await site.client.streams([chat("tokens=20 itl_ms=200 ttft_ms=2000")] * 200)
    assert [stream.status for stream in streams] == [200] * 200
    unfinished = [stream for stream in streams if not stream.done or len(stream.tokens) != 20]
    assert not unfinished, f"{len(unfinished)} of 200, such as {unfinished[0]}"
    together = max(stream.sent for stream in streams) < min(stream.events[-1][0] for stream in streams)
    assert together, "the streams were not open at once"
    # Canaries also request tokens.
    assert site.stats()["tokens"] - before >= 4000
    record_row("1 load", "200 streams open at once, all whole", f"{len(streams) - len(unfinished)} of 200 whole")
