"""A report of the load test as a measurement of the planned machine, and reports that do not count."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import parse
from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.errors import ApplianceError, ConfigError, UsageError
from appliance.planner.layout import Layout
from appliance.planner.load_report import read_load_report, row_of_site, row_of_workload
from appliance.planner.measured import match_rows
from appliance.planner.row_parser import parse_row
from appliance.planner.throughput import predict
from appliance.planner.workload import Workload
from loadtests.report import Report, Tokens
from tests.planner.conftest import PRO, MakeMachine

ONE_CARD = Path(__file__).parents[2] / "examples" / "one-card.toml"
REPORT = Report(
    requests=420,
    failures={"timeout": 20},
    checks=(),
    percentiles={"E2E": {"p50": 8000.0}},
    output_tokens_per_s=800.0,
    duration_s=200.0,
    models=("qwen3-30b",),
    users=16,
    tokens=Tokens(prompt=400_000, cached=100_000, completion=160_000),
)


@pytest.fixture
def site() -> Site:
    return load(ONE_CARD)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the report as the load test does, with changes of its fields."""

    def build(**changes: Any) -> Path:
        path = tmp_path / "report.json"
        path.write_text(dataclasses.replace(REPORT, **changes).to_json(), "utf-8")
        return path

    return build


def test_a_report_is_a_measurement_of_the_sites_engine(write: Callable[..., Path], site: Site) -> None:
    row = row_of_site(read_load_report(write()), site)
    workload = parse_row(row)
    assert workload.card.name == PRO
    assert workload.shape.name == "Qwen/Qwen3-30B-A3B"
    assert (workload.input, workload.output, workload.concurrency) == (1000.0, 400.0, 16.0)
    assert workload.prefix_hit == 0.25
    assert workload.power_w == 450
    assert row["output_tok_s"] == "800.0000"
    assert row["host"] == "gpu"


def test_requests_that_pause_are_in_flight_less_than_there_are_users(write: Callable[..., Path]) -> None:
    found = read_load_report(write(users=200, percentiles={"E2E": {"p50": 4000.0}}))
    assert found.concurrency == pytest.approx(400 / 200 * 4)


def test_a_role_names_the_model_of_the_report(write: Callable[..., Path], site: Site) -> None:
    assert row_of_site(read_load_report(write(models=("coder",))), site)["model"] == "Qwen/Qwen3-30B-A3B"


def test_a_report_corrects_the_prediction_of_its_machine(
    write: Callable[..., Path], site: Site, machine: MakeMachine
) -> None:
    row = row_of_site(read_load_report(write()), site)
    run = parse_row(row)
    found = match_rows([row], "report.json", [machine()], models={run.shape.name})
    assert found.unused == ()
    corrected = predict(dataclasses.replace(run, measured=found.on(machine()).measured))
    assert abs(corrected.rate / 800.0 - 1.0) < 0.03
    assert abs(predict(run).rate / 800.0 - 1.0) > 0.05


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ("a", "b")}, "measures 2 models at once"),
        ({"output_tokens_per_s": -5.0}, "output_tokens_per_s = -5 is not a positive number"),
        ({"duration_s": 0.0}, "duration_s = 0 is not a positive number"),
        ({"percentiles": {}}, "percentiles.E2E.p50 = 0 is not a positive number"),
        ({"failures": {"timeout": 22}}, "22 of 420 requests failed"),
        ({"invalid": ("the client was too slow",)}, "invalid by its own verdict"),
        ({"tokens": Tokens(prompt=100, cached=101, completion=5)}, "tokens.cached = 101 is not within"),
        ({"tokens": Tokens()}, "tokens.prompt = 0 is not a positive number"),
    ],
)
def test_a_report_that_is_not_a_measurement_is_refused(
    changes: dict[str, Any], words: str, write: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_load_report(write(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"verdict": "pass"}', "gpu,model,output_tok_s\n"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match="is not a report of `appliance loadtest --json`"):
        read_load_report(path)


def test_a_report_of_a_model_that_no_engine_on_cards_serves_is_refused(
    write: Callable[..., Path], site: Site
) -> None:
    for name in ("qwen3-embed", "unknown"):
        with pytest.raises(UsageError, match=f"{name}.*is not served by exactly one engine on cards"):
            row_of_site(read_load_report(write(models=(name,))), site)


def test_a_pipeline_counts_all_its_cards(write: Callable[..., Path], site: Site) -> None:
    engine = site.engines["chat"].model_copy(update={"gpus": (0, 1), "pipeline_parallel": 2, "replicas": 1})
    piped = site.model_copy(update={"engines": {"chat": engine}})
    row = row_of_site(read_load_report(write()), piped)
    assert (row["gpu_count"], row["pp"]) == ("2", "2")
    workload = parse_row(row)
    assert (workload.layout.tp, workload.layout.pp, workload.layout.cards) == (1, 2, 2)


def test_a_report_of_an_engine_over_hosts_is_refused(
    write: Callable[..., Path], site: Site, workload: Callable[..., Workload]
) -> None:
    spanning = site.engines["chat"].model_copy(update={"nodes": ("gpu", "gpu2")})
    with pytest.raises(UsageError, match="spans hosts"):
        row_of_site(read_load_report(write()), site.model_copy(update={"engines": {"chat": spanning}}))
    with pytest.raises(UsageError, match="no column for the link"):
        row_of_workload(read_load_report(write()), workload(layout=Layout(pp=2, hosts=2)))


def test_a_report_of_another_model_is_refused(
    write: Callable[..., Path], workload: Callable[..., Workload]
) -> None:
    with pytest.raises(UsageError, match="give --model Qwen/Qwen3-8B"):
        row_of_workload(read_load_report(write(models=("Qwen3-8B",))), workload())
    with pytest.raises(UsageError, match="does not state drafts"):
        row_of_workload(read_load_report(write()), workload(drafts="mtp", draft_tokens=2, accepted=None))


def run(*argv: str) -> int:
    arguments = parse(list(argv))
    return int(arguments.run(arguments))


def test_predict_and_plan_read_a_report(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["plan", "predict", "--card", PRO, "--model", "Qwen/Qwen3-30B-A3B", "--input", "1000"]
    ask += ["--output", "400", "--concurrency", "16", "--power", "450", "--prefix-hit", "0.25", "--json"]
    assert run(*ask, "--measured", str(write())) == 0
    assert json.loads(capsys.readouterr().out)["output_tok_s"] == pytest.approx(800.0, rel=0.03)
    assert run("plan", "--config", str(ONE_CARD), "--simulate", "100", "--measured", str(write()), "--json") == 0
    assert "measurements of this machine change the predicted rate" in capsys.readouterr().out
    with pytest.raises(ApplianceError, match="needs --config FILE"):
        run("plan", "--cards", f"1x {PRO}", "--model", "Qwen/Qwen3-30B-A3B", "--measured", str(write()))
