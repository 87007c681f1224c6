"""Fair admission: the choice of the next request, in any order of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.gateway.fair_queue import MAX_IDLE_FLOWS, FairQueue


@dataclass(eq=False)
class FakeTicket:
    user: str
    weight: float = 1.0
    key_id: str = ""
    size: int = 1


def serve(queue: FairQueue[FakeTicket], requests: int) -> Iterator[FakeTicket]:
    """Run ``requests`` of the waiting ones, one after the other on a single slot, with 100 tokens each."""
    for _ in range(requests):
        ticket = queue.next(1)
        assert ticket is not None
        yield ticket
        queue.charge(ticket, 100)
        queue.finish(ticket)


def test_a_single_user_leaves_slots_for_the_next_one() -> None:
    queue: FairQueue[FakeTicket] = FairQueue(1 / 8)
    running = 0
    while queue.enter(FakeTicket("flood"), 64 - running):
        running += 1
    assert running == 56, "a single user gets seven eighths"
    assert queue.enter(FakeTicket("quiet"), 64 - running), "without waiting"


def test_without_headroom_one_user_may_take_all() -> None:
    queue: FairQueue[FakeTicket] = FairQueue(0)
    assert [queue.enter(FakeTicket("a"), free) for free in (2, 1, 0)] == [True, True, False]


def test_a_single_slot_serves_every_user() -> None:
    queue: FairQueue[FakeTicket] = FairQueue(1 / 8)
    assert queue.enter(FakeTicket("a"), 1)
    tickets = [FakeTicket("a"), FakeTicket("b")]
    for ticket in tickets:
        queue.wait(ticket)
    queue.charge(FakeTicket("a"), 10)
    queue.finish(FakeTicket("a"))
    assert queue.next(1) is tickets[1], "b has received no service yet"
    queue.finish(FakeTicket("b"))
    assert queue.next(1) is tickets[0]


def test_service_is_shared_by_weight() -> None:
    queue: FairQueue[FakeTicket] = FairQueue(0)
    weights = {"light": 1.0, "heavy": 3.0}
    for user, weight in weights.items():
        for _ in range(400):
            queue.wait(FakeTicket(user, weight))
    served = Counter(ticket.user for ticket in serve(queue, 400))
    assert served["heavy"] / served["light"] == pytest.approx(3, rel=0.05)


def test_absence_earns_no_credit() -> None:
    queue: FairQueue[FakeTicket] = FairQueue(0)
    queue.wait(FakeTicket("busy"))
    queue.wait(FakeTicket("busy"))
    assert queue.next(1) is not None
    queue.charge(FakeTicket("busy"), 1_000_000)
    for _ in range(5):
        queue.wait(FakeTicket("late"))
        queue.wait(FakeTicket("busy"))
    queue.finish(FakeTicket("busy"))
    order = []
    while (ticket := queue.next(1)) is not None:
        order.append(ticket.user)
        queue.charge(ticket, 10)
        queue.finish(ticket)
    assert order.index("busy") <= 1, "a late user does not get a million tokens in advance"


def test_service_without_competition_is_not_a_debt() -> None:
    """Ada used the idle engine all morning, and a new user floods it: her next request does not wait for all of
    it."""
    queue: FairQueue[FakeTicket] = FairQueue(0)
    assert queue.enter(FakeTicket("ada"), 2)
    queue.charge(FakeTicket("ada"), 1_000_000)
    queue.finish(FakeTicket("ada"))
    assert queue.enter(FakeTicket("bob"), 2)
    assert queue.enter(FakeTicket("bob"), 1)
    for _ in range(50):
        queue.wait(FakeTicket("bob"))
    queue.wait(FakeTicket("ada"))
    order: list[str] = []
    while len(order) < 4:
        queue.finish(FakeTicket("bob"))
        ticket = queue.next(1)
        assert ticket is not None
        order.append(ticket.user)
        queue.charge(ticket, 100)
    assert "ada" in order[:2], order


def test_a_light_user_without_pauses_causes_no_debt_of_others() -> None:
    """A small request of eve always runs: a user of the remaining slots owes no new user for that."""
    queue: FairQueue[FakeTicket] = FairQueue(0)
    assert queue.enter(FakeTicket("eve"), 3)
    for _ in range(10):
        assert queue.enter(FakeTicket("ada"), 2)
        queue.charge(FakeTicket("ada"), 100_000)
        queue.finish(FakeTicket("ada"))
    assert queue.enter(FakeTicket("bob"), 2)
    for _ in range(50):
        queue.wait(FakeTicket("bob"))
    queue.wait(FakeTicket("ada"))
    order: list[str] = []
    while len(order) < 4:
        queue.charge(FakeTicket("bob"), 100)
        queue.finish(FakeTicket("bob"))
        ticket = queue.next(1)
        assert ticket is not None
        order.append(ticket.user)
        if ticket.user == "ada":
            break
    assert order[-1] == "ada", order


def test_a_users_agent_does_not_starve_the_users_chat() -> None:
    queue: FairQueue[FakeTicket] = FairQueue(0)
    for _ in range(50):
        queue.wait(FakeTicket("ada", key_id="agent"))
    started = queue.next(1)
    assert started is not None
    queue.charge(started, 1000)
    chat = FakeTicket("ada", key_id="chat")
    queue.wait(chat)
    queue.finish(started)
    order: list[FakeTicket] = []
    while len(order) < 2:
        ticket = queue.next(1)
        assert ticket is not None
        order.append(ticket)
        queue.charge(ticket, 1000)
        queue.finish(ticket)
    assert chat in order


@pytest.mark.parametrize("users", [("ada", "ada"), ("ada", "bob")])
def test_each_request_has_the_weight_of_its_key(users: tuple[str, str]) -> None:
    """Within a user as between users: a heavy key does not change the weight of the user's light one."""
    queue: FairQueue[FakeTicket] = FairQueue(0)
    for user, (key_id, weight) in zip(users, {"light": 1.0, "heavy": 3.0}.items(), strict=True):
        for _ in range(400):
            queue.wait(FakeTicket(user, weight, key_id))
    served = Counter(ticket.key_id for ticket in serve(queue, 400))
    assert served["heavy"] / served["light"] == pytest.approx(3, rel=0.05)


