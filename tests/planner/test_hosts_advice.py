"""The line of the plan about replicas and engines over several hosts."""

from __future__ import annotations

from appliance.planner.across_hosts import hosts_advice
from appliance.planner.layout import Layout


def test_a_model_that_fits_one_host_gets_replicas() -> None:
    lines = list(hosts_advice([("coder", Layout()), ("planner", Layout(tp=4))], 2))
    assert lines[0].startswith("coder fits one card: replicas on each host")
    assert lines[1].startswith("planner fits 4 cards of one host: replicas on each host")


def test_a_larger_model_gets_a_pipeline_between_the_hosts() -> None:
    (line,) = hosts_advice([("giant", Layout(tp=4, pp=2, hosts=2))], 2)
    assert line == (
        "giant exceeds the cards of one host: one engine with nodes over 2 hosts, pipeline_parallel = 2, "
        "tensor_parallel = 4"
    )


def test_one_machine_has_no_choice() -> None:
    assert not list(hosts_advice([("coder", Layout())], 1))
