"""The agent when it ends, and when programs, files and the gateway fail during an outage."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from appliance.gateway import control_client
from appliance.watch.power.policy import PAUSED
from tests.watch.power.host import PowerHost, held_message, paused, release, stop_engine_in_outage

pytestmark = pytest.mark.timeout(600)
START, END = ("on-battery", False), ("on-battery", True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_second_agent_continues_the_outage_of_the_first(host: PowerHost, number: signal.Signals) -> None:
    first = stop_engine_in_outage(host)
    host.end(number)
    assert paused(host.service) == PAUSED
    assert host.chat().status == 503
    host.start()
    assert host.phase() == "idle"
    host.nut.set(ups_status="OL")
    host.reach("mains")
    assert host.pid != first
    host.until(lambda: host.chat().status == 200, "a request is served")
    host.until(lambda: host.notices() == [START, END], "one notice each way")


def test_engines_return_although_the_memory_of_the_agent_is_damaged(host: PowerHost) -> None:
    stop_engine_in_outage(host)
    host.end(signal.SIGKILL)
    (host.folder / "run" / "memory.json").write_text("{")
    host.nut.set(ups_status="OL")
    host.start()
    host.reach("mains")
    host.until(lambda: host.chat().status == 200, "a request is served")


def test_an_agent_that_ends_on_mains_changes_nothing(host: PowerHost) -> None:
    host.start()
    host.until(lambda: host.watts() == [400], "the limit of the site is set")
    assert host.end() == 0
    assert (host.watts(), host.calls("systemctl"), host.notices()) == ([400], [], [])
    assert paused(host.service) is None
    assert host.chat().status == 200


def test_the_pause_of_an_operator_is_not_ended(host: PowerHost) -> None:
    control_client.pause(host.service.data, "maintenance", 60)
    host.start()
    host.nut.set(ups_status="OB")
    host.reach("battery")
    host.nut.set(ups_status="OL")
    host.reach("mains")
    host.until(lambda: host.notices() == [START, END], "the end is reported")
    assert paused(host.service) == "maintenance"


def test_programs_that_hang_stop_nothing(host: PowerHost) -> None:
    """nvidia-smi and systemctl ignore SIGTERM; the shutdown is ordered in time."""
    host.hang("nvidia-smi")
    host.hang("systemctl")
    host.start()
    host.nut.set(ups_status="OB")
    host.reach("idle")
    host.nut.set(ups_status="OB LB")
    host.until(lambda: host.calls("upsmon") == ["upsmon -c fsd"], "upsmon is called")
    assert host.end() == 0


def test_a_gateway_that_restarts_in_an_outage_is_paused_again(host: PowerHost) -> None:
    host.start()
    host.nut.set(ups_status="OB")
    host.reach("idle")
    control_client.resume(host.service.data)
    host.until(lambda: paused(host.service) == PAUSED, "the gateway is paused again")


def test_a_full_disk_of_notices_delays_them_and_nothing_else(host: PowerHost) -> None:
    outbox = host.folder / "outbox"
    outbox.rmdir()
    outbox.write_text("")
    host.start()
    host.nut.set(ups_status="OB")
    host.reach("idle")
    outbox.unlink()
    host.until(lambda: host.notices() == [START], "the notice arrives later")


def test_a_stream_of_a_paused_gateway_ends_by_itself(host: PowerHost) -> None:
    """A stream that runs when the gateway is paused is complete."""

    async def stream() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", host.service.gateway.port)
        body = json.dumps({"model": "fake", "stream": True, "messages": held_message()}).encode()
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {host.service.key}\r\n"
            f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        first = await reader.read(100)
        host.nut.set(ups_status="OB")
        host.until(lambda: paused(host.service) == PAUSED, "the gateway is paused")
        release(host)
        rest = await asyncio.wait_for(reader.read(), 90)
        writer.close()
        return first + rest

    host.start()
    assert b"data: [DONE]" in asyncio.run(stream())
    host.reach("idle")
