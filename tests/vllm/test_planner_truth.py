"""The tables of tests/catalog against transformers and vLLM, for a sample."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.up_process import ENGINE_PYTHON

# The contexts take 26 s of CPU. Four workers and their servers share two cores, so that it takes up to two minutes.
RUN_S = 300
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(RUN_S + 20)]

SAMPLE = ["gpt2", "gemma3_text", "ernie4_5_moe", "qwen3_5_text", "falcon", "llava"]


def run(script: str, *sample: str) -> dict[str, Any]:
    """Return the output of a script of benchmarks/planner for ``sample``, run in the engine's environment."""
    done = subprocess.run(
        [ENGINE_PYTHON, ROOT / "benchmarks" / "planner" / script, "--sample", *sample],
        capture_output=True,
        text=True,
        check=True,
        timeout=RUN_S,
    )
    output: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return output


def table(name: str, key: str) -> dict[str, Any]:
    """Return the table under ``key`` of the file ``name`` of tests/catalog."""
    found: dict[str, Any] = json.loads((Path(ROOT) / "tests" / "catalog" / name).read_text("utf-8"))[key]
    return found


def test_the_families_equal_those_of_transformers() -> None:
    counted, recorded = run("families.py", *SAMPLE), table("families.json", "families")
    assert sorted(counted) == sorted(SAMPLE)
    assert counted == {family: recorded[family] for family in SAMPLE}


def test_the_contexts_equal_those_of_vllm() -> None:
    assert run("contexts.py", "") == table("contexts.json", "cases")
