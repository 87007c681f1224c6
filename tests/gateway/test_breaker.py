"""A breaker opens after failures that no single caller explains, or after a canary without a token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import EngineFailedError, EngineTimeoutError, EngineUnavailableError
from appliance.gateway.breaker import CAUSES, Breaker, Evidence, cause_of

THRESHOLD = 3
FAILURES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=40)


@given(FAILURES)
def test_the_failures_of_one_caller_never_take_a_replica_down(failures: list[tuple[str, int]]) -> None:
    breaker = Breaker(THRESHOLD)
    for _, request in failures:
        assert not breaker.failed("an error", 1.0, evidence=Evidence("a", request))
    assert breaker.up
    assert breaker.failures <= THRESHOLD


@given(FAILURES)
def test_enough_different_requests_of_two_callers_take_it_down(
    failures: list[tuple[str, int]],
) -> None:
    breaker = Breaker(THRESHOLD)
    seen: set[tuple[str, int]] = set()
    for caller, request in failures:
        seen.add((caller, request))
        different = sum(min(THRESHOLD, sum(1 for one, _ in seen if one == name)) for name in "abc")
        expected = len({one for one, _ in seen}) >= 2 and different >= THRESHOLD
        assert breaker.failed("an error", 1.0, evidence=Evidence(caller, request)) is expected
        if expected:
            assert (breaker.up, breaker.why) == (False, "an error")
            return
    assert breaker.up


@given(FAILURES, st.integers(0, 39))
def test_a_success_resets_the_failures(failures: list[tuple[str, int]], at: int) -> None:
    breaker = Breaker(THRESHOLD)
    for index, (caller, request) in enumerate(failures):
        if index == at:
            breaker.succeeded()
            assert (breaker.up, breaker.failures) == (True, 0)
        breaker.failed("an error", 1.0, evidence=Evidence(caller, request))


def test_a_canary_without_a_token_takes_it_down_and_a_success_restores_it() -> None:
    breaker = Breaker(THRESHOLD)
    assert breaker.failed("no token", 10.0)
    assert (breaker.up, breaker.probe_at) == (False, 11.0)
    assert not breaker.failed("still none", 11.0), "it was down already"
    waits = []
    for _ in range(6):
        breaker.probe_failed("still none", 20.0)
        waits.append(breaker.probe_at - 20.0)
    assert waits == [2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    breaker.succeeded()
    assert breaker.up
    assert breaker.why == ""


def test_the_cause_is_that_of_the_last_failure_and_ends_with_it() -> None:
    breaker = Breaker(THRESHOLD)
    causes = [breaker.cause]
    breaker.failed("no connection", 1.0, cause="unreachable")
    causes.append(breaker.cause)
    breaker.probe_failed("too late", 2.0, cause="timeout")
    causes.append(breaker.cause)
    breaker.succeeded()
    causes.append(breaker.cause)
    assert causes == [None, "unreachable", "timeout", None]


def test_every_error_of_a_connection_has_a_cause() -> None:
    errors = (EngineUnavailableError("x"), EngineTimeoutError("x"), EngineFailedError("x"))
    assert [cause_of(error) for error in errors] == ["unreachable", "timeout", "no-token"]
    assert {cause_of(error) for error in errors} <= set(CAUSES)