def test_a_request_of_many_sequences_takes_as_many_slots() -> None:
    queue: FairQueue[FakeTicket] = FairQueue(1 / 8)
    free = 64
    while queue.enter(FakeTicket("flood", size=16), free):
        free -= 16
    assert free == 16, "the headroom counts slots, not requests"
    assert queue.enter(FakeTicket("quiet"), free)
    assert queue.running == 49


def test_idle_counters_are_bounded() -> None:
    queue: FairQueue[FakeTicket] = FairQueue(0)
    for number in range(MAX_IDLE_FLOWS + 500):
        assert queue.enter(FakeTicket(f"u{number}"), 1)
        queue.finish(FakeTicket(f"u{number}"))
    assert len(queue.flows) <= MAX_IDLE_FLOWS + 1


class FairQueueMachine(RuleBasedStateMachine):
    """Any order of requests, ends, disconnects and changes of the slots."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[FakeTicket] = FairQueue(1 / 4)
        self.slots = 4
        self.running: list[FakeTicket] = []
        self.waiting: list[FakeTicket] = []

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    @rule(user=st.sampled_from("abcd"), weight=st.sampled_from([0.5, 1.0, 4.0]), key_id=st.sampled_from("xy"))
    def request(self, user: str, weight: float, key_id: str) -> None:
        ticket = FakeTicket(user, weight, key_id)
        if self.queue.enter(ticket, self.free):
            assert self.free > 0
            assert not any(ticket.user == user for ticket in self.waiting), (
                "a request does not overtake others of its user"
            )
            self.running.append(ticket)
            return
        assert self.queue.wait(ticket) == len(self.waiting) + 1
        self.waiting.append(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(0, 5000))
    def end(self, data: st.DataObject, tokens: int) -> None:
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        self.queue.charge(ticket, tokens)
        self.queue.finish(ticket)
        self.pump()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(ticket)
        assert self.queue.leave(ticket)
        assert not self.queue.leave(ticket)
        self.pump()

    @rule(slots=st.integers(0, 8))
    def room_changes(self, slots: int) -> None:
        self.slots = slots
        self.pump()

    def pump(self) -> None:
        while (ticket := self.queue.next(self.free)) is not None:
            mine = (other for other in self.waiting if (other.user, other.key_id) == (ticket.user, ticket.key_id))
            assert ticket is next(mine), "the requests of a key keep their order"
            self.waiting.remove(ticket)
            self.running.append(ticket)

    @invariant()
    def counts_agree(self) -> None:
        assert self.queue.waiting == len(self.waiting)
        assert self.queue.running == len(self.running)
        for user in "abcd":
            assert self.queue.waiting_of(user) == sum(ticket.user == user for ticket in self.waiting)

    @invariant()
    def users_without_a_slot_do_not_wait_while_one_is_free(self) -> None:
        idle = {ticket.user for ticket in self.waiting} - {ticket.user for ticket in self.running}
        assert not (idle and self.free > 0)


TestMachine = FairQueueMachine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.floats(0, 0.9), st.integers(1, 64))
def test_one_request_can_always_start(headroom: float, slots: int) -> None:
    queue: FairQueue[FakeTicket] = FairQueue(headroom)
    assert queue.enter(FakeTicket("a", 0.001), slots)
