"""Impossible workloads."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appliance.errors import UsageError
from appliance.planner.layout import Layout
from appliance.planner.throughput import predict
from appliance.planner.workload import Workload

Build = Callable[..., Workload]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concurrency": -1.0}, "concurrency = -1 is out of range; nearest valid value: 1"),
        ({"concurrency": 1e9}, "nearest valid value: 1e+06"),
        ({"concurrency": float("nan")}, "concurrency = nan"),
        ({"input": -5.0}, "input tokens = -5"),
        ({"output": 0.0}, "output tokens = 0"),
        ({"input": 60000.0}, "more than the 40960 of Qwen/Qwen3-30B-A3B"),
        ({"layout": Layout(tp=3)}, "does not divide the 32 heads of Qwen/Qwen3-30B-A3B; nearest: 2"),
        ({"layout": Layout(tp=0)}, "tensor parallel = 0"),
        ({"layout": Layout(pp=99)}, "more than the 48 layers; nearest: 48"),
        ({"power_w": 5000.0}, "out of RTX PRO 6000 Blackwell Workstation's range; nearest valid: 600 W"),
        ({"prefix_hit": 1.5}, "prefix hit share = 1.5"),
        ({"accepted": 2.0}, "accepted tokens per step = 2"),
        ({"utilization": 2.0}, "gpu memory utilization = 2"),
    ],
)
def test_an_impossible_workload_is_rejected_in_one_line(
    workload: Build, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        predict(workload(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
