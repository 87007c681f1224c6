"""Prints the result of a part, and ends its process."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn


def end(outcome: str, reason: str = "", /, **figures: Any) -> NoReturn:
    """Print the result in one line, the last of the process."""
    print("\n" + json.dumps({"outcome": outcome, "reason": reason, "figures": figures}), flush=True)
    sys.exit(0)


def require_cuda() -> Any:
    """Return torch; end the part if it is missing or has no card."""
    try:
        import torch  # noqa: PLC0415 - its absence is a result
    except ImportError as error:
        end("missing", f"this Python has no torch ({error}); name the engine's by --python")
    if not torch.cuda.is_available():
        end(
            "missing",
            f"torch {torch.__version__} has no CUDA device; it is a build for the CPU, or the driver is older",
        )
    return torch
