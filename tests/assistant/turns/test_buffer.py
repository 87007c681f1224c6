"""The events of a response in memory: followed, resumed, bounded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.assistant.turns.buffer import EventBuffer
from appliance.assistant.turns.turn_queue import TurnQueue
from appliance.errors import ConflictError, InvalidRequestError


def event(number: int) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "sequence_number": number}


async def read(buffer: EventBuffer, after: int = -1) -> list[bytes]:
    return [frame async for frame in buffer.follow(after)]


async def test_a_reader_gets_every_event_after_its_number() -> None:
    buffer = EventBuffer(waits=False)
    buffer.add([event(0), event(1)])
    following = asyncio.create_task(read(buffer, after=0))
    await asyncio.sleep(0)
    buffer.add([event(2)])
    buffer.close()
    assert [b'"sequence_number":%d' % number in frame for number, frame in enumerate(await following, 1)] == [
        True
    ] * 2
    assert len(await read(buffer)) == 3


async def test_expired_events_are_an_error_and_never_a_gap() -> None:
    buffer = EventBuffer(waits=False, most_events=3)
    reader = buffer.follow()
    buffer.add([event(0)])
    await anext(reader)
    buffer.add([event(number) for number in range(1, 9)])
    buffer.close()
    [frame] = [frame async for frame in reader]
    assert b'"code":"events_expired"' in frame
    buffer.check(5)
    with pytest.raises(InvalidRequestError) as raised:
        buffer.check(3)
    assert raised.value.code == "events_expired"
    assert len(await read(buffer, after=5)) == 3


async def test_a_slow_reader_delays_a_foreground_turn_and_loses_nothing() -> None:
    buffer = EventBuffer(waits=True, most_events=3)
    buffer.add([event(number) for number in range(6)])
    waiting = asyncio.create_task(buffer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    reader = buffer.follow()
    seen = [await anext(reader) for _ in range(6)]
    await asyncio.wait_for(waiting, 5)
    buffer.close()
    assert len(seen) == 6
    assert [frame async for frame in reader] == []


async def test_turns_wait_in_their_order_and_too_many_are_rejected() -> None:
    queue, order = TurnQueue(max_waiting=2), list[int]()
    first = asyncio.Event()

    async def turn(number: int) -> None:
        async with queue.turn("ada", "conv_1"):
            order.append(number)
            await first.wait()

    tasks = [asyncio.create_task(turn(number)) for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(ConflictError):
        await turn(9)
    async with queue.turn("bob", "conv_1"), queue.turn("ada", "conv_2"):
        pass
    tasks[1].cancel()
    first.set()
    await asyncio.wait(tasks)
    assert order == [0, 2]
