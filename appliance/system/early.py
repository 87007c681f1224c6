"""The first lines that this program runs: they let SIGINT end it without a traceback while it imports the rest.

Imported by the package itself, before anything that takes time, and without effect in any other program that
imports the package (tests, a notebook). The interpreter's own start, some 20 ms before, is not ours to change.
"""

from __future__ import annotations

import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Importing it takes as long as the rest of this file.
    from typing import Any

NAMES = ("appliance", ".appliance-wrapped")
"""Names of the command: as installed by pip, and inside a Nix package."""


def _is_the_program() -> bool:
    name = sys.argv[0] if sys.argv else ""
    if name == "-m":
        # What `python -m` runs is not in argv before it has been found.
        return ("-m", "appliance") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return name.rpartition("/")[2] in NAMES


def end_quietly() -> dict[signal.Signals, Any]:
    """Let SIGINT and SIGTERM end this process at once, without a traceback; the handlers of before.

    For a program that holds nothing yet, or nothing any more.
    """
    return {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}


INHERITED = end_quietly() if _is_the_program() else {}
"""The handlers with which this program was started; empty in every other program."""
