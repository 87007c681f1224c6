"""Samples, and reports on them, for the tests of this folder."""

from __future__ import annotations

from appliance.contract.model import Slo
from loadtests.collect import Collector
from loadtests.parameters import LoadPlan, Parameters
from loadtests.report import Report, summarise
from loadtests.sample import Gaps, Heartbeat, Sample, SampleLine


def a_sample(ttft: float = 0.5, cause: str = "", *, user: int = 0, at: float = 0.0, tokens: int = 11) -> Sample:
    """Return a sample with its first token after ``ttft`` seconds and the last one a second later."""
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


def report_on(*samples: Sample, slo: Slo | None = None) -> Report:
    return summarise(collected(*samples), plan(slo))


def heartbeats(cpu: float = 0.1, lag: float = 0.0, count: int = 10) -> tuple[Heartbeat, ...]:
    return tuple(Heartbeat(float(i), cpu, lag, 1, 1) for i in range(count))
