"""A model's requests over its replicas, in any order of beginnings, ends, failures, departures and canaries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.errors import EngineUnavailableError, QueueFullError, RateLimitError, RequestError
from appliance.gateway.breaker import Breaker
from appliance.gateway.queue import FairQueue
from appliance.gateway.route import Replica, Service
from appliance.gateway.upstream import Pool

SLOTS = 3
NOBODY = cast("Pool", None)
"""No connection is opened by what is looked at here."""


@dataclass(eq=False)
class Waiter:
    """A request that remembers what it was told."""

    user: str
    key: bytes | None
    size: int
    line: str = "key"
    weight: float = 1.0
    replica: Replica | None = None
    was_open: bool = True
    had_room: bool = True
    errors: list[RequestError] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)

    def granted(self, replica: Replica) -> None:
        assert self.replica is None, "a request runs once"
        assert not self.errors, "who was refused gets no slot"
        self.replica = replica
        self.was_open = replica.open
        self.had_room = replica.in_flight - self.size < replica.slots

    def refused(self, error: RequestError) -> None:
        assert self.replica is None, "who runs is not refused"
        self.errors.append(error)


class Machine(RuleBasedStateMachine):
    """Three replicas of one model."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas = [Replica(f"e{i}", "m", "generate", SLOTS, NOBODY, Breaker(2)) for i in range(3)]
        self.service = Service(
            "m", "generate", 4096, self.replicas, FairQueue(1 / 8), 4, 1.25,
            on_demand=False, notice=lambda: None, full=lambda: self.service.queue.waiting >= 8,
        )  # fmt: skip
        self.waiting: list[Waiter] = []
        self.running: list[Waiter] = []
        self.now = 0.0

    def sort(self) -> None:
        """Look who was told what since the last step."""
        for waiter in [*self.waiting]:
            if waiter.replica is not None:
                assert waiter.was_open, "nothing new goes to a replica that is left alone"
                assert waiter.had_room, "nor to one that is full"
                self.running.append(waiter)
            if waiter.replica is not None or waiter.errors:
                self.waiting.remove(waiter)

    @rule(user=st.sampled_from("abc"), chat=st.none() | st.binary(min_size=1, max_size=2), size=st.integers(1, 3))
    def ask(self, user: str, chat: bytes | None, size: int) -> None:
        self.now += 1
        waiter = Waiter(user, chat, size)
        served = self.service.served
        mine = sum(other.user == user for other in self.waiting)
        try:
            position = self.service.submit(waiter, self.now)
        except EngineUnavailableError:
            assert not served
            return
        except RateLimitError:
            assert mine >= 4
            return
        except QueueFullError:
            assert len(self.waiting) >= 8
            return
        assert (position == 0) is (waiter.replica is not None)
        self.waiting.append(waiter)
        self.sort()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.now += 1
        waiter = data.draw(st.sampled_from(self.running))
        self.running.remove(waiter)
        assert waiter.replica is not None
        self.service.release(waiter.replica, waiter, self.now)
        self.sort()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(waiter)
        self.service.leave(waiter)
        self.service.leave(waiter)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """The replica breaks before the first byte: the request moves on, or ends."""
        self.now += 1
        waiter = data.draw(st.sampled_from(self.running))
        old = waiter.replica
        assert old is not None
        if old.breaker.failed("it broke", self.now):
            self.service.went_down()
        waiter.tried.add(old.name)
        new = self.service.move(waiter, old, waiter.tried)
        if new is None:
            assert all(not replica.open or replica.name in waiter.tried for replica in self.replicas)
            self.running.remove(waiter)
            self.service.release(old, waiter, self.now)
        else:
            assert new.open
            assert new.name not in waiter.tried, "nobody goes twice to the same"
            waiter.replica = new
        self.sort()

    @rule(index=st.integers(0, 2))
    def canary(self, index: int) -> None:
        self.replicas[index].breaker.succeeded()
        self.service.pump()
        self.sort()

    @invariant()
    def slots_in_use_are_those_of_who_runs(self) -> None:
        for replica in self.replicas:
            assert replica.in_flight == sum(w.size for w in self.running if w.replica is replica)
        assert self.service.queue.waiting == len(self.waiting) == len(self.service.waiting_since)

    @invariant()
    def nobody_waits_for_what_will_not_come(self) -> None:
        if not self.service.served:
            assert not self.waiting
        if not self.running:
            assert not self.waiting, "with every slot free nobody waits"


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
