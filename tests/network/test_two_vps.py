"""Case 6: two VPSs before one GPU host, and one of them dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import wait_until
from tests.network.client import Stream, chat
from tests.network.site import NetworkSite

Saw = Callable[[str, str, str], None]
TOKENS, STREAMS = 40, 50
SILENCE_S = 2.0
"""After which these clients give a connection up, as a client with a read timeout does."""
DIRECTIVE = f"tokens={TOKENS} itl_ms=100 ttft_ms=50"


@pytest.fixture
def revived(site: NetworkSite) -> Iterator[None]:
    yield
    site.power_on("vps-a")
    site.hosts["vps-a"].require()
    site.hosts["gpu"].restart("wireguard-wg0")  # else it notices after WireGuard's fifteen seconds
    for name in ("vps-a", "vps-b"):
        site.wait_for_tunnel(name)


async def patient(site: NetworkSite, edge: str, user: int, key: str | None, into: Stream) -> Stream:
    """A stream, given up once nothing has come for :data:`SILENCE_S`."""
    headers = {"Idempotency-Key": key} if key else {}
    asking = asyncio.create_task(
        site.client.stream(chat(DIRECTIVE), user=user, edge=site.edge(edge), headers=headers, into=into)
    )
    seen = -1
    while not asking.done() and seen != len(into.events):
        seen = len(into.events)
        await asyncio.wait([asking], timeout=SILENCE_S)
    if not asking.done():
        asking.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):
        await asking
    return into


@pytest.mark.usefixtures("revived")
async def test_a_vps_dies_under_50_streams(site: NetworkSite, saw: Saw) -> None:
    before = site.stats()["tokens"]

    def generated() -> int:
        """Whole generations so far. Canaries add a token now and then, never a generation's worth."""
        return (site.stats()["tokens"] - before) // TOKENS

    keys = [f"two-vps-{number}" if number % 2 == 0 else None for number in range(STREAMS)]
    first = [Stream() for _ in keys]
    asking = [
        asyncio.create_task(patient(site, "vps-a", number, key, stream))
        for number, (key, stream) in enumerate(zip(keys, first, strict=True))
    ]
    await asyncio.to_thread(wait_until, lambda: all(stream.tokens for stream in first), "all streams run")
    site.power_off("vps-a")
    await asyncio.gather(*asking)
    assert not any(stream.done for stream in first), "all were cut off in the middle"

    keyed = [number for number, key in enumerate(keys) if key]
    again = await asyncio.gather(*(patient(site, "vps-b", n, keys[n], Stream()) for n in keyed))
    assert all(stream.done and len(stream.tokens) == TOKENS for stream in again)
    await asyncio.to_thread(wait_until, lambda: site.stats()["active"] == 0, "the engines are done", 20)
    once = generated()
    assert once <= STREAMS, "something was generated twice that nobody asked for twice"
    assert once >= len(keyed)

    bare = [number for number, key in enumerate(keys) if not key]
    anew = await asyncio.gather(*(patient(site, "vps-b", n, None, Stream()) for n in bare))
    assert all(stream.done for stream in anew)
    twice = generated()
    assert twice >= once + len(bare), "the control: without a key it is another generation"
    expected = "clients that retry reach B; with a key generated once, without one not repeated by us"
    seen = (
        f"{len(again)} keyed retries whole at B; {once} generations of 50 requests, {twice - once} of 25 asked anew"
    )
    saw("6 VPS A dies under 50 streams", expected, seen)
