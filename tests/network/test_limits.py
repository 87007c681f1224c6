"""Case 4: one who floods, dawdles or sends too much, and the others who notice nothing."""

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

Saw = Callable[[str, str, str], None]
TTFT_MS = 1000
"""Long against what a busy machine adds, so that half as much again means something."""
USERS = range(16, 36)
ATTACKER = 38
ATTEMPTS = 3
"""Rounds before the others count as disturbed: a flood is there in each, a busy machine is not."""


async def p95(site: NetworkSite) -> float:
    """TTFT of twenty users' streams, in seconds: the 95th percentile."""
    asking = (site.client.stream(chat(f"tokens=2 ttft_ms={TTFT_MS}"), user=user) for user in USERS)
    found = await asyncio.gather(*asking)
    assert all(stream.done for stream in found), [(s.status, s.broke, s.body[:100]) for s in found if not s.done]
    return sorted(stream.ttft_s for stream in found)[int(len(found) * 0.95)]


@pytest.fixture(scope="module")
def alone(site: NetworkSite) -> float:
    """The others' TTFT while nobody disturbs."""
    return asyncio.run(p95(site))


@contextmanager
def flood(site: NetworkSite, habit: str, count: int, key: str) -> Iterator[dict[str, Any]]:
    """Somebody with this habit is at it meanwhile; what he met, afterwards."""
    argv = [
        sys.executable,
        "-m",
        "tests.network.flood",
        habit,
        site.edge(),
        "443",
        site.client.domain,
        key,
        str(count),
    ]
    log = site.attacker.log("flood")
    log.write_text("")
    process = site.attacker.start("flood", argv)
    met: dict[str, Any] = {}
    try:
        wait_until(lambda: "up" in log.read_text(), "the flood has begun", 60)
        yield met
    finally:
        site.attacker.stop(process)
        lines = log.read_text().splitlines()
        met |= json.loads(lines[0]) | (json.loads(lines[1]) if len(lines) > 1 else {})


def stalled(site: NetworkSite) -> None:
    """Wait until what is not read is not generated either: every buffer on the way is full."""
    seen = [-1]

    def unchanged() -> bool:
        seen.append(site.stats()["tokens"])
        return len(seen) > 30 and seen[-1] == seen[-30]

    wait_until(unchanged, "the unread streams stand still", 60)


HABITS = {
    "one key, 60 connections": ("requests", 60, True),
    "one address without keys, 60 connections": ("requests", 60, False),
    "slow headers, 264 connections": ("slow-head", 264, False),
    "slow bodies, 140 connections": ("slow-body", 140, True),
    "slow readers, 40 streams": ("slow-reader", 40, True),
    "bodies over the limit, 20 connections": ("too-large", 20, True),
}
MET = {
    "requests": "429",
    "slow-head": "TimeoutError",
    "slow-body": "429",
    "slow-reader": "begun",
    "too-large": "413",
}
"""What each has to have met, so that it was a flood at all."""


@pytest.mark.parametrize("what", HABITS)
async def test_the_others_notice_nothing(site: NetworkSite, alone: float, what: str, saw: Saw) -> None:
    habit, count, with_key = HABITS[what]
    key = site.client.key(ATTACKER) if with_key else ""
    with flood(site, habit, count, key) as met:
        if habit == "slow-reader":
            await asyncio.to_thread(stalled, site)
        during = await p95(site)
        for _ in range(ATTEMPTS - 1):
            if during >= 1.5 * alone:
                during = await p95(site)
    seen = ", ".join(f"{number} {name}" for name, number in sorted(met.items()))
    saw(
        f"4 {what}",
        "the others' TTFT p95 within 1.5 of alone",
        f"{during / alone:.2f} of {alone:.2f} s; met {seen}",
    )
    assert met.get(MET[habit], 0) > 0, met
    assert during < 1.5 * alone


async def test_control_without_room_the_others_notice(site: NetworkSite, alone: float) -> None:
    """The same slow headers before an edge with fewer connections than they hold."""

    def small(text: str) -> str:
        text = text.replace("worker_processes auto;", "worker_processes 1;")
        return text.replace("worker_connections 8192;", "worker_connections 128;")

    async def noticed() -> bool:
        try:
            return await asyncio.wait_for(p95(site), 3 * alone) >= 1.5 * alone
        except (TimeoutError, AssertionError, OSError):
            return True

    with site.hosts["vps-a"].edited("nginx", small), flood(site, "slow-head", 200, ""):
        assert await noticed()
