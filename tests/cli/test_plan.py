"""The commands `plan` and `catalog`: their output, the files that they write, and one line for bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from appliance.catalog.shipped import MEASUREMENTS
from appliance.cli import parse
from appliance.contract.load import load
from appliance.errors import ApplianceError

EXAMPLES = Path(__file__).parents[2] / "examples"
PRO = "RTX PRO 6000 Blackwell Workstation"


def call(*argv: str) -> int:
    args = parse(argv)
    return int(args.run(args))


def test_a_prediction_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    argv = (
        "plan",
        "predict",
        "--card",
        PRO,
        "--model",
        "Qwen/Qwen3-30B-A3B",
        "--concurrency",
        "64",
        "--json",
    )
    assert call(*argv) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["low"] < output["output_tok_s"] < output["high"]
    assert output["memory"]["fits"]
    assert output["limit"]


def test_an_evaluation_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", "evaluate", str(MEASUREMENTS), "--json") == 0
    output = json.loads(capsys.readouterr().out)
    assert output["all"]["rows"] == output["all"]["answered"] == 887
    assert output["conditions_stated"]["median"] < 0.22
    assert len(output["rows"]) == 887
    assert len(output["groups"]) == 146


def test_an_evaluation_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", "evaluate", str(MEASUREMENTS)) == 0
    assert "Qwen3-30B-A3B on RTX PRO 6000 Blackwell Server" in capsys.readouterr().out


def test_measurements_of_the_machine_correct_a_prediction(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ("plan", "predict", "--card", PRO, "--model", "Qwen/Qwen3-30B-A3B", "--concurrency", "16", "--json")
    assert call(*argv) == 0
    before = json.loads(capsys.readouterr().out)
    path = tmp_path / "mine.csv"
    rate = before["output_tok_s"] / 2
    path.write_text(
        "gpu,model,dtype,engine,input_tokens,output_tokens,concurrency,output_tok_s\n"
        f"{PRO},Qwen3-30B-A3B,bf16,vLLM,1024,1024,16,{rate}\n"
        f"{PRO},Qwen3-30B-A3B,bf16,vLLM,1024,-1024,16,{rate}\n",
        "utf-8",
    )
    assert call(*argv, "--measured", str(path)) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["output_tok_s"] == pytest.approx(rate, rel=0.05)
    assert printed.err == f"{path}: line 3: skipped: output_tokens = -1024 is negative\n"
    path.write_text("gpu,model,output_tok_s\nRTX 5090,Qwen3-30B-A3B,900\n", "utf-8")
    with pytest.raises(ApplianceError, match="was measured on RTX 5090"):
        call(*argv, "--measured", str(path))


class Page(HTMLParser):
    """The elements of a page and the addresses that it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)
        if tag == "a":
            self.links += [value or "" for name, value in attrs if name == "href"]
            return
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_plan_for_a_site_with_page_json_and_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "site.toml"
    shutil.copy(EXAMPLES / "eight-cards-hybrid.toml", config)
    where = tmp_path / "plan.html"
    start = time.process_time()
    argv = [
        "plan",
        "--config",
        str(config),
        "--share",
        "planner=0.15",
        "--share",
        "coder=0.65",
        "--json",
        "--write",
    ]
    assert call(*argv, "--html", str(where)) == 0
    assert time.process_time() - start < 10
    output: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {
        "recommended",
        "reasons",
        "alternatives",
        "simulation",
        "changes",
        "memory",
        "curves",
    } <= output.keys()
    assert len(output["memory"]) == 8
    for bar in output["memory"]:
        assert bar["weights"] + bar["working"] + bar["kv"] <= bar["total"]
    assert load(config).engines["planner"].tensor_parallel == 4
    text = where.read_text("utf-8")
    made = Page(text)
    assert made.open == []
    assert made.addresses == ["data:,"]
    assert not re.search(r"@import|url\(", text)
    assert made.links
    assert all(address.startswith(("https://", "http://")) for address in made.links)
    assert {"svg", "table", "polyline"} <= set(made.tags)
    assert json.loads(text.split('id="plan">', 1)[1].split("</script>", 1)[0]) == output


