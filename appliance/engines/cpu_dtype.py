"""The number format of vLLM on the CPU: float32 if the processor has AMX.

vLLM's bf16 attention for AMX can end the engine at its first token: SIGILL on a virtual machine whose processor
lists ``amx_tile`` (vLLM 0.32.0). float32 uses no AMX.
"""

from __future__ import annotations

import re
from pathlib import Path

from appliance.contract.model import Engine
from appliance.system import files

CPUINFO = Path("/proc/cpuinfo")
DTYPE = "float32"
NOTICE = (
    "this processor has AMX, where vLLM's bf16 can end at the first token, so it computes in float32 with twice "
    "the memory; options.dtype of the engine overrides this"
)


def read_cpuinfo() -> str:
    """Return the kernel's description of this machine's processors; empty on a system without it."""
    return (files.read(CPUINFO) or b"").decode("utf-8", "replace")


def choose(engine: Engine, cpuinfo: str) -> str | None:
    """Return the dtype that ``engine`` needs on the processor of ``cpuinfo``; ``None`` leaves the choice to vLLM.

    A dtype in the engine's options remains as it is.
    """
    if engine.kind != "vllm" or engine.device != "cpu" or "dtype" in engine.options:
        return None
    return DTYPE if re.search(r"^flags\s*:.*\bamx_tile\b", cpuinfo, re.MULTILINE) else None
