"""The tables of tests/planner are what transformers and vLLM answer, asked again here for a sample."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.vllm.conftest import ENGINE_PYTHON

pytestmark = pytest.mark.vllm

SAMPLE = ["gpt2", "gemma3_text", "ernie4_5_moe", "qwen3_5_text", "falcon", "llava"]


def asked(script: str, *sample: str) -> dict[str, Any]:
    done = subprocess.run(
        [ENGINE_PYTHON, ROOT / "benchmarks" / "planner" / script, "--sample", *sample],
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def table(name: str, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(ROOT) / "tests" / "catalog" / name).read_text("utf-8"))[key]
    return found


def test_the_families_are_those_of_transformers() -> None:
    answer, truth = asked("families.py", *SAMPLE), table("families.json", "families")
    assert sorted(answer) == sorted(SAMPLE)
    assert answer == {family: truth[family] for family in SAMPLE}


def test_the_contexts_are_those_of_vllm() -> None:
    truth = table("contexts.json", "cases")
    answer = asked("contexts.py", "")
    assert answer == truth
