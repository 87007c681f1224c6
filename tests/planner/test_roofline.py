"""Physical properties of the roofline for any constants: orderings, limits, and bad input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.planner import precision
from appliance.planner.constants import Constants, calibrated
from appliance.planner.roofline import (
    VERIFY_TOKEN_S,
    distinct_experts,
    floor_time,
    prefill_time,
    read_share,
    step_time,
)
from appliance.planner.terms import captured_tokens, decode_terms, prefill_terms, unit_speed
from appliance.planner.workload import Workload

Build = Callable[..., Workload]
same = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def decode_s(workload: Workload, k: Constants, *, batch: float, context: float) -> float:
    """Return the seconds of one step that decodes ``batch`` sequences of ``context`` tokens on one replica."""
    return step_time(decode_terms(workload, batch=batch, context=context), k).total


@given(st.integers(2, 512), st.integers(1, 8), st.floats(1, 4096))
def test_distinct_experts_are_between_those_of_one_token_and_all(
    experts: int, per_token: int, tokens: float
) -> None:
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
    base = decode_s(one, k, batch=batch, context=context)
    assert decode_s(one, k, batch=batch + more, context=context) >= base
    assert decode_s(one, k, batch=batch, context=context + more) >= base


@same
@given(tokens=st.floats(2, 30000), hit=st.floats(0, 1))
def test_a_prefix_hit_never_takes_longer(workload: Build, tokens: float, hit: float) -> None:
    k = calibrated()
    cached = prefill_time(workload(prefix_hit=hit), tokens, k)
    assert cached <= prefill_time(workload(), tokens, k) * 1.0001


def test_a_lower_power_limit_slows_prompts_more_than_responses(workload: Build) -> None:
    k = calibrated()
    full, half = workload(power_w=600.0), workload(power_w=300.0)
    slower = prefill_time(half, 4000, k) / prefill_time(full, 4000, k)
    assert 1.2 < slower < 1.5
    assert decode_s(half, k, batch=1, context=1000) / decode_s(full, k, batch=1, context=1000) < slower
    assert unit_speed(workload(power_w=500.0)) == 1.0


@pytest.mark.parametrize(
    ("change", "overlapped"),
    [
        ({"engine": "vllm", "years_old": 0.5}, True),
        ({"engine": "vllm", "years_old": 1.0}, False),
        ({"engine": "vllm", "years_old": 1.0, "asynchronous": True}, True),
        ({"engine": "sglang", "years_old": 1.0}, True),
        ({"engine": "sglang", "drafts": "mtp", "draft_tokens": 2, "accepted": None, "years_old": 0.5}, False),
        ({"engine": "sglang", "drafts": "mtp", "draft_tokens": 2, "accepted": None}, True),
        ({"engine": "tensorrt-llm", "years_old": 1.0}, True),
        ({"engine": "llamacpp"}, False),
    ],
)
def test_the_host_overlaps_with_the_card_if_the_engine_schedules_asynchronously(
    change: dict[str, object], overlapped: bool, workload: Build
) -> None:
    terms = decode_terms(workload(**change), batch=64.0, context=1000.0)
    step = step_time(terms, calibrated())
    device = step.card + step.floor + step.communication
    together = device + step.host
    assert max(device, step.host) <= step.total <= together * 1.000001
    assert (step.total < 0.97 * together) == overlapped


def test_only_units_that_quantise_activations_pay_for_it(workload: Build) -> None:
    def floor(name: str) -> float:
        run = dataclasses.replace(workload(), precision=precision.parse(name))
        return step_time(decode_terms(run, batch=1.0, context=1000.0), calibrated()).floor

    assert floor("fp8") == floor("nvfp4") > floor("bf16") == floor("awq-int4")


@pytest.mark.parametrize(
    ("change", "tokens", "padded"),
    [
        ({}, 1.0, 1.0),
        ({}, 3.0, 4.0),
        ({}, 8.0, 8.0),
        ({}, 9.0, 16.0),
        ({}, 20.0, 24.0),
        ({}, 300.0, 300.0),
        ({"eager": True}, 9.0, 9.0),
        ({"engine": "llamacpp"}, 9.0, 9.0),
    ],
)
def test_a_batch_is_padded_to_the_next_captured_graph(
    change: dict[str, object], tokens: float, padded: float, workload: Build
) -> None:
    load = workload(**change)
    assert captured_tokens(load, tokens) == padded
    step = decode_terms(load, batch=tokens, context=100.0)
    assert (step.tokens, step.sequences) == (padded, tokens)


def test_the_experts_of_the_busiest_card_are_never_more_than_all(workload: Build) -> None:
    skewed = dataclasses.replace(calibrated(), expert_parallel_skew=4.0)
    terms = dataclasses.replace(decode_terms(workload(), batch=4.0, context=100.0), skewed=1.0)
    assert read_share(terms, calibrated()) < read_share(terms, skewed) < 1.0
    full = dataclasses.replace(terms, tokens=4096.0)
    assert read_share(full, skewed) == pytest.approx(read_share(full, calibrated()))


@pytest.mark.parametrize(
    ("model", "change", "unsplit"),
    [
        ("Qwen/Qwen3-30B-A3B:awq-int4", {}, True),
        ("Qwen/Qwen3-30B-A3B:awq-int4", {"drafts": "", "draft_tokens": 0, "accepted": 1.0}, False),
        ("Qwen/Qwen3-30B-A3B:awq-int4", {"engine": "sglang"}, False),
        ("Qwen/Qwen3-30B-A3B:awq-int4", {"card": "H100 SXM 80GB"}, False),
        ("Qwen/Qwen3-30B-A3B:awq-int4 kv fp8", {}, False),
        ("Qwen/Qwen3-30B-A3B:nvfp4", {}, False),
    ],
)
def test_drafts_of_four_bit_weights_are_verified_tile_after_tile(
    model: str, change: dict[str, object], unsplit: bool, workload: Build
) -> None:
    load = workload(model, **{"drafts": "mtp", "draft_tokens": 2, "accepted": None, **change})
    short, long = (decode_terms(load, batch=1.0, context=context) for context in (1000.0, 3000.0))
    assert long.verified == 3 * short.verified
    assert (short.verified > 0) == unsplit
    split = floor_time(dataclasses.replace(short, verified=0.0), calibrated())
    each = (floor_time(short, calibrated()) - split) / 1000.0 / load.shape.full_layers
    assert each == pytest.approx(VERIFY_TOKEN_S * unsplit)


def test_integer_units_of_geforce_cards_serve_llamacpps_prompts(workload: Build) -> None:
    def dense(card: str, **change: object) -> float:
        load = workload("Qwen/Qwen3-32B:Q4_K_M", card, engine="llamacpp", **change)
        return prefill_terms(load, 512.0).gemm_s * load.card.bf16_tflops

    assert dense("RTX 3090") == pytest.approx(dense("RTX A6000") / 2)
    assert dense("RTX 5090") == pytest.approx(dense("RTX 3090"))


def test_int8_weights_use_the_integer_units_of_older_cards(workload: Build) -> None:
    int8, awq = (
        prefill_terms(workload(f"Qwen/Qwen3-8B:{name}", "RTX 3090"), 4096.0) for name in ("int8", "awq-int4")
    )
    assert (int8.fp8, int8.w4a16) == (1.0, 0.0)
    assert int8.gemm_s == pytest.approx(awq.gemm_s / 2)
