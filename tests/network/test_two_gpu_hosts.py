"""Case 8: requests that the edge moves to another GPU host, and requests that it must not repeat."""

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

RecordRow = Callable[[str, str, str], None]
NAMES = ("gpu", "gpu-b")
DRAIN_S = 3


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkSite]:
    """Run one VPS and two GPU hosts, whose gateways drain for three seconds."""
    brief = {"gateway": {"drainSec": DRAIN_S}, "settings": {"engines": {"agents": {"shutdown_timeout_s": DRAIN_S}}}}
    with running(tmp_path_factory.mktemp("two"), gpus=2, more=dict.fromkeys(NAMES, brief)) as made:
        yield made


@pytest.fixture(autouse=True)
def both_serve(two: NetworkSite) -> Iterator[None]:
    yield
    for name in NAMES:
        host = two.hosts[name]
        two.internet.restore(host.machine)
        if host.state["appliance-gateway"] == "ending":
            host.daemons["appliance-gateway"].wait(20)
            host.start("appliance-gateway")
            host.require()
    two.wait_for_gateways()
    # A restart of nginx clears its list of failed gateways.
    two.hosts["vps-a"].restart("nginx")


def recorded(site: NetworkSite, user: int) -> dict[str, int]:
    """Return the requests of a user by GPU host, including unfinished ones."""
    found = {name: site.usage(name).get(f"user{user}", {}) for name in NAMES}
    return {name: int(row.get("requests", 0)) for name, row in found.items()}


def generating(site: NetworkSite, name: str) -> int:
    return site.stats(name)["active"]


def end_gateway(host: NetworkHost, number: signal.Signals) -> None:
    """Send a signal to the gateway without waiting for its end."""
    host.state["appliance-gateway"] = "ending"
    host.daemons["appliance-gateway"].send_signal(number)


async def send_chat(site: NetworkSite, directive: str, user: int, **how: Any) -> Response:
    """Send a whole chat in another thread."""
    return await asyncio.to_thread(site.client.post, PATH, chat(directive), user=user, **how)


async def start_chat(site: NetworkSite, directive: str, user: int) -> tuple[str, asyncio.Task[Response]]:
    """Send a long chat; return the GPU host that generates it, and the task of its response."""
    before = {name: generating(site, name) for name in NAMES}
    task = asyncio.create_task(send_chat(site, directive, user))
    found: list[str] = []

    def started() -> bool:
        found[:] = [name for name in NAMES if generating(site, name) > before[name]]
        return bool(found)

    await asyncio.to_thread(wait_until, started, "a GPU host generates")
    return found[0], task


async def test_requests_are_spread_over_the_gpu_hosts(two: NetworkSite) -> None:
    responses = await asyncio.gather(*(send_chat(two, "tokens=1", user=number) for number in range(20)))
    assert [response.status for response in responses] == [200] * 20

    def shares() -> list[int]:
        return [sum(row["requests"] for row in two.usage(name).values()) for name in NAMES]

    await asyncio.to_thread(wait_until, lambda: sum(shares()) == 20, "all are recorded")
    assert min(shares()) >= 2


async def test_new_requests_move_from_a_draining_gateway_to_the_other(
    two: NetworkSite, record_row: RecordRow
) -> None:
    streams = [Stream() for _ in range(10)]
    running_streams = [
        asyncio.create_task(two.client.stream(chat("tokens=20 itl_ms=100"), user=number, into=stream))
        for number, stream in enumerate(streams)
    ]
    await asyncio.to_thread(wait_until, lambda: all(s.tokens for s in streams), "ten streams run")
    end_gateway(two.hosts["gpu"], signal.SIGTERM)
    responses = await asyncio.gather(*(send_chat(two, "tokens=1", user=10 + number) for number in range(20)))
    assert [response.status for response in responses] == [200] * 20, responses
    await asyncio.gather(*running_streams)
    assert all(stream.done and len(stream.tokens) == 20 for stream in streams)
    record_row("8 a gateway drains, the other GPU host is up", "new POSTs move there, open streams end whole",
        "20 of 20 served, 10 of 10 streams whole")  # fmt: skip


