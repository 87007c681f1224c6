"""Fair admission between users of one model, as a pure state machine: no clock, no socket, no task.

Each user has a counter of the service received, in tokens divided by the user's weight: the virtual token counter
of Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024. The next request is always one of the
waiting user with the least counter. The counter of a user that begins to wait is lifted to the least one of the
waiting users. If none waits, it is lifted to that of the user whose request started last. So absence earns no
credit, and service received without competition does not count as debt. The same rule divides a user's share
between the user's keys, by their weights: an agent does not starve its user's own chat.

A counter alone lets one user with many long requests occupy every slot before another user arrives. So each user
may hold only ``alpha * free`` slots, the dynamic threshold of Choudhury and Hahne, "Dynamic Queue Length
Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking 6(2), 1998. With alpha = (1 - h)
/ h, a single user gets 1 - h of the slots, several users share them, and some slots stay free for the next user.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar


class Ticket(Protocol):
    """A request as the queue uses it. Tickets are distinguished by identity."""

    user: str
    key_id: str
    """The API key: each key of a user has a queue of its own."""
    weight: float
    """Divisor of its tokens: its share of the engine relative to weight 1."""
    size: int
    """Slots that it occupies: the sequences that an engine will run for it."""


T = TypeVar("T", bound=Ticket)

MAX_IDLE_FLOWS = 10_000
"""Counters of users without requests that are kept; beyond this number, the oldest are discarded."""


@dataclass(slots=True, eq=False)
class KeyQueue(Generic[T]):
    """The waiting requests of one key, in their order, and its weighted tokens served so far."""

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
        """Return the queue of the key of ``ticket``; the counter of an empty one is lifted to the others."""
        key_queue = self.key_queues.get(ticket.key_id)
        if key_queue is None:
            key_queue = self.key_queues[ticket.key_id] = KeyQueue()
        if not key_queue.waiting and (self.waiting or key_queue is not self.last):
            _lift(key_queue, self.key_queues.values() if self.waiting else (), self.last)
        return key_queue

    @property
    def first(self) -> KeyQueue[T]:
        """The queue whose turn it is; at least one request must wait."""
        if len(self.key_queues) == 1:
            return next(iter(self.key_queues.values()))
        return min(
            (key_queue for key_queue in self.key_queues.values() if key_queue.waiting),
            key=lambda key_queue: key_queue.served,
        )


class FairQueue(Generic[T]):
    """The waiting requests of one model, and the decision which one starts next.

    Args:
        headroom: Share of the slots that a single user leaves free, 0 <= ``headroom`` < 1.
    """

    def __init__(self, headroom: float) -> None:
        self._alpha = (1 - headroom) / headroom if headroom > 0 else None
        self.flows: dict[str, Flow[T]] = {}
        self._active: dict[str, Flow[T]] = {}
        self._last: Flow[T] | None = None
        """Whose request started last."""
        self.waiting = 0
        self.running = 0

    def enter(self, ticket: T, free: int) -> bool:
        """Start ``ticket`` at once if a slot is free and no other request has precedence.

        A request does not start if its user already has waiting requests.

        Args:
            ticket: The new request.
            free: Free slots of the model's replicas.

        Returns:
            Whether it started; then it counts as running.
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
        """Append ``ticket`` to its key's queue; return its position in the whole queue, at most."""
        flow = self._activate(ticket.user)
        flow.key_queue(ticket).waiting.append(ticket)
        flow.waiting += 1
        self.waiting += 1
        return self.waiting

    def next(self, free: int) -> T | None:
        """Return the request to start now and count it as running; ``None`` if none may start.

        Args:
            free: Free slots of the model's replicas.
        """
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
        """Remove ``ticket`` from the queue; return whether it was waiting."""
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
        """Charge ``tokens`` to the user and the key of ``ticket``; negative if an estimate was too high."""
        flow = self.flows.get(ticket.user)
        if flow is not None:
            flow.served += tokens / ticket.weight
            key_queue = flow.key_queues.get(ticket.key_id)
            if key_queue is not None:
                key_queue.served += tokens / ticket.weight

    def finish(self, ticket: T) -> None:
        """Release the slots of ``ticket``, which was running."""
        flow = self.flows[ticket.user]
        flow.running -= ticket.size
        self.running -= ticket.size
        self._settle(ticket.user, flow)

    def waiting_of(self, user: str) -> int:
        """Return the number of waiting requests of ``user``."""
        flow = self._active.get(user)
        return flow.waiting if flow is not None else 0

    def tickets(self) -> list[T]:
        """Return all waiting requests, user by user."""
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
        """Return the waiting user with the least counter that may take a slot."""
        best: Flow[T] | None = None
        for flow in self._active.values():
            least = flow.waiting and (best is None or flow.served < best.served)
            if least and self._has_room(flow, flow.first.waiting[0], free):
                best = flow
        return best

    def _has_room(self, flow: Flow[T], ticket: T, free: int) -> bool:
        """Return whether ``ticket`` leaves slots for other users; a user's only request always may start."""
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
    """Lift ``one``, which had no waiting request, to the least of the waiting ``others``, as in the paper."""
    least = min((other.served for other in others if other.waiting), default=None)
    if least is None and last is not None:
        least = last.served
    if least is not None and least > one.served:
        one.served = least
