"""The roofline behaves as physics does, whatever its constants: orderings, limits, bad input."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.catalog.cards import find_card
from appliance.catalog.models import shipped_models
from appliance.errors import UsageError
from appliance.planner.constants import Constants, calibrated, names
from appliance.planner.layout import Layout
from appliance.planner.memory import card_memory
from appliance.planner.models import parse_model
from appliance.planner.roofline import decode_step, distinct_experts, prefill_time, unit_speed
from appliance.planner.throughput import predict
from appliance.planner.workload import Workload

Build = Callable[..., Workload]
same = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@given(st.integers(2, 512), st.integers(1, 8), st.floats(1, 4096))
def test_distinct_experts_lie_between_one_token_and_all(experts: int, per_token: int, tokens: float) -> None:
    per_token = min(per_token, experts)
    found = distinct_experts(experts, per_token, tokens)
    assert per_token * 0.999 <= found <= experts
    assert distinct_experts(experts, per_token, tokens + 1) >= found


def test_one_token_reads_exactly_its_experts() -> None:
    assert distinct_experts(128, 8, 1.0) == pytest.approx(8)


@same
@given(batch=st.floats(1, 512), more=st.floats(1, 256), context=st.floats(1, 30000))
def test_a_larger_batch_or_context_is_never_faster(
    workload: Build, batch: float, more: float, context: float
) -> None:
    one, k = workload(), calibrated()
    base = decode_step(one, batch, context, k).total
    assert decode_step(one, batch + more, context, k).total >= base
    assert decode_step(one, batch, context + more, k).total >= base


@same
@given(tokens=st.floats(2, 30000), hit=st.floats(0, 1))
def test_a_prefix_hit_never_costs(workload: Build, tokens: float, hit: float) -> None:
    k = calibrated()
    cached = prefill_time(workload(prefix_hit=hit), tokens, k)
    assert cached <= prefill_time(workload(), tokens, k) * 1.0001


@same
@given(concurrency=st.floats(1, 1000))
def test_more_requests_never_give_fewer_tokens_until_memory_is_full(workload: Build, concurrency: float) -> None:
    low = predict(workload(concurrency=concurrency))
    high = predict(workload(concurrency=concurrency * 1.5))
    assert high.output_tok_s >= low.output_tok_s * 0.999
    assert low.low < low.output_tok_s < low.high


def test_a_lower_power_limit_slows_prompts_before_answers(workload: Build) -> None:
    k = calibrated()
    full, half = workload(power_w=600.0), workload(power_w=300.0)
    slower = prefill_time(half, 4000, k) / prefill_time(full, 4000, k)
    assert 1.2 < slower < 1.5
    assert decode_step(half, 1, 1000, k).total / decode_step(full, 1, 1000, k).total < slower
    assert unit_speed(workload(power_w=500.0)) == 1.0


def test_speculation_pays_where_drafts_are_accepted(workload: Build) -> None:
    alone = predict(workload(concurrency=1.0))
    good = predict(workload(concurrency=1.0, draft_tokens=2, accepted=2.4))
    bad = predict(workload(concurrency=1.0, draft_tokens=2, accepted=1.0))
    assert good.output_tok_s > alone.output_tok_s > bad.output_tok_s


def test_peer_to_peer_matters_to_shards_only(workload: Build) -> None:
    shard = Layout(tp=4)
    with_p2p = predict(workload("Qwen/Qwen3-32B", layout=shard))
    assert predict(workload("Qwen/Qwen3-32B", layout=shard, p2p=False)).output_tok_s < with_p2p.output_tok_s
    alone = predict(workload("Qwen/Qwen3-32B"))
    assert predict(workload("Qwen/Qwen3-32B", p2p=False)).output_tok_s == alone.output_tok_s


def test_a_slow_network_between_machines_is_priced(workload: Build) -> None:
    inside = predict(workload(layout=Layout(tp=2)))
    across = predict(workload(layout=Layout(tp=2, hosts=2), link_gb_s=1.0))
    assert across.output_tok_s < 0.9 * inside.output_tok_s


def test_replicas_multiply_where_there_is_work_for_them(workload: Build) -> None:
    one = predict(workload(concurrency=8.0))
    four = predict(workload(concurrency=32.0, layout=Layout(replicas=4)))
    assert four.output_tok_s == pytest.approx(4 * one.output_tok_s)
    assert predict(workload(concurrency=1.0, layout=Layout(replicas=4))).output_tok_s < one.output_tok_s


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concurrency": -1.0}, "concurrency = -1 makes no sense; nearest valid value: 1"),
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
def test_impossible_points_are_refused_in_one_line(workload: Build, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        predict(workload(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fp8_blocks_of_the_235b_are_not_cut(workload: Build) -> None:
    with pytest.raises(UsageError, match=r"blocks of 128.*nearest: 4, or 8 with expert parallelism"):
        predict(workload("Qwen/Qwen3-235B-A22B:fp8", layout=Layout(tp=8)))
    assert predict(workload("Qwen/Qwen3-235B-A22B:fp8", layout=Layout(tp=8, ep=True))).output_tok_s > 0
    assert predict(workload("Qwen/Qwen3-235B-A22B:fp8", layout=Layout(tp=4))).output_tok_s > 0


def test_experts_must_be_there_to_be_spread(workload: Build) -> None:
    with pytest.raises(UsageError, match="has no experts"):
        predict(workload("Qwen/Qwen3-32B", layout=Layout(tp=2, ep=True)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Qwen/Qwen3-31B", "did you mean 'Qwen/Qwen3-32B'"),
        ("Qwen/Qwen3-32B:fp7", "did you mean 'fp8'"),
        ("Qwen/Qwen3-32B:Q4_K_X", "did you mean 'Q4_K"),
    ],
)
def test_unknown_models_and_precisions_name_the_nearest(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        parse_model(text)


def test_unknown_cards_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'RTX 5090'"):
        find_card("RTX 5091")


def test_one_point_takes_under_2_ms(workload: Build) -> None:
    one = workload()
    predict(one)
    start = time.process_time()
    for _ in range(100):
        predict(one)
    assert (time.process_time() - start) / 100 < 0.002


def test_every_constant_says_what_it_means() -> None:
    assert len(names()) <= 30
    for entry in dataclasses.fields(Constants):
        assert entry.metadata["meaning"]
        assert entry.metadata["source"]
        assert entry.metadata["spread"] > 0
        assert getattr(calibrated(), entry.name) > 0
    shares = [entry.name for entry in dataclasses.fields(Constants) if entry.metadata["unit"] == "share"]
    assert all(getattr(calibrated(), name) <= 1 for name in shares)


@given(st.sampled_from(sorted(shipped_models())), st.sampled_from([0.5, 0.7, 0.92]))
def test_a_card_is_never_given_away_twice(name: str, utilization: float) -> None:
    shape, dtype = parse_model(name)
    memory = card_memory(find_card("RTX PRO 6000"), shape, dtype, utilization=utilization)
    assert memory.weights + memory.overhead + memory.kv == pytest.approx(memory.budget)
    assert memory.budget <= memory.total


def test_one_card_leaves_a_30b_in_bf16_about_300k_tokens() -> None:
    shape, dtype = parse_model("Qwen/Qwen3-30B-A3B")
    memory = card_memory(find_card("RTX PRO 6000"), shape, dtype)
    assert 280_000 < memory.kv_tokens < 320_000
    assert memory.sequences(4096) == pytest.approx(memory.kv_tokens / 4096, rel=0.02)
