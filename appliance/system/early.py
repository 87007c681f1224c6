"""The first lines that this program runs: they let SIGINT end it without a traceback while it imports the rest.

The package itself imports this module before anything that takes time. It has no effect in another program that
imports the package (tests, a notebook), and none on the interpreter's own start, which takes some 20 ms.
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
        # `python -m` puts the program into argv only after it has found it.
        return ("-m", "appliance") in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return name.rpartition("/")[2] in NAMES


def end_quietly() -> dict[signal.Signals, Any]:
    """Let SIGINT and SIGTERM end this process at once, without a traceback; return the earlier handlers.

    For a program that has nothing to clean up, at its start or at its end.
    """
    return {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}


INHERITED = end_quietly() if _is_the_program() else {}
"""The handlers with which this program was started; empty in every other program."""
