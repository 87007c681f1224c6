"""Case 5: the home line, and everything that happens to such a line."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Response, wait_until
from tests.network.client import PATH, Stream, chat
from tests.network.site import NUMBERS, NetworkSite, address
from tests.network.wg_handshake import initiation

Saw = Callable[[str, str, str], None]
CUT_S = 30


@contextmanager
def streaming(site: NetworkSite, count: int, directive: str, edge: str = "vps-a") -> Iterator[list[Stream]]:
    """So many streams that run meanwhile, all with their first token; on leaving they are awaited."""
    seen = [Stream() for _ in range(count)]

    async def read() -> None:
        where = site.edge(edge)
        asking = (site.client.stream(chat(directive), user=n, edge=where, into=s) for n, s in enumerate(seen))
        await asyncio.gather(*asking)

    thread = threading.Thread(target=lambda: asyncio.run(read()))
    thread.start()
    try:
        wait_until(lambda: all(stream.tokens for stream in seen), "every stream has begun")
        yield seen
    finally:
        thread.join(90)
    assert not thread.is_alive(), "the streams never ended"


def timed(site: NetworkSite, edge: str = "vps-a", user: int = 0) -> tuple[float, Response]:
    """Seconds until a chat is answered, and the answer."""
    began = time.monotonic()
    answer = site.client.post(PATH, chat("tokens=1"), edge=site.edge(edge), user=user)
    return time.monotonic() - began, answer


@pytest.mark.timeout(180)
def test_the_tunnel_is_cut_for_30_s_and_a_vps_boots_meanwhile(site: NetworkSite, saw: Saw) -> None:
    gpu, first = site.hosts["gpu"].machine, address("vps-a")
    refused: list[float] = []

    def refuse() -> None:
        took, answer = timed(site, user=len(refused))
        assert (answer.status, answer.json["error"]["code"]) == (503, "gateway_unreachable")
        assert answer.headers["retry-after"] == "2"
        refused.append(took)

    with streaming(site, 5, f"tokens={CUT_S + 4} itl_ms=1000 ttft_ms=50") as streams:
        site.internet.part(gpu, first)
        cut_at = time.monotonic()
        refuse()
        # The other VPS loses its power meanwhile: this line is whole, but its peer forgets everything.
        site.power_off("vps-b")
        site.power_on("vps-b")
        site.hosts["vps-b"].require()
        reboot_s = site.wait_for_tunnel("vps-b", 28)
        refuse()
        threading.Event().wait(max(0.0, cut_at + CUT_S - time.monotonic()))
        refuse()
        silent = [stream.tokens[-1][0] for stream in streams]
        passed = max(len(stream.tokens) for stream in streams)
        site.internet.mend(gpu)
        mended_at = time.monotonic()
        back_s = site.wait_for_tunnel("vps-a", 20)
        wait_until(
            lambda: all(stream.tokens[-1][0] > last for stream, last in zip(streams, silent, strict=True)),
            "the streams go on", 20,
        )  # fmt: skip
        on_s = max(min(when for when, _ in s.tokens if when > mended_at) for s in streams) - mended_at
    assert passed < CUT_S / 2, "the control: a token was made each second, and the cut let none pass"
    assert [len(stream.tokens) for stream in streams if stream.done] == [CUT_S + 4] * 5
    assert max(refused) < 2
    assert back_s < 10
    saw("5 tunnel cut for 30 s, new requests", "503 within 2 s; served again within 10 s",
        f"503 after {max(refused):.2f} s at most; served {back_s:.1f} s after the mend")  # fmt: skip
    saw(
        "5 tunnel cut for 30 s, open streams",
        "go on and lose nothing",
        f"5 of 5 whole, {on_s:.1f} s after the mend",
    )
    saw("5 VPS reboots", "served again by itself (WireGuard needs up to 20 s)", f"after {reboot_s:.1f} s")


async def test_20_percent_loss(site: NetworkSite, saw: Saw) -> None:
    """Lost both ways, so a third of all exchanges fail at first: TCP and a client that tries again carry it."""
    tries: list[int] = []

    async def persist(user: int) -> Stream:
        for attempt in range(1, 7):
            stream = await site.client.stream(chat("tokens=10 itl_ms=20"), user=user)
            if stream.status == 200:
                tries.append(attempt)
                return stream
            assert stream.status == 503, stream
            assert b"gateway_unreachable" in stream.body
        pytest.fail("six refusals in a row")

    gpu = site.hosts["gpu"].machine
    site.internet.lose(gpu, 20)
    try:
        streams = await asyncio.gather(*(persist(user) for user in range(20)))
    finally:
        site.internet.mend(gpu)
    assert all(stream.done and len(stream.tokens) == 10 for stream in streams)
    saw("5 20 % loss", "every stream whole; a refusal is a 503 that may be repeated",
        f"20 of 20 whole, {sum(tries)} tries, TTFT up to {max(s.ttft_s for s in streams):.1f} s")  # fmt: skip


def test_control_the_loss_is_there(site: NetworkSite) -> None:
    gpu = site.hosts["gpu"].machine
    site.internet.lose(gpu, 20)
    try:
        said = gpu.said("ping", "-c", "100", "-i", "0.002", "-W", "1", "-n", "10.77.0.2").stdout
    finally:
        site.internet.mend(gpu)
    lost = float(said.partition("% packet loss")[0].rpartition(" ")[2])
    assert lost > 10, said


def test_the_gpu_hosts_address_changes(site: NetworkSite, saw: Saw) -> None:
    """As at home: the router gets another address, the machine behind it is not told."""
    gpu, vps = site.hosts["gpu"].machine, site.hosts["vps-a"].machine
    with streaming(site, 5, "tokens=30 itl_ms=200 ttft_ms=50") as streams:
        began = time.monotonic()
        site.internet.renumber(gpu, NUMBERS["gpu"], 51)
        site.wait_for_tunnel("vps-a", 20)
        took = time.monotonic() - began
        assert "203.0.113.51:" in vps.do("wg", "show", "wg0", "endpoints")
    assert all(stream.done and len(stream.tokens) == 30 for stream in streams)
    began = time.monotonic()
    site.internet.mend(gpu)
    gpu.do("ip", "address", "delete", "203.0.113.51/24", "dev", "eth0")
    site.wait_for_tunnel("vps-a", 20)
    back = time.monotonic() - began
    assert f"{address('gpu')}:" in vps.do("wg", "show", "wg0", "endpoints")
    site.wait_for_tunnel("vps-b", 20)
    assert max(took, back) < 10
    saw("5 GPU host's address changes", "served again within 10 s, streams whole",
        f"after {took:.1f} s and, back again, {back:.1f} s; 5 of 5 whole")  # fmt: skip


def big(site: NetworkSite, timeout: float) -> Response:
    """A chat with a prompt of 200 kB, which fills packets on its way in."""
    body = chat("tokens=1")
    body["messages"].insert(0, {"role": "user", "content": "x" * 200_000})
    return site.client.post(PATH, body, timeout=timeout)


@contextmanager
def tunnel_set(site: NetworkSite, mtu: int, probing: int) -> Iterator[None]:
    """Both ends of the tunnel with another MTU, and with or without TCP's own search for it."""
    ends = [site.hosts[name] for name in ("gpu", "vps-a")]
    old = [(str(host.values["networking.wireguard.interfaces"]["wg0"]["mtu"]), "1") for host in ends]

    def put(host_mtu: str, host_probing: str) -> None:
        for host in ends:
            host.machine.do("ip", "link", "set", "wg0", "mtu", host_mtu)
            host.machine.do("sysctl", "-qw", f"net.ipv4.tcp_mtu_probing={host_probing}")

    put(str(mtu), str(probing))
    try:
        yield
    finally:
        put(*old[0])


