"""Case 6: two VPSs with one GPU host, and one of them loses its power."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import wait_until
from tests.network.client import Stream, chat
from tests.network.site import NetworkSite

RecordRow = Callable[[str, str, str], None]
TOKENS, STREAMS = 40, 50
SILENCE_S = 2.0
"""Read timeout of these clients in seconds."""
DIRECTIVE = f"tokens={TOKENS} itl_ms=100 ttft_ms=50"


@pytest.fixture
def revived(site: NetworkSite) -> Iterator[None]:
    yield
    site.power_on("vps-a")
    site.hosts["vps-a"].require()
    site.hosts["gpu"].restart("wireguard-wg0")  # otherwise it reconnects after the 15 s of WireGuard
    for name in ("vps-a", "vps-b"):
        site.wait_for_tunnel(name)


async def stream_with_timeout(site: NetworkSite, edge: str, user: int, key: str | None, into: Stream) -> Stream:
    """Run a stream; cancel it after :data:`SILENCE_S` without an event."""
    headers = {"Idempotency-Key": key} if key else {}
    task = asyncio.create_task(
        site.client.stream(chat(DIRECTIVE), user=user, edge=site.edge(edge), headers=headers, into=into)
    )
    seen = -1
    while not task.done() and seen != len(into.events):
        seen = len(into.events)
        await asyncio.wait([task], timeout=SILENCE_S)
    if not task.done():
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):
        await task
    return into


@pytest.mark.usefixtures("revived")
async def test_clients_retry_at_the_other_vps(site: NetworkSite, record_row: RecordRow) -> None:
    before = site.stats()["tokens"]

    def generated() -> int:
        """Return the whole generations so far. Canaries add a few tokens, never a whole generation."""
        return (site.stats()["tokens"] - before) // TOKENS

    keys = [f"two-vps-{number}" if number % 2 == 0 else None for number in range(STREAMS)]
    first = [Stream() for _ in keys]
    tasks = [
        asyncio.create_task(stream_with_timeout(site, "vps-a", number, key, stream))
        for number, (key, stream) in enumerate(zip(keys, first, strict=True))
    ]
    await asyncio.to_thread(wait_until, lambda: all(stream.tokens for stream in first), "all streams run")
    site.power_off("vps-a")
    await asyncio.gather(*tasks)
    assert not any(stream.done for stream in first), "all were cut midway"

    keyed = [number for number, key in enumerate(keys) if key]
    again = await asyncio.gather(*(stream_with_timeout(site, "vps-b", n, keys[n], Stream()) for n in keyed))
    assert all(stream.done and len(stream.tokens) == TOKENS for stream in again)
    await asyncio.to_thread(wait_until, lambda: site.stats()["active"] == 0, "the engines are idle", 20)
    once = generated()
    assert once <= STREAMS, "a request was generated twice without a second request"
    assert once >= len(keyed)

    bare = [number for number, key in enumerate(keys) if not key]
    anew = await asyncio.gather(*(stream_with_timeout(site, "vps-b", n, None, Stream()) for n in bare))
    assert all(stream.done for stream in anew)
    twice = generated()
    assert twice >= once + len(bare), "the control: a repeated request without a key is another generation"
    expected = "clients that retry reach B; with a key generated once, without one repeated only by the client"
    seen = (
        f"{len(again)} keyed retries whole at B; {once} generations of 50 requests, {twice - once} of 25 repeated"
    )
    record_row("6 VPS A loses its power under 50 streams", expected, seen)
