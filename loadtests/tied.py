"""Runs a module that ends with the process which started it: ``python -m loadtests.tied PID MODULE ARGUMENT…``.

The kernel kills this process when its parent dies, also by SIGKILL, which gives the parent no time to end the load.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent dies."""


def main() -> None:
    """Tie this process to its parent, whose pid is the first argument, and become the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It died before the kernel was asked.
        sys.exit(f"{module} does not start: process {parent}, which wanted it, has ended")
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
