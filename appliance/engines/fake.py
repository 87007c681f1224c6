"""The fake engine as an engine kind: ``make up ENGINE=fake``, tests and benchmarks.

It speaks vLLM's API and makes tokens by the clock; nothing in it is a model, and it says so in every answer.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.contract.model import Engine, Model

SCRIPT = Path(__file__).resolve().parents[2] / "tests" / "fakes" / "vllm.py"
"""The one fake lives with the tests: a checkout has it, an installed appliance has no use for it."""


def build(engine: Engine, model: Model, replica: int) -> tuple[list[str], dict[str, str]]:
    """argv and environment of replica number ``replica``."""
    argv = [engine.command or sys.executable, str(SCRIPT), "--model", engine.model]
    argv += ["--port", str(engine.port + replica), "--context", str(engine.context), "--task", model.task]
    for flag, value in engine.options.items():
        argv += [f"--{flag}", str(value)]
    return argv, {"VLLM_SERVER_DEV_MODE": "1"} if engine.sleep else {}
