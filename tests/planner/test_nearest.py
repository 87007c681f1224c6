"""The public measurements nearest to a prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from appliance.planner.layout import Layout
from appliance.planner.nearest import FAR, as_plain, nearest, public_runs
from appliance.planner.workload import Workload


def test_a_measured_run_is_nearest_to_itself() -> None:
    for run in public_runs()[::90]:
        first = nearest(run.workload)[0]
        assert first.distance == 0
        assert first.differences == ()
        assert (first.run.workload.card, first.run.workload.shape) == (run.workload.card, run.workload.shape)


def test_the_owners_case_has_near_measurements_with_links(workload: Callable[..., Workload]) -> None:
    found = nearest(workload(concurrency=8.0))
    assert len(found) == 3
    assert [one.distance for one in found] == sorted(one.distance for one in found)
    assert found[0].distance < 1.0
    for one in as_plain(found):
        assert str(one["source"]).startswith("https://")
        assert "Qwen3-30B-A3B" in str(one["title"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"concurrency": 1.0}, "requests at once per replica"),
        ({"engine": "llamacpp"}, "vllm"),
        ({"layout": Layout(tp=2)}, "cards per shard"),
        ({"drafts": "mtp", "draft_tokens": 3, "accepted": 2.0}, "no drafts"),
    ],
)
def test_a_changed_condition_is_a_named_distance(
    change: dict[str, object], words: str, workload: Callable[..., Workload]
) -> None:
    base = workload(concurrency=16.0)
    (first,) = nearest(base, count=1)
    (other,) = nearest(replace(base, **change), [first.run])  # type: ignore[arg-type]
    assert other.distance > first.distance
    assert any(words in text for text in other.differences)


def test_a_run_unlike_any_other_is_far(workload: Callable[..., Workload]) -> None:
    found = nearest(
        workload("Qwen/Qwen3-0.6B", card="V100 SXM 32GB", concurrency=4096.0, input=30.0, layout=Layout(pp=4))
    )
    assert found[0].distance > FAR
