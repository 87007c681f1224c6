"""Throughput and latency of a closed loop: orderings, effects of the layout, and impossible workloads."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.planner.layout import Layout
from appliance.planner.throughput import predict
from appliance.planner.workload import Workload

Build = Callable[..., Workload]
same = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@same
@given(concurrency=st.floats(1, 1000))
def test_more_requests_never_give_fewer_tokens_until_memory_is_full(workload: Build, concurrency: float) -> None:
    low = predict(workload(concurrency=concurrency))
    high = predict(workload(concurrency=concurrency * 1.5))
    assert high.output_tok_s >= low.output_tok_s * 0.999
    assert low.low < low.output_tok_s < low.high


def test_speculation_helps_if_drafts_are_accepted(workload: Build) -> None:
    alone = predict(workload(concurrency=1.0))
    good = predict(workload(concurrency=1.0, draft_tokens=2, accepted=2.4))
    bad = predict(workload(concurrency=1.0, draft_tokens=2, accepted=1.0))
    assert good.output_tok_s > alone.output_tok_s > bad.output_tok_s


def test_peer_to_peer_affects_only_shards(workload: Build) -> None:
    shard = Layout(tp=4)
    with_p2p = predict(workload("Qwen/Qwen3-32B", layout=shard))
    assert predict(workload("Qwen/Qwen3-32B", layout=shard, p2p=False)).output_tok_s < with_p2p.output_tok_s
    alone = predict(workload("Qwen/Qwen3-32B"))
    assert predict(workload("Qwen/Qwen3-32B", p2p=False)).output_tok_s == alone.output_tok_s


def test_a_slow_network_between_machines_lowers_throughput(workload: Build) -> None:
    inside = predict(workload(layout=Layout(tp=2)))
    across = predict(workload(layout=Layout(tp=2, hosts=2), link_gb_s=1.0))
    assert across.output_tok_s < 0.9 * inside.output_tok_s


def test_replicas_multiply_throughput_if_each_has_requests(workload: Build) -> None:
    one = predict(workload(concurrency=8.0))
    four = predict(workload(concurrency=32.0, layout=Layout(replicas=4)))
    assert four.output_tok_s == pytest.approx(4 * one.output_tok_s)
    assert predict(workload(concurrency=1.0, layout=Layout(replicas=4))).output_tok_s < one.output_tok_s


def test_one_prediction_takes_under_2_ms(workload: Build) -> None:
    one = workload()
    predict(one)
    start = time.process_time()
    for _ in range(100):
        predict(one)
    assert (time.process_time() - start) / 100 < 0.002
