"""Measurements of a machine correct its predictions: how much, and which rows do not count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import exp, log
from pathlib import Path

import pytest

from appliance.catalog.shipped import MEASUREMENTS
from appliance.errors import ConfigError
from appliance.planner import evaluate, row_parser
from appliance.planner.demand import Demand
from appliance.planner.hardware import HardwareSpec, parse_cards
from appliance.planner.learned import MeasuredPoint, correct
from appliance.planner.measured import match_rows, measured_point, read_measured
from appliance.planner.placement import advise
from appliance.planner.throughput import predict
from appliance.planner.workload import Workload
from tests.planner.conftest import PRO, MakeMachine, MakeModel, demand_for
from tests.planner.rows import ROW

MODEL = "Qwen/Qwen3-30B-A3B"
MakeWorkload = Callable[..., Workload]


def spread(rows: list[int], concurrency: list[float]) -> list[int]:
    """Return three rows: those of the least, the middle and the most requests in flight."""
    order = sorted(rows, key=lambda index: (concurrency[index], index))
    return [order[0], order[len(order) // 2], order[-1]]


@pytest.fixture(scope="module")
def public_groups() -> list[list[MeasuredPoint]]:
    """Return the public measurements by source, model and card, three given ones first; groups of four or more."""
    found: dict[tuple[str, str, str], list[tuple[float, MeasuredPoint]]] = defaultdict(list)
    for row in evaluate.read(MEASUREMENTS):
        workload = row_parser.parse_row(row)
        point = measured_point(workload, row_parser.truth_of(row) or 0.0)
        found[row["source"], point.model, point.card].append((workload.concurrency, point))
    groups = []
    for pairs in found.values():
        if len(pairs) >= 4:
            three = spread(list(range(len(pairs))), [load for load, _ in pairs])
            rest = [index for index in range(len(pairs)) if index not in three]
            groups.append([pairs[index][1] for index in [*three, *rest]])
    return groups


def test_three_points_reduce_the_error_of_the_others(public_groups: list[list[MeasuredPoint]]) -> None:
    before, after = [], []
    for group in public_groups:
        given = tuple(group[:3])
        for other in group[3:]:
            before.append(abs(other.error))
            after.append(abs(other.error - correct(given, other.conditions).shift))
    assert len(public_groups) > 60
    before.sort()
    after.sort()
    assert evaluate.quantile(after, 0.5) <= 0.075
    assert evaluate.quantile(after, 0.5) < 0.8 * evaluate.quantile(before, 0.5)
    assert evaluate.quantile(after, 0.9) < 0.7 * evaluate.quantile(before, 0.9)


def test_a_measured_run_is_predicted_as_measured(workload: MakeWorkload) -> None:
    runs = [workload(concurrency=load) for load in (1.0, 8.0, 64.0)]
    plain = [predict(run) for run in runs]
    points = tuple(measured_point(run, one.rate * 1.5) for run, one in zip(runs, plain, strict=True))
    for run, one in zip(runs, plain, strict=True):
        found = predict(replace(run, measured=points))
        assert found.rate == pytest.approx(one.rate * 1.5, rel=0.02)
        assert found.tpot_ms == pytest.approx(one.tpot_ms / 1.5, rel=0.02)
        assert log(found.high / found.low) < 0.4 * log(one.high / one.low)


def test_a_far_run_is_corrected_less_than_a_near_one(workload: MakeWorkload) -> None:
    base = workload(concurrency=8.0)
    points = (measured_point(base, predict(base).rate * 0.7),)
    near, far = (
        predict(replace(workload(concurrency=load, input=tokens), measured=points))
        for load, tokens in ((10.0, 1000.0), (256.0, 16000.0))
    )
    assert near.shift < far.shift < -0.05
    assert near.shift == pytest.approx(log(0.7), abs=0.08)


def test_points_of_another_model_or_card_change_nothing(machine: MakeMachine, workload: MakeWorkload) -> None:
    run = workload()
    here = machine(measured=(measured_point(run, 100.0),))
    assert here.measured_of(MODEL, run.card)
    assert not here.measured_of("Qwen/Qwen3-8B", run.card)
    assert not here.measured_of(MODEL, parse_cards("RTX 5090")[0])


def test_a_plan_of_a_slow_machine_has_less_headroom(machine: MakeMachine, model_demand: MakeModel) -> None:
    demand: Demand = demand_for(model_demand())
    rows = [{**ROW, "concurrency": load, "output_tok_s": rate} for load, rate in (("1", "50"), ("16", "320"))]
    plain: HardwareSpec = machine()
    found = match_rows(rows, "m.csv", [plain], models={MODEL})
    assert found.unused == ()
    before, after = advise((plain,), demand).best, advise((found.on(plain),), demand)
    assert after.best.headroom < 0.7 * before.headroom
    assert any("measurements of this machine change the predicted rate by -" in reason for reason in after.reasons)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_tok_s": "-5"}, "output_tok_s = -5 is negative"),
        ({"input_tokens": "-1000"}, "input_tokens = -1000 is negative"),
        ({"output_tok_s": "9000000"}, "check the units"),
        ({"tpot_ms": "900"}, "check the units"),
        ({"output_tok_s": ""}, "neither output_tok_s nor total_tok_s"),
        ({"gpu": "RTX 5090"}, "RTX 5090 is not a machine or a card of this plan"),
        ({"host": "other"}, "other is not a machine or a card of this plan"),
        ({"gpu_count": "4", "tp": "4"}, "4 cards are more than this plan has"),
        ({"model": "Qwen3-8B"}, "Qwen/Qwen3-8B is not planned"),
        ({"concurrency": "many"}, "is not a number"),
    ],
)
def test_a_row_that_does_not_count_is_named_by_line(
    change: dict[str, str], words: str, machine: MakeMachine
) -> None:
    plain = machine()
    found = match_rows([ROW, {**ROW, **change}], "m.csv", [plain], models={MODEL})
    (unused,) = found.unused
    assert str(unused).startswith("line 3: skipped: ")
    assert words in str(unused)
    assert "\n" not in str(unused)
    assert len(found.on(plain).measured) == 1


@pytest.mark.parametrize(("change", "words"), [({"gpu": "RTX 5090"}, "RTX 5090"), ({"host": "tower"}, "tower")])
def test_a_file_of_another_machine_is_refused_by_name(
    change: dict[str, str], words: str, machine: MakeMachine, tmp_path: Path
) -> None:
    path = tmp_path / "m.csv"
    row = {**ROW, **change}
    path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n", "utf-8")
    with pytest.raises(ConfigError, match=f"was measured on {words}; this plan is for gpu with {PRO}"):
        read_measured(path, [machine()], {MODEL})


def test_a_row_names_its_machine_of_two(machine: MakeMachine) -> None:
    both = [machine(name="a"), machine(name="b")]
    found = match_rows([{**ROW, "host": "b"}, ROW], "m.csv", both, models={MODEL})
    assert [len(found.on(one).measured) for one in both] == [1, 2]


def test_many_equal_points_do_not_exaggerate(workload: MakeWorkload) -> None:
    run = workload()
    point = measured_point(run, predict(run).rate * 2)
    found = correct((point,) * 50, point.conditions)
    assert exp(found.shift) == pytest.approx(2.0, rel=0.01)
    assert 0.0 < found.width < 0.2
