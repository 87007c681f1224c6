"""Fair admission between users of one model, as a pure state machine: no clock, no socket, no task.

Each user has a counter of service received, in tokens over his weight: the virtual token counter of Sheng et al.,
"Fairness in Serving Large Language Models", OSDI 2024. The next request always comes from the waiting user who
has received least. Who begins to wait is lifted to the least counter of those who wait, or else to that of whoever
started last: absence earns no credit, and what somebody was served while nobody waited is no debt.

A counter alone lets one user with many long requests fill every slot before the next user comes. So each may
hold only ``alpha * free`` slots, the dynamic threshold of Choudhury and Hahne, "Dynamic Queue Length Thresholds for
Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking 6(2), 1998: with alpha = (1 - h) / h a user
alone gets 1 - h of the slots, several users share them, and something stays free for who comes next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Ticket(Protocol):
    """A request as the queue knows it: whose it is. Tickets are told apart by identity."""

    user: str


T = TypeVar("T", bound=Ticket)

MAX_IDLE_FLOWS = 10_000
"""Counters of users without requests that are kept; beyond, the oldest are forgotten."""


@dataclass(slots=True, eq=False)
class Flow(Generic[T]):
    """One user's line: requests waiting and running, and weighted tokens served so far."""

    weight: float
    served: float = 0.0
    running: int = 0
    waiting: deque[T] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """Who may start next. Callers say how many slots are free; 0 <= ``headroom`` < 1."""

    def __init__(self, headroom: float) -> None:
        self._alpha = (1 - headroom) / headroom if headroom > 0 else None
        self._flows: dict[str, Flow[T]] = {}
        self._active: dict[str, Flow[T]] = {}
        self._last: Flow[T] | None = None
        """Whose request started last."""
        self.waiting = 0
        self.running = 0

    def enter(self, user: str, weight: float, free: int) -> bool:
        """Start a request of ``user`` at once, where a slot is free and nobody has to go first.

        True counts it as running. A user whose own requests wait joins their end.
        """
        flow = self._activate(user, weight)
        if free <= 0 or flow.waiting or not self._within(flow, free) or (self.waiting and self._someone(free)):
            if not flow.running and not flow.waiting:
                del self._active[user]
            return False
        self._start(flow)
        return True

    def wait(self, ticket: T, weight: float) -> int:
        """Put ``ticket`` at the end of its user's line; how many requests wait before it at most."""
        flow = self._activate(ticket.user, weight)
        flow.waiting.append(ticket)
        self.waiting += 1
        return self.waiting

    def next(self, free: int) -> T | None:
        """The request to start now, counted as running; ``None`` while no slot is free or nobody may."""
        if free <= 0 or not self.waiting:
            return None
        flow = self._someone(free)
        if flow is None:
            return None
        self.waiting -= 1
        self._start(flow)
        return flow.waiting.popleft()

    def leave(self, ticket: T) -> bool:
        """``ticket`` gives up waiting; whether it waited at all."""
        flow = self._active.get(ticket.user)
        if flow is None or not any(other is ticket for other in flow.waiting):
            return False
        flow.waiting = deque(other for other in flow.waiting if other is not ticket)
        self.waiting -= 1
        self._settle(ticket.user, flow)
        return True

    def charge(self, user: str, tokens: float) -> None:
        """Count ``tokens`` of service to ``user``; negative where an estimate was too high."""
        flow = self._flows.get(user)
        if flow is not None:
            flow.served += tokens / flow.weight

    def finish(self, user: str) -> None:
        """One running request of ``user`` ended, however it ended."""
        flow = self._flows[user]
        flow.running -= 1
        self.running -= 1
        self._settle(user, flow)

    def waiting_of(self, user: str) -> int:
        """How many requests of ``user`` wait."""
        flow = self._active.get(user)
        return len(flow.waiting) if flow is not None else 0

    def tickets(self) -> list[T]:
        """Every waiting request, user by user."""
        return [ticket for flow in self._active.values() for ticket in flow.waiting]

    def _activate(self, user: str, weight: float) -> Flow[T]:
        flow = self._active.get(user)
        if flow is None:
            flow = self._flows.get(user)
            if flow is None:
                if len(self._flows) >= MAX_IDLE_FLOWS + len(self._active):
                    self._forget_one()
                flow = self._flows[user] = Flow(weight)
            self._active[user] = flow
        flow.weight = weight
        if not flow.waiting:
            self._lift(flow)
        return flow

    def _lift(self, flow: Flow[T]) -> None:
        """Bring up who had nothing waiting, as the paper does."""
        if self.waiting:
            flow.served = max(flow.served, min(other.served for other in self._active.values() if other.waiting))
        elif self._last is not None:
            flow.served = max(flow.served, self._last.served)

    def _start(self, flow: Flow[T]) -> None:
        flow.running += 1
        self.running += 1
        self._last = flow

    def _settle(self, user: str, flow: Flow[T]) -> None:
        if not flow.running and not flow.waiting:
            self._active.pop(user, None)

    def _someone(self, free: int) -> Flow[T] | None:
        """The least served user who waits and may take a slot."""
        best: Flow[T] | None = None
        for flow in self._active.values():
            if flow.waiting and (best is None or flow.served < best.served) and self._within(flow, free):
                best = flow
        return best

    def _within(self, flow: Flow[T], free: int) -> bool:
        """Whether one more slot for ``flow`` leaves room for others; the first one always does."""
        return not flow.running or self._alpha is None or flow.running < self._alpha * flow.weight * free

    def _forget_one(self) -> None:
        for user in self._flows:
            if user not in self._active:
                del self._flows[user]
                return