def test_mtu_black_hole(site: NetworkSite, saw: Saw) -> None:
    gpu = site.hosts["gpu"].machine
    try:
        site.internet.shrink(gpu, 1400)
        began = time.monotonic()
        assert big(site, 10).status == 200
        small = time.monotonic() - began
        site.internet.shrink(gpu, 1300)  # less than even the tunnel's own packets have
        began = time.monotonic()
        assert big(site, 30).status == 200
        smaller = time.monotonic() - began
    finally:
        site.internet.mend(gpu)
    saw(
        "5 MTU black hole of 1400 and of 1300 bytes",
        "a prompt of 200 kB passes",
        f"after {small:.2f} s and {smaller:.1f} s",
    )


def test_control_a_larger_tunnel_falls_into_the_black_hole(site: NetworkSite) -> None:
    gpu = site.hosts["gpu"].machine
    with tunnel_set(site, 1420, 0):
        assert big(site, 10).status == 200
        site.internet.shrink(gpu, 1400)
        try:
            with pytest.raises(TimeoutError):
                big(site, 3)
        finally:
            site.internet.mend(gpu)


def test_the_clock_is_behind_at_boot(site: NetworkSite, saw: Saw) -> None:
    """The VPS has seen a later time than the GPU host's clock shows: it holds its handshakes for old ones."""
    host, behind_s = site.hosts["gpu"], 5.0
    private = (host.machine.disk / "wireguard/wg0.key").read_text()
    host.stop("wireguard-wg0")
    ahead = time.time() + behind_s
    with host.machine.socket(socket.AF_INET, socket.SOCK_DGRAM) as past:
        past.settimeout(5)
        past.sendto(initiation(private, site.public_keys["vps-a"], ahead), (address("vps-a"), 51820))
        answer = past.recv(2048)
    assert (len(answer), answer[0]) == (92, 2), "the VPS took the later time stamp"
    host.start("wireguard-wg0")
    host.require()
    vps, key = site.hosts["vps-a"], site.public_keys["gpu"]

    def shaken() -> bool:
        return host.handshake_age_s(site.public_keys["vps-a"]) is not None

    wait_until(lambda: int(host.machine.do("wg", "show", "wg0", "transfer").split()[2]) > 0, "it asks")
    assert timed(site)[1].status == 503
    assert not shaken(), "the control: with its clock behind it is refused"
    site.wait_for_tunnel("vps-b")  # which saw no later time
    site.wait_for_tunnel("vps-a", 30)
    late = time.time() - ahead
    assert late >= 0
    assert vps.handshake_age_s(key) is not None
    saw(
        "5 clock behind at boot (by 5 s)",
        "the tunnel comes by itself once the clock is right",
        f"{late:.1f} s later",
    )
