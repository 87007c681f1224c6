"""Runs the programs that change a machine: bootctl, nix-env, systemctl. One that fails is a sentence."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Literal

from appliance.errors import LoaderError

TIMEOUT_S = 120.0
"""Each is done within seconds; one that waits for a lock or a dying disk must not take the rest with it."""

Shown = Literal["nothing", "errors", "all"]
"""What of its output goes where ours goes, as it comes."""


def run(
    argv: Sequence[str],
    *,
    hint: str,
    shown: Shown = "nothing",
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = TIMEOUT_S,
) -> str:
    """What ``argv`` prints on its standard output, without the white space around it; empty where that is shown.

    Raises :class:`LoaderError` where it cannot be run, does not end in time or ends with another code than 0: how,
    the last that it said, and ``hint``.
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
        said = (done.stderr or done.stdout or "").strip().splitlines() or [
            "it says nothing" if shown == "nothing" else "see above"
        ]
        raise LoaderError(f"{' '.join(argv)} ended with {done.returncode}: {said[-1]}; {hint}")
    return (done.stdout or "").strip()
