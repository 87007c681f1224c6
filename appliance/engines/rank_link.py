"""The connections between the watchers of an engine's ranks, over which each notices the end of another.

The leader listens on its link address; each other rank connects and sends a :class:`~.rank_hello.RankHello`. The
leader refuses it, or lets it start once all ranks have joined. Then both sides send an empty line every ``BEAT_S``.
The connection carries no secret and no command except the start, and accepts the link addresses of the ranks only.
vLLM alone does not notice: a rank whose leader was killed keeps running and keeps the memory of its cards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from appliance.engines.rank_hello import MAX_LINE, RankHello, parse_hello, refusal
from appliance.errors import StartError

BEAT_S = 2.0
"""Seconds between two empty lines."""
SILENCE_S = 10.0
"""Seconds without a line after which the other rank counts as lost: a cut cable sends no end of the connection."""
RETRY_S = 1.0
"""Seconds between two attempts to reach the leader."""
REPORT_S = 60.0
"""Seconds between two reports that a rank waits for another."""
MAX_CONNECTIONS = 16
"""Connections to the leader at once."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RankPlace:
    """One rank among the others: what it sends, the link addresses of all ranks, the port of the leader."""

    hello: RankHello
    addresses: tuple[str, ...]
    hosts: tuple[str, ...]
    port: int

    @property
    def rank(self) -> int:
        """Return its number."""
        return self.hello.rank

    def name(self, rank: int) -> str:
        """Return host and address of a rank, for a message."""
        return f"{self.hosts[rank]} ({self.addresses[rank]})"


class RankLink:
    """One connection, from the hello to its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._beats = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(BEAT_S)
                self._writer.write(b"\n")

    def send(self, **message: object) -> None:
        """Send one message."""
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> bytes:
        """Return the next message; raises :class:`StartError` with the reason when the connection has ended."""
        while True:
            try:
                line = await asyncio.wait_for(self._reader.readline(), SILENCE_S)
            except TimeoutError:
                raise StartError(f"sent nothing for {SILENCE_S:.0f} s") from None
            except (OSError, ValueError) as error:
                raise StartError(f"the connection failed ({error})") from None
            if not line.endswith(b"\n"):
                raise StartError("closed the connection")
            if line != b"\n":
                return line

    async def lost(self) -> str:
        """Return the reason once the connection has ended; the other side sends beats only."""
        while True:
            try:
                await self.receive()
            except StartError as error:
                return str(error)

    async def close(self) -> None:
        """End the connection, after what was sent."""
        self._beats.cancel()
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(self._writer.wait_closed(), SILENCE_S)


class RankLeader:
    """The leader's side.

    | state | event | effect |
    |---|---|---|
    | gathering | hello that :func:`refusal` accepts | the rank has joined; with the last one: start all, running |
    | gathering | any other hello | refuse it with the reason, keep gathering |
    | gathering | a joined rank is lost | it has not joined |
    | running | a hello | close that connection; its rank retries |
    | running | a rank is lost | ``lost`` returns the reason |
    """

    def __init__(self, place: RankPlace, report: Report) -> None:
        self._place = place
        self._report = report
        self._links: dict[int, RankLink] = {}
        self._open = 0
        self._last_refusal = ""
        self._running = asyncio.Event()
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._server: asyncio.Server | None = None

    async def ready(self) -> None:
        """Listen, and return once all ranks have joined and may start.

        Raises :class:`StartError` if the address cannot be used.
        """
        own, port = self._place.addresses[0], self._place.port
        try:
            self._server = await asyncio.start_server(self._accept, own, port, limit=MAX_LINE)
        except OSError as error:
            raise StartError(
                f"cannot listen on {own}:{port} ({error.strerror or error}); check hosts.*.link of this host"
            ) from None
        while not self._running.is_set():
            missing = [rank for rank in range(1, len(self._place.hosts)) if rank not in self._links]
            if missing:
                self._report(f"waits for {', '.join(map(self._place.name, missing))}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._running.wait(), REPORT_S)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername")[0]
        if source not in self._place.addresses[1:] or self._open >= MAX_CONNECTIONS:
            writer.close()
            return
        self._open += 1
        link = RankLink(reader, writer)
        try:
            await self._serve(link, source)
        finally:
            self._open -= 1
            await link.close()

    async def _serve(self, link: RankLink, source: str) -> None:
        try:
            other = parse_hello(await link.receive())
        except StartError:
            return
        if reason := refusal(self._place.hello, other, addresses=self._place.addresses, source=source):
            link.send(refused=reason)
            if reason != self._last_refusal:
                self._report(f"refuses {source}: {reason}")
                self._last_refusal = reason
            return
        if self._running.is_set() or other.rank in self._links:
            return
        self._links[other.rank] = link
        if len(self._links) == len(self._place.hosts) - 1:
            for one in self._links.values():
                one.send(start=True)
            self._running.set()
        reason = await link.lost()
        if not self._running.is_set():
            del self._links[other.rank]
        elif not self._lost.done():
            self._lost.set_result(f"lost {self._place.name(other.rank)}: it {reason}")

    async def lost(self) -> str:
        """Return the reason once a rank is lost."""
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        for link in self._links.values():
            await link.close()


class RankFollower:
    """The side of each other rank.

    | state | event | effect |
    |---|---|---|
    | waiting | the leader is unreachable, or closes the connection | report it, retry after a second |
    | waiting | refused | ``ready`` raises the reason |
    | waiting | start | ``ready`` returns |
    | running | the leader is lost | ``lost`` returns the reason |
    """

    def __init__(self, place: RankPlace, report: Report) -> None:
        self._place = place
        self._report = report
        self._link: RankLink | None = None

    async def ready(self) -> None:
        """Connect to the leader, and return when this rank may start; raises :class:`StartError` if refused."""
        loop = asyncio.get_running_loop()
        reported, again_at = "", 0.0
        while True:
            try:
                await self._join()
            except StartError:
                raise
            except OSError as error:
                reason = f"cannot reach {self._leader} ({error.strerror or error}); check its unit and the link"
            else:
                return
            if reason != reported or loop.time() >= again_at:
                self._report(reason)
                reported, again_at = reason, loop.time() + REPORT_S
            await asyncio.sleep(RETRY_S)

    @property
    def _leader(self) -> str:
        return f"the leader {self._place.name(0)}, port {self._place.port}"

    async def _join(self) -> None:
        """Wait for the start; raises :class:`OSError` if the connection ends before, StartError if refused."""
        place = self._place
        own = (place.addresses[place.rank], 0)
        opening = asyncio.open_connection(place.addresses[0], place.port, limit=MAX_LINE, local_addr=own)
        try:
            reader, writer = await asyncio.wait_for(opening, SILENCE_S)
        except TimeoutError:
            raise OSError(None, "connection timed out") from None
        writer.write(place.hello.to_line())
        link = RankLink(reader, writer)
        try:
            message = await link.receive()
        except StartError as error:
            await link.close()
            raise OSError(None, f"it {error}") from None
        try:
            answer = json.loads(message)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and answer.get("start") is True:
            self._link = link
            return
        await link.close()
        reason = answer.get("refused") if isinstance(answer, dict) else None
        raise StartError(f"{self._leader}, refuses this rank: {reason or 'it sent no start'}")

    async def lost(self) -> str:
        """Return the reason once the leader is lost."""
        if self._link is None:
            raise StartError("this rank has not joined its leader")
        return f"lost the leader {self._place.name(0)}: it {await self._link.lost()}"

    async def close(self) -> None:
        """End the connection."""
        if self._link is not None:
            await self._link.close()