async def test_control_without_the_error_page_new_requests_are_refused(two: NetworkSite) -> None:
    vps = two.hosts["vps-a"]
    with vps.edited("nginx", lambda text: text.replace("error_page 503 = @elsewhere;", "")):
        stream = Stream()
        task = asyncio.create_task(two.client.stream(chat("tokens=20 itl_ms=100", user="x"), user=1, into=stream))
        name, held = await start_chat(two, "tokens=1 ttft_ms=2000", 2)
        end_gateway(two.hosts[name], signal.SIGTERM)
        responses = await asyncio.gather(*(send_chat(two, "tokens=1", user=10 + number) for number in range(20)))
        await asyncio.gather(task, held)
    refused = [response for response in responses if response.status == 503]
    assert refused
    assert {response.json["error"]["code"] for response in refused} == {"draining"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_post_that_may_have_started_is_not_repeated(
    two: NetworkSite, number: signal.Signals, record_row: RecordRow
) -> None:
    """The gateway is killed while the engine generates, or its drain ends."""
    before = recorded(two, 30)
    name, task = await start_chat(two, "tokens=1 ttft_ms=8000", 30)
    other = next(candidate for candidate in NAMES if candidate != name)
    end_gateway(two.hosts[name], number)
    response = await task
    assert response.status == 502, response
    error = response.json["error"]
    assert error["code"] == "gateway_failed"
    assert "retry-after" not in response.headers
    assert recorded(two, 30)[other] == before[other]
    event = "is killed" if number == signal.SIGKILL else "ends its drain"
    record_row(
        f"8 a gateway {event} while it generates",
        "502 gateway_failed, not repeated at the other",
        "502, 0 repeated",
    )


async def test_control_with_non_idempotent_the_post_is_repeated(two: NetworkSite) -> None:
    before = recorded(two, 31)
    repeating = "proxy_next_upstream error timeout non_idempotent;"
    with two.hosts["vps-a"].edited(
        "nginx", lambda text: text.replace("proxy_next_upstream error timeout;", repeating)
    ):
        name, task = await start_chat(two, "tokens=1 ttft_ms=3000", 31)
        other = next(candidate for candidate in NAMES if candidate != name)
        end_gateway(two.hosts[name], signal.SIGKILL)
        response = await task
    assert response.status == 200
    await asyncio.to_thread(
        wait_until, lambda: recorded(two, 31)[other] == before[other] + 1, "the request ran again"
    )


async def test_an_unreachable_gpu_host_is_skipped(two: NetworkSite, record_row: RecordRow) -> None:
    two.internet.cut(two.hosts["gpu"].machine)
    began = time.monotonic()
    responses = await asyncio.gather(*(send_chat(two, "tokens=1", user=number) for number in range(10)))
    took = time.monotonic() - began
    assert [response.status for response in responses] == [200] * 10
    two.internet.cut(two.hosts["gpu-b"].machine)
    none = await send_chat(two, "tokens=1", user=11)
    assert (none.status, none.json["error"]["code"]) == (503, "gateway_unreachable")
    record_row(
        "8 one GPU host is unreachable; both are",
        "the other serves; 503",
        f"10 of 10 served within {took:.1f} s; 503",
    )


async def test_requests_with_one_idempotency_key_reach_one_gpu_host(
    two: NetworkSite, record_row: RecordRow
) -> None:
    before = recorded(two, 32)
    for key in range(8):
        for _ in range(3):
            response = await send_chat(two, "tokens=1", 32, headers={"Idempotency-Key": f"job-{key}"})
            assert response.status == 200

    def counted() -> bool:
        return sum(recorded(two, 32).values()) - sum(before.values()) >= 8

    await asyncio.to_thread(wait_until, counted, "they are recorded")
    after = recorded(two, 32)
    assert sum(after.values()) - sum(before.values()) == 8
    assert all(after[name] > before[name] for name in NAMES), "the control: both generated"
    record_row(
        "8 one Idempotency-Key sent three times, two GPU hosts",
        "generated once",
        "8 keys, 24 requests, 8 generated",
    )
