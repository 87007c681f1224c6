"""Fair admission between users of one model, as a pure state machine: no clock, no socket, no task.

Each user has a counter of service received, in tokens over his weight: the virtual token counter of Sheng et al.,
"Fairness in Serving Large Language Models", OSDI 2024. The next request always comes from the waiting user who
has received least. Who begins to wait is lifted to the least counter of those who wait, or else to that of whoever
started last: absence earns no credit, and what somebody was served while nobody waited is no debt. Within a user it
is the same between his keys, by their weights: his agent does not starve his own chat.

A counter alone lets one user with many long requests fill every slot before the next user comes. So each may
hold only ``alpha * free`` slots, the dynamic threshold of Choudhury and Hahne, "Dynamic Queue Length Thresholds for
Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking 6(2), 1998: with alpha = (1 - h) / h a user
alone gets 1 - h of the slots, several users share them, and something stays free for who comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar


class Ticket(Protocol):
    """A request as the queue knows it. Tickets are told apart by identity."""

    user: str
    key_id: str
    """Which of its user's lines it stands in: his key."""
    weight: float
    """What its tokens are divided by: a share of the engine against weight 1."""
    size: int
    """Slots it takes: the sequences that an engine will run for it."""


T = TypeVar("T", bound=Ticket)

MAX_IDLE_FLOWS = 10_000
"""Counters of users without requests that are kept; beyond, the oldest are forgotten."""


@dataclass(slots=True, eq=False)
class KeyQueue(Generic[T]):
    """Requests of one key that wait, in their order, and weighted tokens served so far."""

    served: float = 0.0
    waiting: deque[T] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Flow(Generic[T]):
    """One user: slots in use, weighted tokens served so far, and a queue for each of the user's keys."""

    served: float = 0.0
    running: int = 0
    waiting: int = 0
    key_queues: dict[str, KeyQueue[T]] = field(default_factory=dict)
    last: KeyQueue[T] | None = None
    """Whose request started last."""

    def key_queue(self, ticket: T) -> KeyQueue[T]:
        """The line of ``ticket``; one in which nobody stood is brought up to the others."""
        key_queue = self.key_queues.get(ticket.key_id)
        if key_queue is None:
            key_queue = self.key_queues[ticket.key_id] = KeyQueue()
        if not key_queue.waiting and (self.waiting or key_queue is not self.last):
            _lift(key_queue, self.key_queues.values() if self.waiting else (), self.last)
        return key_queue

    @property
    def first(self) -> KeyQueue[T]:
        """The line whose turn it is; somebody must wait."""
        if len(self.key_queues) == 1:
            return next(iter(self.key_queues.values()))
        return min(
            (key_queue for key_queue in self.key_queues.values() if key_queue.waiting),
            key=lambda key_queue: key_queue.served,
        )


