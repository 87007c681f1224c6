"""Runs a command of `appliance` in the process of the test, for commands that only read, write and print.

A process of its own imports for up to a second of CPU. Tests of signals, terminals and whole starts need one.
"""

from __future__ import annotations

import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from appliance.cli import main
from tests.conftest import ROOT


def run_command(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``appliance`` with these words and additional variables in the repository; return code and output."""
    argv = [str(word) for word in words]
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as changed, chdir(ROOT), redirect_stdout(out), redirect_stderr(err):
        for name, value in environment.items():
            changed.setenv(name, value)
        code = main(argv)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())
