"""Case 8: which requests the edge hands to another GPU host, and which it must not."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Response, wait_until
from tests.network.client import PATH, Stream, chat
from tests.network.host import NetworkHost
from tests.network.site import NetworkSite, running

Saw = Callable[[str, str, str], None]
NAMES = ("gpu", "gpu-b")
DRAIN_S = 3


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkSite]:
    """One VPS before two GPU hosts, whose gateways drain for three seconds only."""
    brief = {"gateway": {"drainSec": DRAIN_S}, "settings": {"engines": {"agents": {"shutdown_timeout_s": DRAIN_S}}}}
    with running(tmp_path_factory.mktemp("two"), gpus=2, more=dict.fromkeys(NAMES, brief)) as made:
        yield made


@pytest.fixture(autouse=True)
def both_serve(two: NetworkSite) -> Iterator[None]:
    yield
    for name in NAMES:
        host = two.hosts[name]
        two.internet.mend(host.machine)
        if host.state["appliance-gateway"] == "ending":
            host.daemons["appliance-gateway"].wait(20)
            host.start("appliance-gateway")
            host.require()
    two.wait_for_gateways()
    # nginx forgets which of them it could not reach a moment ago.
    two.hosts["vps-a"].restart("nginx")


def booked(site: NetworkSite, user: int) -> dict[str, int]:
    """Requests of a user by GPU host, the unfinished too."""
    found = {name: site.usage(name).get(f"user{user}", {}) for name in NAMES}
    return {name: int(row.get("requests", 0)) for name, row in found.items()}


def generating(site: NetworkSite, name: str) -> int:
    return site.stats(name)["active"]


def end_gateway(host: NetworkHost, number: signal.Signals) -> None:
    """Signal the gateway and do not wait for it."""
    host.state["appliance-gateway"] = "ending"
    host.daemons["appliance-gateway"].send_signal(number)


async def ask(site: NetworkSite, directive: str, user: int, **how: Any) -> Response:
    """A whole chat, while others are asked."""
    return await asyncio.to_thread(site.client.post, PATH, chat(directive), user=user, **how)


async def where(site: NetworkSite, directive: str, user: int) -> tuple[str, asyncio.Task[Response]]:
    """Send a long chat; the GPU host that generates it, and its answer when that comes."""
    before = {name: generating(site, name) for name in NAMES}
    task = asyncio.create_task(ask(site, directive, user))
    found: list[str] = []

    def begun() -> bool:
        found[:] = [name for name in NAMES if generating(site, name) > before[name]]
        return bool(found)

    await asyncio.to_thread(wait_until, begun, "a GPU host generates")
    return found[0], task


async def test_requests_are_spread(two: NetworkSite) -> None:
    answers = await asyncio.gather(*(ask(two, "tokens=1", user=number) for number in range(20)))
    assert [answer.status for answer in answers] == [200] * 20

    def shares() -> list[int]:
        return [sum(row["requests"] for row in two.usage(name).values()) for name in NAMES]

    await asyncio.to_thread(wait_until, lambda: sum(shares()) == 20, "all are booked")
    assert min(shares()) >= 2


async def test_a_draining_gateway_sends_new_requests_to_the_other(two: NetworkSite, saw: Saw) -> None:
    streams = [Stream() for _ in range(10)]
    running_streams = [
        asyncio.create_task(two.client.stream(chat("tokens=20 itl_ms=100"), user=number, into=stream))
        for number, stream in enumerate(streams)
    ]
    await asyncio.to_thread(wait_until, lambda: all(s.tokens for s in streams), "ten streams run")
    end_gateway(two.hosts["gpu"], signal.SIGTERM)
    answers = await asyncio.gather(*(ask(two, "tokens=1", user=10 + number) for number in range(20)))
    assert [answer.status for answer in answers] == [200] * 20, answers
    await asyncio.gather(*running_streams)
    assert all(stream.done and len(stream.tokens) == 20 for stream in streams)
    saw("8 a gateway drains, the other GPU host is there", "new POSTs go there, open streams end whole",
        "20 of 20 answered, 10 of 10 streams whole")  # fmt: skip


async def test_control_without_the_way_on_they_are_refused(two: NetworkSite) -> None:
    vps = two.hosts["vps-a"]
    with vps.edited("nginx", lambda text: text.replace("error_page 503 = @elsewhere;", "")):
        stream = Stream()
        task = asyncio.create_task(two.client.stream(chat("tokens=20 itl_ms=100", user="x"), user=1, into=stream))
        name, held = await where(two, "tokens=1 ttft_ms=2000", 2)
        end_gateway(two.hosts[name], signal.SIGTERM)
        answers = await asyncio.gather(*(ask(two, "tokens=1", user=10 + number) for number in range(20)))
        await asyncio.gather(task, held)
    refused = [answer for answer in answers if answer.status == 503]
    assert refused
    assert {answer.json["error"]["code"] for answer in refused} == {"draining"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_post_that_may_have_begun_is_not_repeated(
    two: NetworkSite, number: signal.Signals, saw: Saw
) -> None:
    """The gateway dies while the engine is at it; and: its drain ends, which it says as well."""
    before = booked(two, 30)
    name, task = await where(two, "tokens=1 ttft_ms=8000", 30)
    other = next(candidate for candidate in NAMES if candidate != name)
    end_gateway(two.hosts[name], number)
    answer = await task
    assert answer.status == 502, answer
    error = answer.json["error"]
    assert error["code"] == "gateway_failed"
    assert "retry-after" not in answer.headers
    assert booked(two, 30)[other] == before[other]
    how = "dies" if number == signal.SIGKILL else "ends its drain"
    saw(f"8 a gateway {how} while it generates", "502 gateway_failed, not repeated at the other", "502, 0 repeated")


async def test_control_non_idempotent_would_repeat_it(two: NetworkSite) -> None:
    before = booked(two, 31)
    wrong = "proxy_next_upstream error timeout non_idempotent;"
    with two.hosts["vps-a"].edited("nginx", lambda text: text.replace("proxy_next_upstream error timeout;", wrong)):
        name, task = await where(two, "tokens=1 ttft_ms=3000", 31)
        other = next(candidate for candidate in NAMES if candidate != name)
        end_gateway(two.hosts[name], signal.SIGKILL)
        answer = await task
    assert answer.status == 200
    await asyncio.to_thread(wait_until, lambda: booked(two, 31)[other] == before[other] + 1, "it ran again")


async def test_a_gpu_host_that_is_not_reached_is_passed_over(two: NetworkSite, saw: Saw) -> None:
    two.internet.cut(two.hosts["gpu"].machine)
    began = time.monotonic()
    answers = await asyncio.gather(*(ask(two, "tokens=1", user=number) for number in range(10)))
    took = time.monotonic() - began
    assert [answer.status for answer in answers] == [200] * 10
    two.internet.cut(two.hosts["gpu-b"].machine)
    none = await ask(two, "tokens=1", user=11)
    assert (none.status, none.json["error"]["code"]) == (503, "gateway_unreachable")
    saw(
        "8 one GPU host is not reached; none is",
        "the other serves; 503",
        f"10 of 10 served within {took:.1f} s; 503",
    )


async def test_one_idempotency_key_finds_one_gpu_host(two: NetworkSite, saw: Saw) -> None:
    before = booked(two, 32)
    for key in range(8):
        for _ in range(3):
            answer = await ask(two, "tokens=1", 32, headers={"Idempotency-Key": f"job-{key}"})
            assert answer.status == 200

    def counted() -> bool:
        return sum(booked(two, 32).values()) - sum(before.values()) >= 8

    await asyncio.to_thread(wait_until, counted, "they are booked")
    after = booked(two, 32)
    assert sum(after.values()) - sum(before.values()) == 8
    assert all(after[name] > before[name] for name in NAMES), "the control: both took part"
    saw(
        "8 one Idempotency-Key sent three times, two GPU hosts",
        "generated once",
        "8 keys, 24 requests, 8 generated",
    )
