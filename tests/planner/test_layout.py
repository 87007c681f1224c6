"""Layouts that cut blocks or need experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appliance.errors import UsageError
from appliance.planner.layout import Layout
from appliance.planner.throughput import predict
from appliance.planner.workload import Workload

Build = Callable[..., Workload]


def test_a_shard_that_cuts_fp8_blocks_is_rejected(workload: Build) -> None:
    with pytest.raises(UsageError, match=r"blocks of 128.*nearest: 4, or 8 with expert parallelism"):
        predict(workload("Qwen/Qwen3-235B-A22B:fp8", layout=Layout(tp=8)))
    assert predict(workload("Qwen/Qwen3-235B-A22B:fp8", layout=Layout(tp=8, ep=True))).output_tok_s > 0
    assert predict(workload("Qwen/Qwen3-235B-A22B:fp8", layout=Layout(tp=4))).output_tok_s > 0


def test_expert_parallelism_without_experts_is_rejected(workload: Build) -> None:
    with pytest.raises(UsageError, match="has no experts"):
        predict(workload("Qwen/Qwen3-32B", layout=Layout(tp=2, ep=True)))
