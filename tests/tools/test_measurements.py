"""The importer of published measurements: text becomes columns once, impossible rows are reported by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.catalog.shipped import MEASUREMENTS
from appliance.errors import UsageError
from appliance.planner import evaluate
from appliance.planner.impossible import reject_impossible
from tools import measurements

RAW = {
    "gpu": "RTX PRO 6000 Blackwell Workstation",
    "gpu_count": "1",
    "tp": "1",
    "dp": "1",
    "model": "Qwen3-30B-A3B",
    "dtype": "bf16",
    "engine": "vLLM",
    "engine_version": "0.25.1",
    "input_tokens": "1000",
    "output_tokens": "1000",
    "concurrency": "16",
    "output_tok_s": "1000",
    "notes": "",
}


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({"notes": "pp=4", "gpu_count": "4"}, {"pp": "4", "tp": "1"}),
        ({"notes": "layout DEP2,PP2", "gpu_count": "4"}, {"tp": "2", "pp": "2", "attention_dp": "1", "ep": "1"}),
        ({"notes": "offline max load"}, {"mode": "offline"}),
        ({"notes": "kv fp8"}, {"kv": "fp8"}),
        ({"dtype": "nvfp4 (unsloth), kv bf16"}, {"dtype": "nvfp4", "kv": "bf16"}),
        ({"dtype": "gguf-ud-q4_k_xl", "engine": "llama.cpp"}, {"dtype": "Q4_K_XL", "mode": "decode"}),
        ({"dtype": "int4 w4a16 (AutoRound)"}, {"dtype": "awq-int4"}),
        ({"notes": "MTP num_speculative_tokens=2"}, {"speculation": "mtp", "draft_tokens": "2", "accepted": ""}),
        ({"notes": "MTP ns=3, acceptance 75.8%"}, {"draft_tokens": "3", "accepted": "3.27"}),
        ({"notes": "MTP draft n-max 2, acceptance 0.72-0.81"}, {"draft_tokens": "2", "accepted": "2.53"}),
        ({"notes": "EAGLE/MTP 3 steps 4 draft tokens"}, {"speculation": "mtp", "draft_tokens": "3"}),
        ({"notes": "DSpark speculative, accept length 2.50"}, {"speculation": "dflash", "accepted": "2.5"}),
        ({"notes": "no MTP"}, {"speculation": "", "draft_tokens": ""}),
        ({"notes": "MTP off; batch 1"}, {"speculation": ""}),
        ({"notes": "no spec decode"}, {"speculation": "", "mode": "served"}),
        ({"notes": "tpot = median ITL (decode steps only)"}, {"mode": "served"}),
        ({"notes": "decode tok/s at 0 context", "input_tokens": ""}, {"mode": "decode", "input_tokens": "0"}),
        ({"notes": "ShareGPT 1000 prompts", "concurrency": "max(1000)"}, {"mode": "burst", "requests": "1000"}),
        ({"notes": "tg128", "engine": "llama.cpp"}, {"mode": "decode", "input_tokens": "0"}),
        ({"gpu": "RTX 5080 16GB + Ryzen 9950X DDR5-4800"}, {"gpu": "RTX 5080 16GB", "cpu": "Ryzen 9950X"}),
        ({"notes": "run 2026-03-03", "engine_version": ""}, {"date": "2026-03"}),
        ({"engine_version": "(Sep 2025)"}, {"date": "2025-09"}),
        ({"engine_version": "0.11.0"}, {"date": "2025-10"}),
        ({"engine_version": "26.01 container"}, {"date": "2025-11"}),
        ({"notes": "ShareGPT 1000 prompts; --async-scheduling"}, {"asynchronous": "1"}),
        (
            {"gpu": "A100 80GB", "notes": "300 W limit = PCIe card"},
            {"gpu": "A100 PCIe 80GB"},
        ),
        ({"gpu": "A100 80GB", "notes": ""}, {"gpu": "A100 80GB"}),
        (
            {"dtype": "fp8", "engine": "TensorRT-LLM", "source": "https://github.com/NVIDIA/TensorRT-LLM"},
            {"kv": "fp8"},
        ),
        ({"dtype": "fp8", "engine": "TensorRT-LLM", "source": "https://github.com/gpustack/gpustack"}, {"kv": ""}),
    ],
)
def test_text_becomes_columns(change: dict[str, str], columns: dict[str, str]) -> None:
    found = measurements.normalise_row({**RAW, **change})
    assert {name: found[name] for name in columns} == columns


def test_a_doubtful_row_has_a_weight_and_a_reason() -> None:
    clean = measurements.normalise_row(RAW)
    assert (clean["weight"], clean["reason"]) == ("1", "")
    doubtful = measurements.normalise_row({**RAW, "notes": "chat summary, rounded"})
    assert float(doubtful["weight"]) < 0.5
    assert doubtful["reason"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_tokens": "-5"}, "input_tokens = -5 is negative"),
        ({"output_tok_s": ""}, "neither output_tok_s nor total_tok_s"),
        ({"total_tok_s": "10"}, "is less than output_tok_s"),
        ({"tpot_ms": "90"}, "check the units"),
        ({"output_tok_s": "1000000"}, "check the units"),
        ({"gpu": "Voodoo 2"}, "card 'Voodoo 2' is not in the catalog"),
    ],
)
def test_an_impossible_row_is_refused(change: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        reject_impossible(measurements.normalise_row({**RAW, **change}))


def test_skipped_rows_are_named_by_line() -> None:
    kept, skipped = measurements.import_rows([RAW, {**RAW, "tpot_ms": "90"}, RAW], "table")
    assert [row["origin"] for row in kept] == ["table:2", "table:4"]
    assert str(skipped[0]).startswith("table:3: skipped: output_tok_s = 1000 needs 90 requests")


def test_the_shipped_table_is_the_import_of_the_published_ones() -> None:
    rows: list[dict[str, str]] = []
    for path in sorted(measurements.PUBLISHED.glob("*.csv")):
        rows += measurements.import_rows(measurements.read_published(path), path.stem)[0]
    assert measurements.dump(rows) == MEASUREMENTS.read_text("utf-8")


def test_a_written_table_is_read_by_the_planner(tmp_path: Path) -> None:
    raw, table = tmp_path / "raw.csv", tmp_path / "table.csv"
    raw.write_text(",".join(RAW) + "\n" + ",".join(RAW.values()) + "\n", "utf-8")
    assert measurements.main([str(raw), "--write", str(table)]) == 0
    (result,) = evaluate.evaluate(evaluate.read(table))
    assert result.predicted is not None
    assert result.truth == 1000


def test_sister_rows_state_the_requests_of_a_row() -> None:
    sister = "https://github.com/cloudrift-ai/deplodock/x/Qwen3-Coder-Next-FP8/optimal_mcr_pro6000"
    assert measurements.normalise_row({**RAW, "source": sister})["requests"] == "80"
    assert measurements.normalise_row({**RAW, "source": sister, "notes": "32 prompts"})["requests"] == "32"
    assert measurements.normalise_row({**RAW, "source": "https://example.com"})["requests"] == ""
    assert all(entry["reason"] for entry in measurements.inferences())


def test_a_page_states_the_requests_and_the_lengths_of_one_of_its_runs() -> None:
    page = "https://github.com/gpustack/gpustack/blob/main/docs/performance-lab/qwen3.5-35b-a3b/h200.md"
    run = {**RAW, "source": page, "model": "Qwen3.5-35B-A3B", "input_tokens": "32000", "concurrency": "100"}
    assert measurements.normalise_row(run)["requests"] == "100"
    assert measurements.normalise_row({**run, "concurrency": "8"})["requests"] == ""
    chats = measurements.normalise_row({**run, "input_tokens": "", "output_tokens": "", "concurrency": "512"})
    assert [chats[name] for name in ("requests", "input_tokens", "output_tokens")] == ["1000", "342", "281"]
