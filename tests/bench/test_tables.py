"""The tables: rows that the planner reads, the comparison with its prediction, energy, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.bench.figures import figures_of, power_of
from appliance.bench.grid import BenchCell
from appliance.bench.report import to_html, to_markdown
from appliance.bench.results import BenchFigures, CellResult
from appliance.bench.tables import BENCH_COLUMNS, compared, to_csv
from appliance.contract.load import validate
from appliance.contract.model import Site
from appliance.planner.from_site import hardware_of
from appliance.planner.measured import read_measured
from tests.bench.test_results import CONDITIONS
from tests.bench.test_run import a_report

CARD = "RTX PRO 6000 Blackwell Workstation"
NAME = "Qwen/Qwen3-30B-A3B"


def a_card_site(**engine: Any) -> Site:
    """A site whose vLLM engine serves Qwen3-30B-A3B on one card."""
    one = {"kind": "vllm", "host": "gpu", "model": "chat", "gpus": [0], "context": 32768, "concurrency": 64}
    return validate(
        "site",
        {
            "version": 1,
            "hosts": {
                "gpu": {
                    "memory_gib": 256,
                    "gpus": [{"index": 0, "model": CARD, "memory_mib": 97887, "power_limit_w": 450}],
                }
            },
            "models": {"chat": {"source": NAME, "revision": "0" * 40}},
            "engines": {"chat": one | {"port": 8101, "gpu_memory_utilization": 0.9} | engine},
        },
    )


def measured(rate: float, *, batch: int = 16, **figures: Any) -> CellResult:
    known = {"rate": rate, "ttft_ms": 80.0, "tpot_ms": 1000 * batch / rate, "input": 512.0, "output": 128.0}
    cell = BenchCell("load", batch=batch, input=512, power_w=figures.pop("power_w", None))
    return CellResult(cell=cell, outcome="measured", at=1.0, figures=BenchFigures(**(known | figures)))


def test_the_planner_reads_the_rows_as_measurements_of_this_machine(tmp_path: Path) -> None:
    site = a_card_site()
    cells = compared([measured(1500.0), measured(200.0, batch=1)], site, "chat")
    file = tmp_path / "bench.csv"
    file.write_text(to_csv(cells))
    found = read_measured(file, hardware_of(site), {NAME})
    assert found.unused == ()
    assert len(found.points["gpu"]) == 2


def test_a_row_has_the_limit_of_its_cell_and_its_energy() -> None:
    (cell,) = compared([measured(1500.0, limit_w=300.0, joules_per_token=0.21)], a_card_site(), "chat")
    assert cell.row is not None
    assert (cell.row["power_limit_w"], cell.row["joules_per_token"], cell.row["host"]) == ("300", "0.21", "gpu")
    assert set(cell.row) <= set(BENCH_COLUMNS)
    (usual,) = compared([measured(1500.0)], a_card_site(), "chat")
    assert usual.row is not None
    assert (usual.row["power_limit_w"], usual.row["joules_per_token"]) == ("450", "")


def test_a_rate_is_compared_with_the_interval_of_the_plan() -> None:
    (good,) = compared([measured(1500.0)], a_card_site(), "chat")
    assert good.prediction is not None
    assert good.prediction.low is not None
    assert good.prediction.high is not None
    predicted = good.prediction.predicted or 0.0
    assert good.prediction.low < predicted < good.prediction.high
    (exact,) = compared([measured(predicted)], a_card_site(), "chat")
    (slow,) = compared([measured(good.prediction.low / 2)], a_card_site(), "chat")
    text = to_markdown(CONDITIONS, [exact], [])
    assert f"| {predicted:.0f} | {good.prediction.low:.0f} to {good.prediction.high:.0f} | yes |" in text
    assert "| no |" in to_markdown(CONDITIONS, [slow], [])


@pytest.mark.parametrize(
    ("result", "engine", "reason"),
    [
        (measured(1500.0, users_load=3), {}, "users had 3 requests running in the meantime"),
        (measured(1500.0, input=None), {}, "a rate or a length is missing"),
        (measured(1500.0), {"options": {"speculative-config": '{"method": "mtp"}'}}, "drafts tokens"),
    ],
)
def test_a_load_that_is_not_a_measurement_of_a_card_has_no_row(
    result: CellResult, engine: dict[str, Any], reason: str
) -> None:
    cells = compared([result], a_card_site(**engine), "chat")
    assert cells[0].row is None
    assert reason in cells[0].reason
    assert to_csv(cells).count("\n") == 1
    assert reason in to_markdown(CONDITIONS, cells, [result])


def test_energy_is_the_mean_draw_of_the_engines_cards_by_the_rate() -> None:
    report = a_report(rate=100.0)
    series = {"GPU 0 W": [90.0, 300.0, 320.0, 340.0], "GPU 1 W": [50.0, 50.0, 50.0, 50.0]}
    report.server = {"cards": {"at_s": [-1.0, 1.0, 3.0, 5.0], "series": series}}
    figures, notes = figures_of(report, [0])
    assert (figures.power_w, figures.joules_per_token, notes) == (320.0, 3.2, ())
    assert power_of(report, [0, 1])[0] == 370.0


@pytest.mark.parametrize(
    ("table", "note"),
    [
        (None, "no power: nvidia-smi reports no card"),
        ({"at_s": [1.0, 2.0], "series": {"GPU 0 W": [1.0, 2.0]}}, "no power: card 0 has 2 samples"),
        ({"at_s": [1.0, 2.0, 3.0], "series": {"GPU 0 W": [None, 2.0, None]}}, "card 0 has 1 samples"),
        ({"at_s": [1.0, 2.0, 3.0], "series": {"GPU 1 W": [1.0, 2.0, 3.0]}}, "card 0 has 0 samples"),
        ({"at_s": [7.0, 9.0, 11.0], "series": {"GPU 0 W": [1.0, 2.0, 3.0]}}, "card 0 has 1 samples"),
    ],
)
def test_without_enough_samples_energy_is_absent_and_a_note_has_the_reason(
    table: dict[str, Any] | None, note: str
) -> None:
    report = a_report()
    report.server = {} if table is None else {"cards": table}
    figures, notes = figures_of(report, [0])
    assert (figures.power_w, figures.joules_per_token) == (None, None)
    assert note in notes[0]


def test_the_page_has_plots_and_needs_no_network() -> None:
    results = [measured(rate, batch=batch, power_w=300) for batch, rate in ((1, 200.0), (4, 600.0), (16, 1500.0))]
    swap = CellResult(
        cell=BenchCell("swap", model="<b>"),
        outcome="measured",
        at=1.0,
        figures=BenchFigures(stages={"unload": 0.5, "load": 3.25}),
    )
    failed = CellResult(cell=BenchCell("context", input=65536), outcome="failed", at=1.0, reason="timeout & more")
    cells = compared(results, a_card_site(), "chat")
    page = to_html(CONDITIONS, cells, [*results, swap, failed], ["one | note"])
    assert page.count("<figure>") == 2
    assert "src=" not in page
    assert 'href="http' not in page
    assert "&lt;b&gt;" in page
    assert "timeout &amp; more" in page
    text = to_markdown(CONDITIONS, cells, [*results, swap, failed])
    assert "| <b> | 0.50 | 3.25 |" in text
    assert "| context: 1 x 65536 tokens | timeout & more |" in text
