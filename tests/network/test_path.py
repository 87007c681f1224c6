"""Case 1: chats and streams from the client's TLS to the engine's loopback."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from tests.network.client import PATH, NetworkClient, Stream, chat
from tests.network.site import NetworkSite

Saw = Callable[[str, str, str], None]
ITL_S, TTFT_S = 0.1, 0.2
STAMPED = f"tokens=12 itl_ms={ITL_S * 1000:g} ttft_ms={TTFT_S * 1000:g} stamp=1"


def delays(stream: Stream) -> list[float]:
    """Seconds from each token's making to its arrival.

    The mock engine stamps a token with the clock that we read too, and lets it go a TTFT or ITL later.
    """
    waits = [TTFT_S] + [ITL_S] * (len(stream.tokens) - 1)
    made = [int(text.partition("=")[2]) / 1e6 + wait for (_, text), wait in zip(stream.tokens, waits, strict=True)]
    return [when - then for (when, _), then in zip(stream.tokens, made, strict=True)]


def held_back(stream: Stream) -> int:
    """Tokens that arrived only after the next one was made."""
    return sum(delay > ITL_S for delay in delays(stream)[:-1])


def test_chat(site: NetworkSite, saw: Saw) -> None:
    answer = site.client.post(PATH, chat("tokens=5"))
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["completion_tokens"] == 5
    assert answer.json["system_fingerprint"] == "fake-engine"
    models = site.client.get("/v1/models").json["data"]
    assert [model["id"] for model in models] == ["qwen3-30b"]
    unknown = site.client.post(PATH, chat(), headers={"Authorization": "Bearer sk-nobody"})
    assert unknown.status == 401
    saw("1 chat", "200 with the engine's own answer; 401 without a key", "200, 5 tokens; 401")


async def test_tokens_are_not_held_back(site: NetworkSite, saw: Saw) -> None:
    late = 12
    for _ in range(3):  # on a busy machine all may be late by chance; an edge that buffers is late each time
        stream = await site.client.stream(chat(STAMPED))
        assert stream.done, stream
        assert len(stream.tokens) == 12
        late = min(late, held_back(stream))
        if late <= 2:
            break
    saw("1 no buffering", "each token arrives before the next is made", f"{11 - late} of 11")
    assert late <= 2, delays(stream)


async def test_control_an_edge_that_holds_back_is_noticed(site: NetworkSite) -> None:
    slow = "proxy_buffering on;\nproxy_ignore_headers X-Accel-Buffering;\nlimit_rate 1000;"
    with site.hosts["vps-a"].edited("nginx", lambda text: text.replace("proxy_buffering off;", slow)):
        stream = await site.client.stream(chat(STAMPED))
    assert stream.done
    assert held_back(stream) > 5


async def test_time_added_per_token(site: NetworkSite, saw: Saw) -> None:
    """Measured at three places of the way; nothing is asserted about it but that it is not negative."""

    async def median_ms(client: NetworkClient) -> float:
        streams = await client.streams([chat(STAMPED)] * 3)
        assert all(stream.done for stream in streams)
        return statistics.median(delay for stream in streams for delay in delays(stream)) * 1000

    gpu, vps = site.hosts["gpu"].machine, site.hosts["vps-a"].machine
    gateway = await median_ms(site.client.elsewhere(gpu, "10.77.0.1", 8000))
    tunnel = await median_ms(site.client.elsewhere(vps, "10.77.0.1", 8000))
    edge = await median_ms(site.client)
    assert min(gateway, tunnel, edge) > 0
    seen = f"gateway {gateway:.1f} ms, + tunnel {tunnel - gateway:.1f} ms, + edge {edge - tunnel:.1f} ms"
    saw("1 time per token", "measured (median from making to arrival)", seen)


async def test_200_streams_at_once(site: NetworkSite, saw: Saw) -> None:
    before = site.stats()["tokens"]
    streams = await site.client.streams([chat("tokens=20 itl_ms=200 ttft_ms=2000")] * 200)
    assert [stream.status for stream in streams] == [200] * 200
    unfinished = [stream for stream in streams if not stream.done or len(stream.tokens) != 20]
    assert not unfinished, f"{len(unfinished)} of 200, such as {unfinished[0]}"
    together = max(stream.sent for stream in streams) < min(stream.events[-1][0] for stream in streams)
    assert together, "they were not open at once"
    # Canaries ask for a token now and then, too.
    assert site.stats()["tokens"] - before >= 4000
    saw("1 load", "200 streams open at once, all whole", f"{len(streams) - len(unfinished)} of 200 whole")
