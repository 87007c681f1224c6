"""The command line of the mock engine: ``make up ENGINE=fake``, tests and benchmarks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from appliance.contract.model import Engine, Model

MODULE = "appliance.engines.mock"
"""The module that the command runs; see :mod:`appliance.engines.mock`."""


def build(engine: Engine, model: Model, replica: int) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment of replica number ``replica``."""
    # Without -P, a folder named "appliance" in the working directory would come first.
    argv = [engine.command or sys.executable, "-P", "-m", MODULE, "--model", engine.model]
    argv += ["--port", str(engine.port + replica), "--context", str(engine.context), "--task", model.task]
    for flag, value in engine.options.items():
        argv += [f"--{flag}", str(value)]
    environment = {"VLLM_SERVER_DEV_MODE": "1"} if engine.sleep else {}
    if not engine.command:
        # A Nix package adds its modules to sys.path after the start of a Python that does not have them.
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
    return argv, environment