class FairQueue(Generic[T]):
    """Who may start next. Callers say how many slots are free; 0 <= ``headroom`` < 1."""

    def __init__(self, headroom: float) -> None:
        self._alpha = (1 - headroom) / headroom if headroom > 0 else None
        self.flows: dict[str, Flow[T]] = {}
        self._active: dict[str, Flow[T]] = {}
        self._last: Flow[T] | None = None
        """Whose request started last."""
        self.waiting = 0
        self.running = 0

    def enter(self, ticket: T, free: int) -> bool:
        """Start ``ticket`` at once, where a slot is free and nobody has to go first.

        True counts it as running. A user whose own requests wait joins their end.
        """
        flow = self._activate(ticket.user)
        if (
            free <= 0
            or flow.waiting
            or not self._has_room(flow, ticket, free)
            or (self.waiting and self._least_served(free))
        ):
            self._settle(ticket.user, flow)
            return False
        self._start(flow, flow.key_queue(ticket), ticket)
        return True

    def wait(self, ticket: T) -> int:
        """Put ``ticket`` at the end of its line; how many requests wait before it at most."""
        flow = self._activate(ticket.user)
        flow.key_queue(ticket).waiting.append(ticket)
        flow.waiting += 1
        self.waiting += 1
        return self.waiting

    def next(self, free: int) -> T | None:
        """The request to start now, counted as running; ``None`` while no slot is free or nobody may."""
        if free <= 0 or not self.waiting:
            return None
        flow = self._least_served(free)
        if flow is None:
            return None
        key_queue = flow.first
        ticket = key_queue.waiting.popleft()
        flow.waiting -= 1
        self.waiting -= 1
        self._start(flow, key_queue, ticket)
        return ticket

    def leave(self, ticket: T) -> bool:
        """``ticket`` gives up waiting; whether it waited at all."""
        flow = self._active.get(ticket.user)
        key_queue = flow.key_queues.get(ticket.key_id) if flow is not None else None
        if flow is None or key_queue is None or not any(other is ticket for other in key_queue.waiting):
            return False
        key_queue.waiting = deque(other for other in key_queue.waiting if other is not ticket)
        flow.waiting -= 1
        self.waiting -= 1
        self._settle(ticket.user, flow)
        return True

    def charge(self, ticket: Ticket, tokens: float) -> None:
        """Count ``tokens`` of service to whom ``ticket`` is of; negative where an estimate was too high."""
        flow = self.flows.get(ticket.user)
        if flow is not None:
            flow.served += tokens / ticket.weight
            key_queue = flow.key_queues.get(ticket.key_id)
            if key_queue is not None:
                key_queue.served += tokens / ticket.weight

    def finish(self, ticket: T) -> None:
        """``ticket``, which ran, ended, however it ended."""
        flow = self.flows[ticket.user]
        flow.running -= ticket.size
        self.running -= ticket.size
        self._settle(ticket.user, flow)

    def waiting_of(self, user: str) -> int:
        """How many requests of ``user`` wait."""
        flow = self._active.get(user)
        return flow.waiting if flow is not None else 0

    def tickets(self) -> list[T]:
        """Every waiting request, user by user."""
        key_queues = [key_queue for flow in self._active.values() for key_queue in flow.key_queues.values()]
        return [ticket for key_queue in key_queues for ticket in key_queue.waiting]

    def _activate(self, user: str) -> Flow[T]:
        flow = self._active.get(user)
        if flow is None:
            flow = self.flows.get(user)
            if flow is None:
                if len(self.flows) >= MAX_IDLE_FLOWS + len(self._active):
                    self._forget_one()
                flow = self.flows[user] = Flow()
            self._active[user] = flow
        if not flow.waiting and (self.waiting or flow is not self._last):
            _lift(flow, self._active.values() if self.waiting else (), self._last)
        return flow

    def _start(self, flow: Flow[T], key_queue: KeyQueue[T], ticket: T) -> None:
        flow.running += ticket.size
        self.running += ticket.size
        flow.last = key_queue
        self._last = flow

    def _settle(self, user: str, flow: Flow[T]) -> None:
        if not flow.running and not flow.waiting:
            self._active.pop(user, None)

    def _least_served(self, free: int) -> Flow[T] | None:
        """The least served user who waits and may take a slot."""
        best: Flow[T] | None = None
        for flow in self._active.values():
            least = flow.waiting and (best is None or flow.served < best.served)
            if least and self._has_room(flow, flow.first.waiting[0], free):
                best = flow
        return best

    def _has_room(self, flow: Flow[T], ticket: T, free: int) -> bool:
        """Whether ``ticket`` leaves room for others; a user's only one always does."""
        if not flow.running or self._alpha is None:
            return True
        more = ticket.size - 1
        return flow.running + more < self._alpha * ticket.weight * (free - more)

    def _forget_one(self) -> None:
        for user in self.flows:
            if user not in self._active:
                del self.flows[user]
                return


Counter = TypeVar("Counter", Flow[Any], KeyQueue[Any])


def _lift(one: Counter, others: Iterable[Counter], last: Counter | None) -> None:
    """Bring up ``one``, of whom nothing waited, as the paper does: to the least of ``others`` that wait."""
    least = min((other.served for other in others if other.waiting), default=None)
    if least is None and last is not None:
        least = last.served
    if least is not None and least > one.served:
        one.served = least
