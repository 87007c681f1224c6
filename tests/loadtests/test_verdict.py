"""From samples to a verdict: statistics, SLOs, invalid runs, baselines, the search. All pure."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.contract.model import Slo
from appliance.system.nvidia_smi import parse_rows
from loadtests import html, junit
from loadtests.baseline import above, compare, differences
from loadtests.collect import Collector
from loadtests.estimates import Interval, batch_means, jain, percentile, percentile_interval, wilson
from loadtests.gpu import FIELDS, sample_of, throttled
from loadtests.outcome import Cause
from loadtests.parameters import LoadLimits, LoadPlan, Parameters
from loadtests.report import INTERRUPTED, INVALID, MISSED, PASS, Report, meets, summarise
from loadtests.sample import Gaps, Heartbeat, Sample, SampleLine
from loadtests.scenarios import SCENARIOS, Scenario, Turn
from loadtests.scrape import read_metrics
from loadtests.search import Search, SearchStep
from loadtests.token_costs import TokenCosts


def made(ttft: float = 0.5, cause: str = "", *, user: int = 0, at: float = 0.0, tokens: int = 11) -> Sample:
    """An answer with its first token after ``ttft`` seconds and the last one a second later."""
    sample = Sample(at, user, "m", status=200, completion_tokens=tokens, chunks=tokens, finish_reason="stop")
    sample.first_token_at, sample.last_token_at = at + ttft, at + ttft + 1.0
    sample.ended_at, sample.cause, sample.done = at + ttft + 1.0, cause, True
    sample.gaps = Gaps()
    sample.gaps.add(0.1, at + 1)
    return sample


def collected(*samples: Sample, beats: tuple[Heartbeat, ...] = (), notes: tuple[str, ...] = ()) -> Collector:
    found = Collector()
    found.add(SampleLine(began=0.0))
    for sample in samples:
        found.add(SampleLine(sample=sample))
    for beat in beats:
        found.add(SampleLine(beat=beat))
    for note in notes:
        found.add(SampleLine(note=note))
    return found


def plan(slo: Slo | None = None, **parameters: float) -> LoadPlan:
    size = Parameters.model_validate({"duration_s": None, **parameters})
    return LoadPlan(scenario="chat", parameters=size, models=("m",), slo=slo or Slo(error_rate=0.5))


def judged(*samples: Sample, slo: Slo | None = None) -> Report:
    return summarise(collected(*samples), plan(slo))


def test_the_verdict() -> None:
    slo = Slo(ttft_p99_ms=1000, tpot_p99_ms=150, error_rate=0.5)
    assert judged(*[made(0.5) for _ in range(10)], slo=slo).exit_code == PASS
    assert judged(*[made(0.5) for _ in range(10)], made(1.5), slo=slo).exit_code == MISSED
    assert judged(made(0.5), made(0.5, "truncated"), slo=slo).exit_code == PASS
    report = judged(made(0.5), made(0.1, "truncated"), made(0.1, "truncated"), slo=slo)
    assert (report.exit_code, report.failures) == (MISSED, {"truncated": 2})
    assert report.percentiles["TTFT"]["p50"] == 500, "a failed request lends no latency"
    assert judged().exit_code == INVALID
    assert judged(made(0.5, "truncated"), slo=slo).exit_code == MISSED
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
    report = judged(made(), slo=slo)
    assert report.exit_code == MISSED
    assert name in [check.name for check in report.checks if not check.holds]
    assert report.goodput is not None
    assert report.goodput.value == 0, "a request that misses one bound is no goodput"


def test_goodput_counts_what_meets_every_bound() -> None:
    slo = Slo(ttft_p99_ms=1000, tpot_p99_ms=150, error_rate=1)
    assert meets(made(0.5), slo)
    assert not meets(made(1.5), slo)
    assert not meets(made(0.5, "truncated"), slo)
    report = judged(made(0.5), made(1.5), made(0.5, "503"), made(0.5), slo=slo)
    assert report.goodput is not None
    assert report.goodput.value == pytest.approx(2 / report.duration_s)
    assert report.intervals["good share"] == wilson(2, 4)


def test_what_we_left_ourselves_is_neither_good_nor_bad() -> None:
    report = judged(made(), made(0.1, Cause.CANCELLED), slo=Slo())
    assert (report.requests, report.cancelled, report.failures, report.exit_code) == (1, 1, {}, PASS)


def test_the_warmup_is_left_out() -> None:
    slow = made(30.0)
    slow.warmup = True
    report = judged(slow, made(at=10.0))
    assert (report.requests, report.warmup_requests) == (1, 1)
    assert report.percentiles["TTFT"]["max"] == pytest.approx(500)


def test_answers_in_one_piece_are_held_to_no_first_token() -> None:
    whole = made()
    whole.streamed = False
    report = judged(whole, slo=Slo(e2e_p99_ms=5000))
    assert [check.name for check in report.checks] == ["E2E p99", "errors"]
    assert report.exit_code == PASS


def beats(cpu: float = 0.1, lag: float = 0.0, count: int = 10) -> tuple[Heartbeat, ...]:
    return tuple(Heartbeat(float(i), cpu, lag, 1, 1) for i in range(count))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (collected(made(), beats=beats(cpu=0.95)), "used 95% of its core"),
        (collected(made(), beats=beats(lag=0.4)), "lag p95 is 400 ms"),
        (collected(made(), notes=(INTERRUPTED,)), "interrupted"),
        (collected(made(), made(cause=Cause.CLIENT_LIMIT)), "1 requests were not sent"),
        (collected(made(cause=Cause.CANCELLED)), "no request was made"),
    ],
)
def test_a_run_that_proves_nothing_says_so(run: Collector, reason: str) -> None:
    report = summarise(run, plan())
    assert report.exit_code == INVALID
    assert reason in " ".join(report.invalid)
    assert "INVALID" in html.render(report)


def answered(status: int, cause: str = "", detail: str = "") -> Sample:
    sample = made(0.5, cause)
    sample.status, sample.detail = status, detail
    return sample


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([answered(0, "no answer (ConnectionRefusedError)")] * 3, "no request was answered (3 x no answer (Conn"),
        (
            [answered(0, "timeout"), answered(0, "no answer (X)")],
            "no request was answered (1 x timeout, and others)",
        ),
        (
            [answered(400, "status 400", "no\nsuch template")] * 2,
            "every request was refused (2 x status 400: no such t",
        ),
        ([answered(401, "status 401"), answered(404, "status 404")], "every request was refused"),
        ([answered(308, "status 308")], "every request was refused (1 x status 308)"),
    ],
)
def test_a_run_in_which_nothing_was_served_measured_no_service(samples: list[Sample], reason: str) -> None:
    report = judged(*samples)
    assert report.exit_code == INVALID
    assert reason in report.invalid[0]


@pytest.mark.parametrize(
    "samples",
    [
        [answered(429, "429")] * 3,
        [answered(503, "503")] * 3,
        [answered(500, "status 500"), answered(400, "status 400")],
        [answered(400, "status 400"), answered(200)],
        [answered(0, "timeout"), answered(503, "503")],
        [answered(0, "timeout"), answered(400, "status 400")],
    ],
)
def test_a_service_that_fails_under_load_misses_its_slo(samples: list[Sample]) -> None:
    assert judged(*samples, slo=Slo()).exit_code == MISSED


def test_late_sending_invalidates_and_counts_into_latency() -> None:
    late = made(at=10.0)
    late.scheduled_at = 9.0
    assert late.ttft == pytest.approx(1.5), "a late client must not make the service look fast"
    assert "late sending p99 is 1000 ms" in summarise(collected(late), plan()).invalid[0]


def test_a_busy_client_is_no_matter_within_its_limits() -> None:
    allowed = plan().model_copy(update={"limits": LoadLimits(cpu_share=1, lag_ms=1000)})
    assert summarise(collected(made(), beats=beats(0.95, 0.4)), allowed).exit_code == PASS


# Statistics.


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_percentiles_are_values_that_occurred(values: list[float], share: float) -> None:
    value = percentile(values, share)
    assert value in values
    assert sum(v <= value for v in values) >= share * len(values) - 1e-9
    around = percentile_interval(values, share)
    assert around.low is None or around.low <= value
    assert around.high is None or value <= around.high


def test_intervals_cover_what_they_promise() -> None:
    rng = random.Random(7)
    hits = sum(
        (i := percentile_interval([rng.random() for _ in range(200)], 0.9)).low is not None
        and i.high is not None
        and i.low <= 0.9 <= i.high
        for _ in range(400)
    )
    assert 0.92 <= hits / 400 <= 1
    assert percentile_interval([1.0] * 50, 0.99).high is None, "50 values do not bound a p99 from above"
    assert percentile_interval([1.0] * 1000, 0.99).high == 1.0


def test_wilson_by_known_values() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    one = wilson(81, 263)
    assert (round(one.low or 0, 4), round(one.high or 0, 4)) == (0.2553, 0.3662)
    assert round(wilson(0, 20).high or 0, 4) == 0.1611
    assert wilson(0, 20).low == 0
    assert wilson(0, 0) == Interval(0.0, 0.0, 1.0)


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=30))
def test_jain(amounts: list[float]) -> None:
    index = jain(amounts)
    assert index is None or 1 / len(amounts) - 1e-9 <= index <= 1 + 1e-9
    assert jain([3.0] * len(amounts)) == pytest.approx(1)
    assert jain([5.0, 0, 0, 0]) == pytest.approx(0.25)


def test_fairness_is_by_waiting_time_and_whole_answers() -> None:
    even = judged(*(made(user=user) for user in range(4) for _ in range(user + 1)))
    assert even.fairness == pytest.approx(1), "who asks more is not treated better"
    starved = judged(made(user=0), made(user=1, cause="503"), made(user=2))
    assert starved.fairness == pytest.approx(2 / 3)


@given(st.lists(st.floats(1e-5, 50), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_gaps_keep_percentiles_to_half_a_percent(values: list[float], share: float) -> None:
    gaps, halves = Gaps(), (Gaps(), Gaps())
    for place, value in enumerate(values):
        gaps.add(value, 1.0)
        halves[place % 2].add(value, 1.0)
    seen = gaps.percentile(share)
    assert seen == pytest.approx(percentile(values, share), rel=0.006)
    assert gaps.longest == max(values)
    halves[0].merge(halves[1])
    assert halves[0].percentile(share) == seen


def test_batch_means() -> None:
    mean = batch_means([10.0] * 10)
    assert mean == Interval(10.0, 10.0, 10.0)
    assert batch_means([1.0, 2.0]) is None
    values = [float(i) for i in range(10)]
    one = batch_means(values)
    assert one is not None
    assert one.high is not None
    assert one.high - 4.5 == pytest.approx(2.262 * statistics.stdev(values) / math.sqrt(10))


# Baselines.


def run_of(ttft: float, count: int = 200, seed: int = 1) -> Report:
    rng = random.Random(seed)
    return judged(*(made(ttft * rng.uniform(0.9, 1.1), at=float(i)) for i in range(count)), slo=Slo())


def test_a_baseline_fails_only_where_intervals_separate() -> None:
    before = run_of(0.5)
    same, worse, better = run_of(0.5, seed=2), run_of(0.8), run_of(0.3)
    assert {c.verdict for c in compare(before, same)} == {"same"}
    assert "TTFT p50" in [c.measure for c in compare(before, worse) if c.verdict == "worse"]
    assert "TTFT p50" in [c.measure for c in compare(before, better) if c.verdict == "better"]
    few = run_of(0.5, count=3)
    assert {c.verdict for c in compare(few, worse) if c.measure == "TTFT p95"} == {"same"}, "too few to tell"
    assert worse.exit_code == PASS
    worse.baseline = compare(before, worse)
    assert worse.exit_code == MISSED


def test_more_errors_are_worse_and_more_goodput_is_better() -> None:
    before = judged(*(made(at=float(i)) for i in range(100)), slo=Slo(error_rate=1))
    now = judged(*(made(cause="503" if i % 3 else "", at=float(i)) for i in range(100)), slo=Slo(error_rate=1))
    verdicts = {c.measure: c.verdict for c in compare(before, now)}
    assert (verdicts["error share"], verdicts["good share"], verdicts["goodput"]) == ("worse", "worse", "worse")
    verdicts = {c.measure: c.verdict for c in compare(now, before)}
    assert (verdicts["error share"], verdicts["good share"]) == ("better", "better")


def test_open_ends_never_separate() -> None:
    assert above(Interval(5, 4, 6), Interval(2, 1, 3))
    assert not above(Interval(5, None, 6), Interval(2, 1, 3))
    assert not above(Interval(5, 4, 6), Interval(2, 1, None))


def test_only_the_same_load_is_compared() -> None:
    report = run_of(0.5, count=20)
    asked = dict(report.parameters)
    assert differences(report, "chat", asked) == []
    assert differences(report, "chat", asked | {"timeout_s": 5}) == []
    assert differences(report, "rag", asked) == ["it ran scenario 'chat', not 'rag'"]
    assert differences(report, "chat", asked | {"users": 99}) == ["its users was 8, not 99"]


# The search.


@given(st.floats(0.05, 900), st.floats(0.5, 50))
def test_the_search_finds_the_highest_load_that_holds(truth: float, start: float) -> None:
    search = Search(start, 1000, resolution=0.1)
    while (load := search.next()) is not None:
        assert 0 < load <= 1000
        search.record(SearchStep(load, held=load <= truth))
    if search.best is None:
        assert truth < start / 64
    else:
        assert search.best.load <= truth
        assert search.resolved
        assert truth <= search.best.load * 1.11


def test_the_search_ends_at_its_bounds() -> None:
    search = Search(8, 64, whole=True)
    while (load := search.next()) is not None:
        assert load == int(load)
        search.record(SearchStep(load, held=True))
    assert [step.load for step in search.steps] == [8, 16, 32, 64]
    assert search.best is not None
    assert not search.resolved, "nothing failed, so it is a lower bound"
    saturated = Search(8, 1000)
    while (load := saturated.next()) is not None:
        saturated.record(SearchStep(load, held=load <= 20, invalid=load > 20))
    assert saturated.best is not None
    assert not saturated.resolved, "the client failed, not the service"


# Scenarios.


def some(scenario: Scenario, count: int = 60, seed: int = 1) -> list[Turn]:
    parameters = scenario.defaults.model_copy(update={"seed": seed})
    if scenario.arrivals is not None:
        return list(itertools.islice(scenario.arrivals(parameters, TokenCosts()), count))
    assert scenario.turns is not None
    return [
        t for u in range(10) for t in itertools.islice(scenario.turns(parameters, TokenCosts(), u), count // 10)
    ]


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda s: s.name)
def test_a_seed_is_a_load(scenario: Scenario) -> None:
    turns = some(scenario)
    assert turns == some(scenario)
    assert turns != some(scenario, seed=2)
    low, high = scenario.defaults.output_tokens
    assert all(low <= turn.max_tokens <= high for turn in turns)
    times = [turn.at_s for turn in turns if turn.at_s is not None]
    assert times == sorted(times)
    assert bool(times) == scenario.open_loop
    assert {turn.model for turn in turns} == set(range(scenario.models))


def test_what_makes_each_scenario() -> None:
    rag = some(SCENARIOS["rag"], 20)
    assert all(4096 <= t.prompt_tokens <= 16384 + 8 for t in rag)
    assert all(len(t.text.split()) > 2000 for t in rag)
    chats = some(SCENARIOS["multiturn"])
    assert len({t.system for t in chats}) == 1
    assert [t.fresh for t in chats[:6]] == [True, False, False, False, False, False]
    cancels = some(SCENARIOS["cancels"], 1000)
    assert 0.05 < sum(t.cancel_after is not None for t in cancels) / 1000 < 0.15
    assert {t.kind for t in some(SCENARIOS["code"])} == {"completion"}
    burst = [t for t in some(SCENARIOS["n8n"], 40) if t.user == 0]
    assert len([t for t in burst if t.at_s == 0]) == 20
    assert not any(t.stream for t in burst)
    assert SCENARIOS["users100"].defaults.users == 100
    assert SCENARIOS["chats200"].defaults.users == 200
    assert SCENARIOS["soak"].defaults.duration_s == 3600
    swaps = some(SCENARIOS["swap"])
    assert [t.model for t in swaps[:6]] == [0, 0, 0, 1, 1, 1]
    poisson = some(SCENARIOS["poisson"], 2000)
    assert (poisson[-1].at_s or 0) == pytest.approx(1000, rel=0.1)


# What is read beside a run.


def test_metrics_are_summed_and_strange_text_is_an_error() -> None:
    text = '# TYPE a counter\na_total{x="1"} 2\na_total{x="2"} 3\n# TYPE h histogram\n'
    text += 'h_bucket{le="1"} 1\nh_sum 4\nh_count 1\n'
    assert read_metrics(text) == {"a_total": 5, "a_total{x=1}": 2, "a_total{x=2}": 3, "h_sum": 4, "h_count": 1}
    with pytest.raises(ValueError, match="metric"):
        read_metrics("<html>not metrics</html>")


def test_a_gpu_sample_names_what_slows_the_gpu_down() -> None:
    (row,) = parse_rows("1, 83, 598.20, 99, 0x0000000000000024", FIELDS)
    card = sample_of(row)
    assert (card.index, card.temperature_c, card.power_w, card.utilization) == (1, 83, 598.2, 99)
    assert throttled(card.reasons) == ["power cap (software)", "temperature (software)"]
    (row,) = parse_rows("0, [N/A], [N/A], [N/A], [N/A]", FIELDS)
    assert (sample_of(row).temperature_c, sample_of(row).reasons) == (None, 0)
    assert throttled(0x1) == [], "idle takes nothing from a load"


# What people and CI read.


def test_junit() -> None:
    slo = Slo(ttft_p99_ms=100)
    tree = ET.fromstring(junit.render(judged(made(), made(cause="503"), slo=slo)))
    assert (tree.get("failures"), tree.get("errors")) == ("2", "0")
    told = [failure.get("message", "") for failure in tree.iter("failure")]
    assert "1 x 503" in told[-1]
    tree = ET.fromstring(junit.render(summarise(collected(made(), notes=(INTERRUPTED,)), plan())))
    assert tree.get("errors") == tree.get("tests"), "an invalid run proves nothing"


def test_a_page_stands_alone_and_escapes() -> None:
    report = judged(*(made(at=i / 2, cause="" if i % 5 else "<b>&") for i in range(40)))
    report.about = {"url": "http://x/<script>"}
    page = html.render(report)
    assert page.count("<svg") >= 6
    assert "<script" not in page
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    page = page.replace('<link rel="icon" href="data:,">', "")
    for loads in ("src=", "href=", "url(", "@import", "<link"):
        assert loads not in page, "nothing is loaded from elsewhere"
