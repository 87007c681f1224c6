"""KV tokens against the reports of vLLM on the CPU (recorded by benchmarks/planner/kv_on_cpu.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.catalog import hf_config
from appliance.catalog.models import shipped_models
from appliance.planner import kv_cache
from appliance.planner.drafts import drafts_of

FILE = Path(__file__).parents[2] / "benchmarks" / "planner" / "kv_on_cpu.json"
REPORTED: list[dict[str, Any]] = json.loads(FILE.read_text("utf-8"))["results"]


@pytest.mark.parametrize("report", REPORTED, ids=[report["name"] for report in REPORTED])
def test_tokens_equal_the_report_of_vllm(report: dict[str, Any]) -> None:
    shape = hf_config.parse(report["name"], report["config"])
    drafts = drafts_of({"speculative-config": report.get("drafts")})
    layout = kv_cache.layout(
        shape, block=kv_cache.CPU_BLOCK, batched_tokens=report["batched_tokens"], drafts=drafts
    )
    assert layout.tokens(report["kv_gib"] * 2**30, report["context"]) == report["tokens"]


def test_shapes_with_and_without_drafts_are_recorded() -> None:
    assert len(REPORTED) == 13
    assert {report["drafts"]["method"] for report in REPORTED if report.get("drafts")} == {"eagle3", "mtp"}
    assert not any("error" in report for report in REPORTED)


models = st.sampled_from(sorted(shipped_models()))


@given(models, st.integers(0, 90), st.integers(1, 40), st.integers(1024, 32768))
def test_more_memory_never_holds_fewer_tokens(name: str, gib: int, more: int, context: int) -> None:
    layout = kv_cache.layout(shipped_models()[name])
    assert layout.tokens(gib * 2**30, context) <= layout.tokens((gib + more) * 2**30, context)
    assert layout.sequences(gib * 2**30, context) >= layout.sequences(gib * 2**30, context * 2)


@given(models, st.sampled_from([1, 2, 4]))
def test_shards_and_smaller_numbers_hold_at_least_as_many_sequences(name: str, tp: int) -> None:
    shape = shipped_models()[name]
    alone = kv_cache.layout(shape).sequences(20 * 2**30, 8192)
    assert kv_cache.layout(shape, tp=tp).sequences(20 * 2**30, 8192) >= alone
    assert kv_cache.layout(shape, kv_bytes=1.0).sequences(20 * 2**30, 8192) >= alone
