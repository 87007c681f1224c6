"""The verdict of a report: SLOs, invalid runs, goodput, fairness."""

from __future__ import annotations

import pytest

from appliance.contract.model import Slo
from loadtests import html
from loadtests.collect import Collector
from loadtests.estimates import wilson
from loadtests.outcome import Cause
from loadtests.parameters import LoadLimits
from loadtests.report import INTERRUPTED, INVALID, MISSED, PASS, Report, meets, summarise
from loadtests.sample import Sample
from tests.loadtests.samples import a_sample, collected, heartbeats, plan, report_on


def test_the_verdict_is_that_of_the_slos() -> None:
    slo = Slo(ttft_p99_ms=1000, tpot_p99_ms=150, error_rate=0.5)
    assert report_on(*[a_sample(0.5) for _ in range(10)], slo=slo).exit_code == PASS
    assert report_on(*[a_sample(0.5) for _ in range(10)], a_sample(1.5), slo=slo).exit_code == MISSED
    assert report_on(a_sample(0.5), a_sample(0.5, "truncated"), slo=slo).exit_code == PASS
    report = report_on(a_sample(0.5), a_sample(0.1, "truncated"), a_sample(0.1, "truncated"), slo=slo)
    assert (report.exit_code, report.failures) == (MISSED, {"truncated": 2})
    assert report.percentiles["TTFT"]["p50"] == 500, "a failed request has no part in the latencies"
    assert report_on().exit_code == INVALID
    assert report_on(a_sample(0.5, "truncated"), slo=slo).exit_code == MISSED
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("slo", "name"),
    [
        (Slo(tpot_p99_ms=50), "TPOT p99"),
        (Slo(itl_max_ms=50), "max ITL"),
        (Slo(e2e_p99_ms=900), "E2E p99"),
        (Slo(ttft_p99_ms=400, goodput_share=0.9), "good share"),
    ],
)
def test_each_slo_can_be_missed(slo: Slo, name: str) -> None:
    report = report_on(a_sample(), slo=slo)
    assert report.exit_code == MISSED
    assert name in [check.name for check in report.checks if not check.holds]
    assert report.goodput is not None
    assert report.goodput.value == 0, "a request that misses one bound does not count as goodput"


def test_goodput_counts_requests_that_meet_every_bound() -> None:
    slo = Slo(ttft_p99_ms=1000, tpot_p99_ms=150, error_rate=1)
    assert meets(a_sample(0.5), slo)
    assert not meets(a_sample(1.5), slo)
    assert not meets(a_sample(0.5, "truncated"), slo)
    report = report_on(a_sample(0.5), a_sample(1.5), a_sample(0.5, "503"), a_sample(0.5), slo=slo)
    assert report.goodput is not None
    assert report.goodput.value == pytest.approx(2 / report.duration_s)
    assert report.intervals["good share"] == wilson(2, 4)


def test_a_cancelled_request_is_neither_good_nor_failed() -> None:
    report = report_on(a_sample(), a_sample(0.1, Cause.CANCELLED), slo=Slo())
    assert (report.requests, report.cancelled, report.failures, report.exit_code) == (1, 1, {}, PASS)


def test_the_warmup_is_not_measured() -> None:
    slow = a_sample(30.0)
    slow.warmup = True
    report = report_on(slow, a_sample(at=10.0))
    assert (report.requests, report.warmup_requests) == (1, 1)
    assert report.percentiles["TTFT"]["max"] == pytest.approx(500)


def test_responses_without_streaming_have_no_slo_for_a_first_token() -> None:
    whole = a_sample()
    whole.streamed = False
    report = report_on(whole, slo=Slo(e2e_p99_ms=5000))
    assert [check.name for check in report.checks] == ["E2E p99", "errors"]
    assert report.exit_code == PASS


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (collected(a_sample(), beats=heartbeats(cpu=0.95)), "used 95% of its core"),
        (collected(a_sample(), beats=heartbeats(lag=0.4)), "lag p95 is 400 ms"),
        (collected(a_sample(), notes=(INTERRUPTED,)), "interrupted"),
        (collected(a_sample(), a_sample(cause=Cause.CLIENT_LIMIT)), "1 requests were not sent"),
        (collected(a_sample(cause=Cause.CANCELLED)), "no request was made"),
    ],
)
def test_an_invalid_run_names_its_reason(run: Collector, reason: str) -> None:
    report = summarise(run, plan())
    assert report.exit_code == INVALID
    assert reason in " ".join(report.invalid)
    assert "INVALID" in html.render(report)


def response(status: int, cause: str = "", detail: str = "") -> Sample:
    sample = a_sample(0.5, cause)
    sample.status, sample.detail = status, detail
    return sample


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([response(0, "no answer (ConnectionRefusedError)")] * 3, "no request got a response (3 x no answer (Conn"),
        (
            [response(0, "timeout"), response(0, "no answer (X)")],
            "no request got a response (1 x timeout, and others)",
        ),
        (
            [response(400, "status 400", "no\nsuch template")] * 2,
            "every request was rejected (2 x status 400: no such t",
        ),
        ([response(401, "status 401"), response(404, "status 404")], "every request was rejected"),
        ([response(308, "status 308")], "every request was rejected (1 x status 308)"),
    ],
)
def test_a_run_without_a_served_request_is_invalid(samples: list[Sample], reason: str) -> None:
    report = report_on(*samples)
    assert report.exit_code == INVALID
    assert reason in report.invalid[0]


@pytest.mark.parametrize(
    "samples",
    [
        [response(429, "429")] * 3,
        [response(503, "503")] * 3,
        [response(500, "status 500"), response(400, "status 400")],
        [response(400, "status 400"), response(200)],
        [response(0, "timeout"), response(503, "503")],
        [response(0, "timeout"), response(400, "status 400")],
    ],
)
def test_a_service_that_fails_under_load_misses_its_slo(samples: list[Sample]) -> None:
    assert report_on(*samples, slo=Slo()).exit_code == MISSED


def test_late_sending_invalidates_a_run_and_counts_as_latency() -> None:
    late = a_sample(at=10.0)
    late.scheduled_at = 9.0
    assert late.ttft == pytest.approx(1.5), "a late client must not make the service look fast"
    assert "late sending p99 is 1000 ms" in summarise(collected(late), plan()).invalid[0]


def test_a_busy_client_within_its_limits_is_valid() -> None:
    allowed = plan().model_copy(update={"limits": LoadLimits(cpu_share=1, lag_ms=1000)})
    assert summarise(collected(a_sample(), beats=heartbeats(0.95, 0.4)), allowed).exit_code == PASS


def test_fairness_is_by_waiting_time_and_good_responses() -> None:
    even = report_on(*(a_sample(user=user) for user in range(4) for _ in range(user + 1)))
    assert even.fairness == pytest.approx(1), "more requests of a user do not count as an advantage"
    starved = report_on(a_sample(user=0), a_sample(user=1, cause="503"), a_sample(user=2))
    assert starved.fairness == pytest.approx(2 / 3)
