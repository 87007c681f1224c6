"""Case 4: clients that flood, stall or send too much do not slow other users."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.network.client import chat
from tests.network.site import NetworkSite

RecordRow = Callable[[str, str, str], None]
TTFT_MS = 2000
"""Milliseconds; long compared with the delays of a busy machine, so that a factor of 1.5 is significant.

While another whole run of the tests loads the machine (12 on two cores), a flood's own work delays others by 0.5 s.
"""
USERS = range(16, 36)
ATTACKER = 38
ATTEMPTS = 3
"""Rounds until other users count as slowed: a flood acts in each round, a busy machine does not."""


async def p95(site: NetworkSite) -> float:
    """Return the 95th percentile of the TTFT of twenty users' streams, in seconds."""
    requests = (site.client.stream(chat(f"tokens=2 ttft_ms={TTFT_MS}"), user=user) for user in USERS)
    found = await asyncio.gather(*requests)
    assert all(stream.done for stream in found), [(s.status, s.error, s.body[:100]) for s in found if not s.done]
    return sorted(stream.ttft_s for stream in found)[int(len(found) * 0.95)]


@contextmanager
def flood(
    site: NetworkSite, attack: str, count: int, key: str, until: tuple[str, ...] = ()
) -> Iterator[dict[str, Any]]:
    """Run an attack until it has a result of ``until``; the yielded table has all results afterwards."""
    # A real attacker has processors of its own. Here it shares those of the edge, so the edge has priority.
    argv = [
        "nice",
        "-n",
        "5",
        sys.executable,
        "-m",
        "tests.network.flood",
        attack,
        site.edge(),
        "443",
        site.client.domain,
        key,
        str(count),
    ]
    log = site.attacker.log("flood")
    log.write_text("")
    process = site.attacker.start("flood", argv)
    results: dict[str, Any] = {}
    try:
        wait_until(lambda: "up" in log.read_text(), "the flood has begun", 60)
        yield results
        if until:
            # On a busy machine, the attack needs longer until it exceeds a limit.
            wait_until(lambda: any(f'"{one}"' in log.read_text() for one in until), f"{until} for the attacker", 60)
    finally:
        site.attacker.stop(process)
        lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
        results |= json.loads(lines[0]) | json.loads(lines[-1])


def stalled(site: NetworkSite) -> None:
    """Wait until the engines stop generating unread streams: all buffers on the path are full."""
    seen = [-1]

    def unchanged() -> bool:
        seen.append(site.stats()["tokens"])
        return len(seen) > 30 and seen[-1] == seen[-30]

    wait_until(unchanged, "the unread streams are stalled", 60)


ATTACKS = {
    "one key, 60 connections": ("requests", 60, True),
    "one address without keys, 60 connections": ("requests", 60, False),
    "slow headers, 264 connections": ("slow-head", 264, False),
    "slow bodies, 140 connections": ("slow-body", 140, True),
    "slow readers, 40 streams": ("slow-reader", 40, True),
    "bodies over the limit, 20 connections": ("too-large", 20, True),
}
EXPECTED = {
    "requests": ("429",),
    # The edge cuts a slow header, or the connection is one too many for its address.
    "slow-head": ("TimeoutError", "cut"),
    "slow-body": ("429",),
    "slow-reader": ("begun",),
    "too-large": ("413",),
}
"""Results of each attack; one of them proves that it was a flood."""


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_flood_does_not_slow_other_users(site: NetworkSite, name: str, record_row: RecordRow) -> None:
    attack, count, with_key = ATTACKS[name]
    key = site.client.key(ATTACKER) if with_key else ""
    for _ in range(ATTEMPTS):
        alone = await p95(site)
        with flood(site, attack, count, key, EXPECTED[attack]) as results:
            if attack == "slow-reader":
                await asyncio.to_thread(stalled, site)
            during = await p95(site)
        if during < 1.5 * alone:
            break
    seen = ", ".join(f"{number} {result}" for result, number in sorted(results.items()))
    record_row(
        f"4 {name}",
        "TTFT p95 of other users within 1.5 of alone",
        f"{during / alone:.2f} of {alone:.2f} s; results {seen}",
    )
    assert any(results.get(one, 0) > 0 for one in EXPECTED[attack]), results
    assert during < 1.5 * alone


async def test_control_a_flood_slows_other_users_of_a_small_edge(site: NetworkSite) -> None:
    """The same slow headers at an edge with fewer connections than they hold."""

    def small(text: str) -> str:
        text = text.replace("worker_processes auto;", "worker_processes 1;")
        # On a busy machine, the first connections would be cut before the last ones are open.
        text = text.replace("client_header_timeout 10s;", "client_header_timeout 300s;")
        return text.replace("worker_connections 8192;", "worker_connections 128;")

    async def slowed() -> bool:
        try:
            return await asyncio.wait_for(p95(site), 3 * alone) >= 1.5 * alone
        except (TimeoutError, AssertionError, OSError):
            return True

    alone = await p95(site)
    with site.hosts["vps-a"].edited("nginx", small), flood(site, "slow-head", 200, ""):
        assert await slowed()
