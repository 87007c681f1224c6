"""Runs the programs that change a machine: bootctl, nix-env, systemctl. A failure becomes one sentence."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Literal

from appliance.errors import LoaderError

TIMEOUT_S = 120.0
"""Limit of a program. Each ends within seconds, unless it waits for a lock or a failing disk."""

Shown = Literal["nothing", "errors", "all"]
"""The output of a program that the terminal shows as it is written."""


def run(
    argv: Sequence[str],
    *,
    hint: str,
    shown: Shown = "nothing",
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = TIMEOUT_S,
) -> str:
    """Run ``argv`` and return its standard output, stripped; an empty string if the output is shown.

    Raises :class:`LoaderError` if it cannot be run, exceeds ``timeout_s`` or ends with another code than 0. The
    message has the reason, the last line of the program's output, and ``hint``.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL if shown == "nothing" else None,
            stdout=None if shown == "all" else subprocess.PIPE,
            stderr=subprocess.PIPE if shown == "nothing" else None,
            env=environment,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
        )
    except OSError as error:
        raise LoaderError(f"{argv[0]} cannot be run ({error.strerror}); {hint}") from None
    except subprocess.TimeoutExpired:
        raise LoaderError(f"{' '.join(argv)} did not end within {timeout_s:g} s; {hint}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout or "").strip().splitlines() or [
            "without a message" if shown == "nothing" else "see above"
        ]
        raise LoaderError(f"{' '.join(argv)} ended with {done.returncode}: {lines[-1]}; {hint}")
    return (done.stdout or "").strip()
