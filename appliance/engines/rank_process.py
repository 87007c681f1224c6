"""The process of one rank of an engine over several hosts, watched together with the other ranks.

It starts vLLM when all ranks have joined, and ends it with the first of these events:

| event | effect | exit code |
|---|---|---|
| vLLM ends | the connections close, so the other ranks end theirs | that of vLLM, 1 in place of 0 |
| another rank is lost | vLLM gets SIGTERM, SIGKILL after ``END_S`` | 1 |
| SIGTERM | vLLM gets SIGTERM, SIGKILL after its own deadline | 0 |
| the leader refuses this rank | nothing was started | 1 |

Its unit restarts it after each code but 0. So all ranks start together again, and none keeps the memory of its
cards.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass

from appliance.engines.processes import die_with_parent
from appliance.engines.rank_link import RankFollower, RankLeader, RankPlace
from appliance.errors import UsageError

END_S = 5.0
"""Seconds for vLLM to end after another rank was lost: it can finish no request then."""


@dataclass(frozen=True, slots=True)
class RankProgram:
    """The command of a rank, its whole environment, and the seconds for its end after SIGTERM."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    stop_timeout_s: float


async def run_rank(place: RankPlace, program: RankProgram) -> int:
    """Run one rank until it ends; return the exit code. Raises :class:`StartError` if the leader refuses it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def report(text: str) -> None:
        print(f"engine {place.hello.engine} rank {place.rank}: {text}", file=sys.stderr, flush=True)

    side = RankLeader(place, report) if place.rank == 0 else RankFollower(place, report)
    stopping = loop.create_task(stop.wait())
    try:
        if not await _first(loop.create_task(side.ready()), stopping):
            return 0
        report(f"starts with {', '.join(place.hosts)}")
        process = await _spawn(program)
        ended = loop.create_task(process.wait())
        lost = loop.create_task(side.lost())
        grace_s = END_S
        try:
            await asyncio.wait({ended, lost, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                grace_s = program.stop_timeout_s
                return 0
            if ended.done():
                report(f"vLLM ended with {ended.result()}")
                return abs(ended.result()) or 1
            report(f"{lost.result()}; ends vLLM")
            return 1
        finally:
            lost.cancel()
            # The other ranks end theirs meanwhile, unless this one drains its requests.
            if not stop.is_set():
                await side.close()
            await _end(process, ended, grace_s)
    finally:
        stopping.cancel()
        await side.close()


async def _first(ready: asyncio.Task[None], stopping: asyncio.Task[bool]) -> bool:
    """Wait for ``ready``; return false if the stop precedes it."""
    await asyncio.wait({ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        ready.result()
        return True
    ready.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ready
    return False


async def _spawn(program: RankProgram) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *program.argv,
            env=program.environment,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        message = f"{program.argv[0]} cannot be run ({error.strerror})"
        raise UsageError(f"{message}; set the engine's command to its Python") from None


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int], grace_s: float) -> None:
    """End the process, then every worker that its group still has."""
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait({ended}, timeout=grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await ended
