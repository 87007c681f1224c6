"""Requests of a model over its replicas, in any order of beginnings, ends, failures, disconnects and canaries."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.errors import (
    EngineDrainedError,
    EngineUnavailableError,
    QueueFullError,
    RateLimitError,
    RequestError,
)
from appliance.gateway.breaker import Breaker
from appliance.gateway.fair_queue import FairQueue
from appliance.gateway.routing import Replica, Service
from appliance.http1.client import Pool

SLOTS = 3
NO_POOL = cast("Pool", None)
"""These tests open no connection."""


@dataclass(eq=False)
class FakeWaiter:
    """A request that records its events."""

    user: str
    chat_key: bytes | None
    size: int
    key_id: str = "key"
    weight: float = 1.0
    replica: Replica | None = None
    was_open: bool = True
    had_room: bool = True
    errors: list[RequestError] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)

    def granted(self, replica: Replica) -> None:
        assert self.replica is None, "a request runs once"
        assert not self.errors, "a rejected request gets no slot"
        self.replica = replica
        self.was_open = replica.open
        self.had_room = replica.in_flight - self.size < replica.slots

    def refused(self, error: RequestError) -> None:
        assert self.replica is None, "a running request is not rejected"
        self.errors.append(error)


class RoutingMachine(RuleBasedStateMachine):
    """Three replicas of one model."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas = [Replica(f"e{i}", "m", "generate", SLOTS, NO_POOL, Breaker(2)) for i in range(3)]
        self.service = Service(
            "m", "generate", 4096, self.replicas, FairQueue(1 / 8), 4, 1.25,
            on_demand=False, notice=lambda: None, cap_tokens=True, full=lambda: self.service.queue.waiting >= 8,
        )  # fmt: skip
        self.waiting: list[FakeWaiter] = []
        self.running: list[FakeWaiter] = []
        self.now = 0.0

    def sort(self) -> None:
        """Sort the requests by their events since the last step."""
        for waiter in [*self.waiting]:
            if waiter.replica is not None:
                assert waiter.was_open, "a replica that is down or drained gets no new request"
                assert waiter.had_room, "nor does a full one"
                self.running.append(waiter)
            if waiter.replica is not None or waiter.errors:
                self.waiting.remove(waiter)

    @rule(user=st.sampled_from("abc"), chat=st.none() | st.binary(min_size=1, max_size=2), size=st.integers(1, 3))
    def request(self, user: str, chat: bytes | None, size: int) -> None:
        self.now += 1
        waiter = FakeWaiter(user, chat, size)
        served = self.service.served
        mine = sum(other.user == user for other in self.waiting)
        try:
            position = self.service.submit(waiter, self.now)
        except EngineUnavailableError:
            assert not served
            assert not self.service.drained
            return
        except EngineDrainedError:
            assert not served
            assert self.service.drained
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
        """The replica fails before the first byte: the request fails over, or ends."""
        self.now += 1
        waiter = data.draw(st.sampled_from(self.running))
        old = waiter.replica
        assert old is not None
        if old.breaker.failed("an error", self.now):
            self.service.went_down()
        waiter.tried.add(old.name)
        new = self.service.move(waiter, old, waiter.tried)
        if new is None:
            assert all(not replica.open or replica.name in waiter.tried for replica in self.replicas)
            self.running.remove(waiter)
            self.service.release(old, waiter, self.now)
        else:
            assert new.open
            assert new.name not in waiter.tried, "a request is not sent to the same replica twice"
            waiter.replica = new
        self.sort()

    @rule(index=st.integers(0, 2))
    def canary(self, index: int) -> None:
        self.replicas[index].breaker.succeeded()
        self.service.pump()
        self.sort()

    @rule(index=st.integers(0, 2), reason=st.sampled_from(["hot", "lost"]))
    def drain(self, index: int, reason: str) -> None:
        replica = self.replicas[index]
        before = replica.in_flight
        self.service.drain(replica, reason)
        assert replica.in_flight == before, "its running requests finish"
        self.sort()

    @rule(index=st.integers(0, 2))
    def undrain(self, index: int) -> None:
        self.service.undrain(self.replicas[index])
        self.sort()

    @invariant()
    def slots_in_use_are_those_of_running_requests(self) -> None:
        for replica in self.replicas:
            assert replica.in_flight == sum(w.size for w in self.running if w.replica is replica)
        assert self.service.queue.waiting == len(self.waiting)
        assert (self.service.oldest_wait is None) == (not self.waiting)

    @invariant()
    def no_request_waits_without_a_replica_or_a_running_request(self) -> None:
        if not self.service.served:
            assert not self.waiting
        if not self.running:
            assert not self.waiting, "no request waits while every slot is free"


TestMachine = RoutingMachine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


