"""Case 5: failures of the home line."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Response, usage_rows, wait_until
from tests.network.client import PATH, Stream, chat
from tests.network.site import NUMBERS, NetworkSite, address
from tests.network.wg_handshake import initiation

RecordRow = Callable[[str, str, str], None]
CUT_S = 30


@contextmanager
def streaming(site: NetworkSite, count: int, directive: str, edge: str = "vps-a") -> Iterator[list[Stream]]:
    """Run ``count`` streams, all with their first token; wait for them at the end."""
    seen = [Stream() for _ in range(count)]

    async def read() -> None:
        target = site.edge(edge)
        requests = (site.client.stream(chat(directive), user=n, edge=target, into=s) for n, s in enumerate(seen))
        await asyncio.gather(*requests)

    thread = threading.Thread(target=lambda: asyncio.run(read()))
    thread.start()
    try:
        wait_until(lambda: all(stream.tokens for stream in seen), "every stream has started")
        yield seen
    finally:
        thread.join(90)
    assert not thread.is_alive(), "the streams never ended"


def timed(site: NetworkSite, edge: str = "vps-a", user: int = 0) -> tuple[float, Response]:
    """Send a chat; return the seconds until its response, and the response."""
    began = time.monotonic()
    response = site.client.post(PATH, chat("tokens=1"), edge=site.edge(edge), user=user)
    return time.monotonic() - began, response


def test_streams_and_requests_recover_from_a_cut_tunnel_and_a_boot_of_a_vps(
    site: NetworkSite, record_row: RecordRow
) -> None:
    gpu, first = site.hosts["gpu"].machine, address("vps-a")
    refused: list[float] = []

    def refuse() -> None:
        # nginx waits 1.5 s for a connection, so a busy machine has half a second: the best of three counts.
        times: list[float] = []
        while len(times) < 3 and min(times, default=2) >= 2:
            took, response = timed(site, user=len(refused))
            assert (response.status, response.json["error"]["code"]) == (503, "gateway_unreachable")
            assert response.headers["retry-after"] == "2"
            times.append(took)
        # A wait for anything else than the connection takes a minute.
        assert max(times) < 15
        refused.append(min(times))

    with streaming(site, 5, f"tokens={CUT_S + 4} itl_ms=1000 ttft_ms=50") as streams:
        site.internet.separate(gpu, first)
        cut_at = time.monotonic()
        refuse()
        # Meanwhile the other VPS loses its power: its line works, but it has no session keys after the boot.
        site.power_off("vps-b")
        site.power_on("vps-b")
        site.hosts["vps-b"].require()
        reboot_s = site.wait_for_tunnel("vps-b", 28)
        refuse()
        threading.Event().wait(max(0.0, cut_at + CUT_S - time.monotonic()))
        refuse()
        silent = [stream.tokens[-1][0] for stream in streams]
        passed = max(len(stream.tokens) for stream in streams)
        site.internet.restore(gpu)
        restored_at = time.monotonic()
        back_s = site.wait_for_tunnel("vps-a", 20)
        wait_until(
            lambda: all(stream.tokens[-1][0] > last for stream, last in zip(streams, silent, strict=True)),
            "the streams continue", 20,
        )  # fmt: skip
        on_s = max(min(when for when, _ in s.tokens if when > restored_at) for s in streams) - restored_at
    assert passed < CUT_S / 2, "the control: the engine made a token each second, and the cut dropped them"
    assert [len(stream.tokens) for stream in streams if stream.done] == [CUT_S + 4] * 5
    assert max(refused) < 2
    assert back_s < 10
    record_row("5 tunnel cut for 30 s, new requests", "503 within 2 s; served again within 10 s",
        f"503 within {max(refused):.2f} s; served after {back_s:.1f} s")  # fmt: skip
    record_row(
        "5 tunnel cut for 30 s, open streams",
        "continue without a loss",
        f"5 of 5 whole, {on_s:.1f} s after the repair",
    )
    record_row("5 VPS reboots", "served again by itself (WireGuard needs up to 20 s)", f"after {reboot_s:.1f} s")


async def test_streams_survive_a_packet_loss_of_20_percent(site: NetworkSite, record_row: RecordRow) -> None:
    """With loss in both directions, a third of all round trips fail at first; TCP and retries recover.

    A head that is lost until the gateway's header timeout ends as 502, because the edge cannot know of the loss.
    """
    tries: list[int] = []
    refusals = {503: b"gateway_unreachable", 502: b"gateway_failed"}

    async def retry(user: int) -> Stream:
        for attempt in range(1, 7):
            once = {"Idempotency-Key": f"loss-{user}"}
            stream = await site.client.stream(chat("tokens=10 itl_ms=20"), user=user, headers=once)
            if stream.status == 200:
                tries.append(attempt)
                return stream
            assert refusals[stream.status] in stream.body, stream
        pytest.fail("six refusals in a row")

    gpu = site.hosts["gpu"].machine
    began = time.time()
    site.internet.drop_packets(gpu, 20)
    try:
        streams = await asyncio.gather(*(retry(user) for user in range(20)))
    finally:
        site.internet.restore(gpu)
    assert all(stream.done and len(stream.tokens) == 10 for stream in streams)

    def outcomes() -> list[str]:
        rows = usage_rows(gpu.disk / "appliance-gateway")
        return [row["outcome"] for row in rows if row["started_at"] >= began]

    wait_until(lambda: len(outcomes()) >= 20, "the rows")
    assert outcomes() == ["ok"] * 20, "no refused request had reached the gateway"
    record_row("5 20 % loss", "every stream whole; a refusal may be repeated",
        f"20 of 20 whole, {sum(tries)} tries, TTFT up to {max(s.ttft_s for s in streams):.1f} s")  # fmt: skip


def test_control_a_ping_loses_packets(site: NetworkSite) -> None:
    gpu = site.hosts["gpu"].machine
    site.internet.drop_packets(gpu, 20)
    try:
        output = gpu.try_run("ping", "-c", "100", "-i", "0.002", "-W", "1", "-n", "10.77.0.2").stdout
    finally:
        site.internet.restore(gpu)
    lost = float(output.partition("% packet loss")[0].rpartition(" ")[2])
    assert lost > 10, output


def test_the_tunnel_survives_a_change_of_the_gpu_hosts_address(site: NetworkSite, record_row: RecordRow) -> None:
    """The home router gets another address; the machine behind it is not informed."""
    gpu, vps = site.hosts["gpu"].machine, site.hosts["vps-a"].machine
    with streaming(site, 5, "tokens=30 itl_ms=200 ttft_ms=50") as streams:
        began = time.monotonic()
        site.internet.renumber(gpu, NUMBERS["gpu"], 51)
        site.wait_for_tunnel("vps-a", 20)
        took = time.monotonic() - began
        assert "203.0.113.51:" in vps.run("wg", "show", "wg0", "endpoints")
    assert all(stream.done and len(stream.tokens) == 30 for stream in streams)
    began = time.monotonic()
    site.internet.restore(gpu)
    gpu.run("ip", "address", "delete", "203.0.113.51/24", "dev", "eth0")
    site.wait_for_tunnel("vps-a", 20)
    back = time.monotonic() - began
    assert f"{address('gpu')}:" in vps.run("wg", "show", "wg0", "endpoints")
    site.wait_for_tunnel("vps-b", 20)
    assert max(took, back) < 10
    record_row("5 GPU host's address changes", "served again within 10 s, streams whole",
        f"after {took:.1f} s and, back again, {back:.1f} s; 5 of 5 whole")  # fmt: skip


def large_prompt(site: NetworkSite, timeout: float) -> Response:
    """Send a chat with a prompt of 200 kB, which fills its packets."""
    body = chat("tokens=1")
    body["messages"].insert(0, {"role": "user", "content": "x" * 200_000})
    return site.client.post(PATH, body, timeout=timeout)


@contextmanager
def tunnel_set(site: NetworkSite, mtu: int, probing: int) -> Iterator[None]:
    """Set another MTU at both ends of the tunnel, and TCP's MTU probing on or off."""
    ends = [site.hosts[name] for name in ("gpu", "vps-a")]
    old = [(str(host.description["tunnel"]["mtu"]), "1") for host in ends]

    def apply(host_mtu: str, host_probing: str) -> None:
        for host in ends:
            host.machine.run("ip", "link", "set", "wg0", "mtu", host_mtu)
            host.machine.run("sysctl", "-qw", f"net.ipv4.tcp_mtu_probing={host_probing}")

    apply(str(mtu), str(probing))
    try:
        yield
    finally:
        apply(*old[0])


