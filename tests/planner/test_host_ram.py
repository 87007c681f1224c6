"""The RAM of engines and hosts."""

from __future__ import annotations

import pytest

from appliance.contract.model import Engine
from appliance.engines.vllm import pins_exactly
from appliance.planner import host_ram


def test_ram_counts_offload_twice_and_sleep_once() -> None:
    plain = host_ram.EngineRam(cards=1, weights=60e9)
    assert host_ram.EngineRam(cards=1, weights=60e9, sleeps=True).total == plain.total + 60e9
    assert host_ram.EngineRam(cards=1, weights=60e9, offload=10e9).total == plain.total + 20e9


def test_rounded_pinned_buffers_count_as_they_are() -> None:
    exact = host_ram.EngineRam(cards=1, weights=61e9, sleeps=True)
    rounded = host_ram.EngineRam(cards=1, weights=61e9, sleeps=True, pins_exactly=False)
    assert rounded.total - exact.total == pytest.approx(17e9)
    assert host_ram.needed_ram(128, [rounded]).needed - host_ram.needed_ram(128, [exact]).needed == pytest.approx(
        17e9
    )
    assert host_ram.EngineRam(cards=1, weights=61e9, pins_exactly=False).pinned == 0.0


@pytest.mark.parametrize(
    ("environment", "exactly"),
    [
        ({}, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, False),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:512,pinned_max_round_threshold_mb:1"}, True),
        ({"PYTORCH_ALLOC_CONF": "x:1", "PYTORCH_CUDA_ALLOC_CONF": "pinned_max_round_threshold_mb:1"}, False),
    ],
)
def test_a_variable_of_the_site_can_drop_the_setting(environment: dict[str, str], exactly: bool) -> None:
    engine = {"host": "h", "model": "m", "gpus": (0,), "context": 2048, "concurrency": 2, "port": 8101}
    assert pins_exactly(Engine.model_validate(engine | {"environment": environment})) is exactly


def test_the_largest_part_of_a_hosts_ram_is_named() -> None:
    asleep = host_ram.EngineRam(cards=1, weights=60e9, sleeps=True)
    ram = host_ram.needed_ram(64, [asleep])
    assert ram.biggest == "pinned copies for sleep"
    assert ram.needed > ram.total
    assert host_ram.needed_ram(128, [asleep]).needed < 128 * 2**30