def test_a_plan_from_flags(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--cards", f"2x {PRO}", "--model", "Qwen/Qwen3-30B-A3B", "--model", "Qwen/Qwen3-Embedding-0.6B"]
    assert call("plan", *argv, "--share", "Qwen3-Embedding-0.6B=0.2", "--simulate", "2000") == 0
    out = capsys.readouterr().out
    assert "2 x single card Qwen3-30B-A3B" in out
    assert "Effect of changes" in out
    assert "Memory per card" in out


def test_add_model_and_plan_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "vocab_size": 151936,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
        "_name_or_path": "My/Own-8B",
    }
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    catalogue = tmp_path / "models.toml"
    assert call("catalog", "add-model", str(tmp_path), "--into", str(catalogue), "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["total_params"] == 8_190_735_360
    assert figures["kv_bytes_per_token_bf16"] == 147456
    with pytest.raises(ApplianceError, match="already holds"):
        call("catalog", "add-model", str(tmp_path), "--into", str(catalogue))
    argv = ("plan", "predict", "--card", PRO, "--model", "My/Own-8B", "--catalog", str(catalogue))
    assert call(*argv) == 0
    assert call("catalog", "list") == 0
    assert "RTX 5090" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("plan", "nothing to plan"),
        ("plan --write", "--write needs --config"),
        ("plan --config nowhere.toml", "no such file"),
        ("plan --cards Voodoo --model Qwen/Qwen3-8B", "card 'Voodoo' is not in the catalog"),
        ("plan --cards L40S --model Qwen/Qwen3-9B", "did you mean 'Qwen/Qwen3"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --chats -3", "chats = -3"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --users 0", "users = 0"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --machines 99", "nearest valid: 8"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --context 99999", "nearest: 40960"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --share x", "is not NAME=SHARE"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --share Qwen3-8B=7", "between 0 and 1"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --share other=1", "is not planned"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --power 9000", "nearest valid: 350"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --simulate 0", "nearest valid: 1"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --think 0", "think time = 0"),
        ("plan --cards L40S --model Qwen/Qwen3-8B --cpu Z80", "processor 'Z80' is not in the catalog"),
        ("plan predict --card L40S,W7900 --model Qwen/Qwen3-8B", "mixed vendors in one shard"),
        ("plan predict --card L40S --model Qwen/Qwen3-32B", "do not fit"),
        ("plan predict --card L40S --model Qwen/Qwen3-8B --tp 5", "does not divide the 32 heads"),
        ("plan predict --card L40S --model Qwen/Qwen3-8B --input 50000", "nearest valid: 40960"),
        ("plan predict --card L40S --model Qwen/Qwen3-8B --kv fp9", "KV cache type 'fp9' does not exist"),
        ("plan evaluate nowhere.csv", "cannot be read"),
        ("catalog add-model ./nowhere", "no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv: str, words: str) -> None:
    with pytest.raises(ApplianceError) as caught:
        call(*argv.split(" "))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


PLANNED = ["plan", "--cards", "L40S", "--model", "Qwen/Qwen3-8B", "--simulate", "50"]


@pytest.mark.parametrize("argv", [PLANNED, [*PLANNED, "--json"], ["catalog", "list"]], ids=["plan", "json", "list"])
@pytest.mark.parametrize("read", [0, 1])
@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_closed_pipe_ends_quietly(argv: list[str], read: int, buffered: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "appliance", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONUNBUFFERED": buffered},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(read)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_a_million_chats_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", "--cards", "L40S", "--model", "Qwen/Qwen3-8B", "--chats", "1000000", "--json") == 0
    assert json.loads(capsys.readouterr().out)["demand"]["chats"] == 1_000_000
