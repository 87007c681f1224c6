"""The RAM of engines and hosts."""

from __future__ import annotations

from appliance.planner import host_ram


def test_ram_counts_offload_twice_and_sleep_once() -> None:
    plain = host_ram.EngineRam(cards=1, weights=60e9)
    assert host_ram.EngineRam(cards=1, weights=60e9, sleeps=True).total == plain.total + 60e9
    assert host_ram.EngineRam(cards=1, weights=60e9, offload=10e9).total == plain.total + 20e9


def test_the_largest_part_of_a_hosts_ram_is_named() -> None:
    asleep = host_ram.EngineRam(cards=1, weights=60e9, sleeps=True)
    ram = host_ram.needed_ram(64, [asleep])
    assert ram.biggest == "pinned copies for sleep"
    assert ram.needed > ram.total
    assert host_ram.needed_ram(128, [asleep]).needed < 128 * 2**30