def test_a_large_prompt_passes_an_mtu_black_hole(site: NetworkSite, record_row: RecordRow) -> None:
    gpu = site.hosts["gpu"].machine
    try:
        site.internet.limit_packets(gpu, 1400)
        began = time.monotonic()
        assert large_prompt(site, 10).status == 200
        small = time.monotonic() - began
        site.internet.limit_packets(gpu, 1300)  # below the size of the tunnel's packets
        began = time.monotonic()
        assert large_prompt(site, 30).status == 200
        smaller = time.monotonic() - began
    finally:
        site.internet.restore(gpu)
    record_row(
        "5 MTU black hole of 1400 and of 1300 bytes",
        "a prompt of 200 kB passes",
        f"after {small:.2f} s and {smaller:.1f} s",
    )


def test_control_a_larger_mtu_stalls_in_the_black_hole(site: NetworkSite) -> None:
    gpu = site.hosts["gpu"].machine
    with tunnel_set(site, 1420, 0):
        assert large_prompt(site, 10).status == 200
        site.internet.limit_packets(gpu, 1400)
        try:
            with pytest.raises(TimeoutError):
                large_prompt(site, 3)
        finally:
            site.internet.restore(gpu)


def test_the_tunnel_recovers_from_a_clock_that_is_behind_at_boot(site: NetworkSite, record_row: RecordRow) -> None:
    """The VPS has seen a later time than the GPU host's clock shows, so it rejects the handshakes as old."""
    host, behind_s = site.hosts["gpu"], 5.0
    private = (host.machine.disk / "wireguard/wg0.key").read_text()
    host.stop("wireguard-wg0")
    ahead = time.time() + behind_s
    with host.machine.socket(socket.AF_INET, socket.SOCK_DGRAM) as past:
        past.settimeout(5)
        past.sendto(initiation(private, site.public_keys["vps-a"], ahead), (address("vps-a"), 51820))
        response = past.recv(2048)
    assert (len(response), response[0]) == (92, 2), "the VPS accepted the later time stamp"
    host.start("wireguard-wg0")
    host.require()
    vps, key = site.hosts["vps-a"], site.public_keys["gpu"]

    def has_handshake() -> bool:
        return host.handshake_age_s(site.public_keys["vps-a"]) is not None

    wait_until(
        lambda: int(host.machine.run("wg", "show", "wg0", "transfer").split()[2]) > 0,
        "the GPU host has sent a handshake",
    )
    assert timed(site)[1].status == 503
    assert not has_handshake(), "the control: the VPS rejects a clock that is behind"
    site.wait_for_tunnel("vps-b")  # it has seen no later time stamp
    site.wait_for_tunnel("vps-a", 30)
    late = time.time() - ahead
    assert late >= 0
    assert vps.handshake_age_s(key) is not None
    record_row(
        "5 clock behind at boot (by 5 s)",
        "the tunnel recovers when the clock is right",
        f"{late:.1f} s later",
    )