MAX_WAIT_S = 10.0


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Swaps(RuleBasedStateMachine):
    """Requests for one model on demand, over any order of arrivals, swaps, failures, and time between them.

    The model of the bound: outside swaps each request has ``MAX_WAIT_S`` in all, inside one its deadline.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        replica = Replica("e", "m", "generate", 1, NO_POOL, Breaker(2), resident=False)
        self.service = Service(
            "m", "generate", 4096, [replica], FairQueue(1 / 8), 100, 1.25,
            on_demand=True, notice=lambda: None, cap_tokens=True, full=lambda: False,
        )  # fmt: skip
        self.replica = replica
        self.waiting: dict[int, tuple[FakeWaiter, float]] = {}
        self.swap: AbstractContextManager[None] | None = None
        self.swap_ends_at = 0.0

    def tick(self) -> None:
        """Check the deadline of each waiting request, as its tick does."""
        for key, (waiter, waited) in [*self.waiting.items()]:
            if waiter.replica is not None:
                del self.waiting[key]
                continue
            error = self.service.overdue(waiter, MAX_WAIT_S, self.clock.now)
            late = self.clock.now > self.swap_ends_at if self.swap else waited > MAX_WAIT_S
            assert (error is not None) == late
            if error is not None:
                assert error.code == "queue_timeout"
                assert ("was not loaded within" in str(error)) == (self.swap is not None)
                self.service.leave(waiter)
                del self.waiting[key]

    @rule()
    def request(self) -> None:
        waiter = FakeWaiter("u", None, 1)
        self.service.submit(waiter, self.clock.now)
        if waiter.replica is None:
            self.waiting[id(waiter)] = (waiter, 0.0)

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        for key, (waiter, waited) in self.waiting.items():
            self.waiting[key] = (waiter, waited + (0 if self.swap else seconds))
        self.tick()

    @precondition(lambda self: self.swap is None and not self.replica.resident)
    @rule(within_s=st.sampled_from([5.0, 30.0]))
    def begin(self, within_s: float) -> None:
        self.swap = self.service.swapping(self.clock, within_s)
        self.swap_ends_at = self.clock.now + within_s
        self.swap.__enter__()

    @precondition(lambda self: self.swap is not None)
    @rule(loaded=st.booleans())
    def end(self, loaded: bool) -> None:
        assert self.swap is not None
        if loaded:
            self.replica.resident = True
            self.service.pump()
        self.swap.__exit__(None, None, None)
        self.swap = None
        assert self.service.loading_until is None
        self.tick()

    @precondition(lambda self: self.replica.resident)
    @rule()
    def unload(self) -> None:
        self.replica.resident = False


TestSwaps = Swaps.TestCase
TestSwaps.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_failed_swap_is_over() -> None:
    service = Swaps().service

    def fail() -> None:
        with service.swapping(Clock(), 5):
            assert service.loading_until == 5
            raise EngineUnavailableError("it did not load")

    with pytest.raises(EngineUnavailableError):
        fail()
    assert service.loading_until is None


def test_a_model_that_is_served_during_a_swap_keeps_the_queues_bound() -> None:
    machine = Swaps()
    machine.replica.resident = True
    with machine.service.swapping(machine.clock, 600):
        machine.request()
        machine.request()
        assert machine.service.loading_until is None
        machine.wait(9)
        assert len(machine.waiting) == 1
        machine.wait(2)
        assert not machine.waiting


def pair(*, on_demand: bool) -> Service:
    """Return a model with two replicas that are loaded unless they are on demand."""
    resident = not on_demand
    replicas = [Replica(f"e{i}", "m", "generate", 1, NO_POOL, Breaker(2), resident=resident) for i in range(2)]
    return Service(
        "m", "generate", 4096, replicas, FairQueue(0.0), 100, 1.25,
        on_demand=on_demand, notice=lambda: None, cap_tokens=True, full=lambda: False,
    )  # fmt: skip


def test_a_drain_is_named_only_if_it_alone_is_the_cause() -> None:
    service = pair(on_demand=False)
    left, right = service.replicas
    service.drain(left, "hot")
    right.breaker.failed("no token", 0.0)
    with pytest.raises(EngineUnavailableError, match="No engine of m is up"):
        service.submit(FakeWaiter("u", None, 1), 0.0)
    service.drain(right, "hot")
    with pytest.raises(EngineDrainedError, match=r"m accepts no new requests: hot$"):
        service.submit(FakeWaiter("u", None, 1), 0.0)


def test_a_model_on_demand_waits_for_its_other_engine_and_not_for_drained_ones() -> None:
    service = pair(on_demand=True)
    left, right = service.replicas
    service.drain(left, "hot")
    waiter = FakeWaiter("u", None, 1)
    assert service.submit(waiter, 0.0) == 1
    service.drain(right, "lost")
    assert [str(error) for error in waiter.errors] == ["m accepts no new requests: hot; lost"]
    with pytest.raises(EngineDrainedError):
        service.submit(FakeWaiter("u", None, 1), 0.0)
    service.undrain(right)
    assert service.submit(FakeWaiter("u", None, 1), 0.0) == 1, "it waits for a load again"
