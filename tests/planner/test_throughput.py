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


def test_vllm_runs_fewer_requests_at_once_on_an_a100(workload: Build) -> None:
    load = {"model": "Qwen/Qwen3-8B", "concurrency": 1000.0, "input": 100.0, "output": 100.0}
    assert predict(workload(card="A100 SXM 80GB", **load)).running == 256
    assert predict(workload(card="H100 SXM 80GB", **load)).running == 1000


def test_sglang_runs_48_requests_at_once_with_drafts_unless_a_limit_is_stated(workload: Build) -> None:
    drafts = {"engine": "sglang", "drafts": "mtp", "draft_tokens": 3, "accepted": None, "concurrency": 100.0}
    assert predict(workload(**drafts)).running == 48
    assert predict(workload(**drafts, max_sequences=80)).running == 80
    assert predict(workload(engine="sglang", concurrency=100.0)).running == 100


def test_sglang_reserves_states_of_linear_attention(workload: Build) -> None:
    hybrid = {"model": "Qwen/Qwen3.6-35B-A3B:fp8", "card": "B200 SXM 180GB", "input": 8192.0, "output": 1024.0}
    few = predict(workload(**hybrid, engine="sglang", concurrency=1000.0)).running
    many = predict(workload(**hybrid, engine="vllm", concurrency=1000.0)).running
    # The public run had about 130 requests in flight, and vLLM has no such limit.
    assert 100 < few < 260 < many
    small = predict(workload(**hybrid, engine="sglang", concurrency=50.0))
    assert small.running == 50


def test_an_incomplete_last_wave_lowers_the_rate_less_if_it_is_nearly_full(workload: Build) -> None:
    def rate(requests: float) -> float:
        return predict(workload(concurrency=8.0, requests=requests)).rate

    steady = predict(workload(concurrency=8.0)).rate
    assert rate(16) == pytest.approx(steady)
    assert rate(9) < rate(12) < rate(15) < steady
    # Of nine requests the last one decodes alone, faster than a full wave.
    assert rate(9) > steady * 9 / 16
    assert rate(4) == pytest.approx(predict(workload(concurrency=4.0)).rate)


def test_prompts_of_unequal_requests_overlap_with_decoding(workload: Build) -> None:
    dense = {"model": "Qwen/Qwen3-14B", "concurrency": 64.0, "input": 200.0, "output": 100.0}
    even, uneven = predict(workload(**dense)), predict(workload(**dense, uneven=1.0))
    assert uneven.rate > 1.05 * even.rate
    alone = {**dense, "engine": "sglang"}
    assert predict(workload(**alone, uneven=1.0)).rate == pytest.approx(predict(workload(**alone)).rate)
