"""Runs a module that ends with its parent process: ``python -m loadtests.parent_death PID MODULE ARGUMENT…``.

The kernel kills this process when its parent dies, also by SIGKILL, which leaves the parent no time to end the
load.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): sets the signal that this process receives when its parent dies."""


def main() -> None:
    """Bind this process to its parent, whose pid is the first argument, and run the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent died before the call to the kernel.
        sys.exit(f"{module} is not started: its parent process {parent} has ended")
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
