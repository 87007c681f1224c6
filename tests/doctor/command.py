"""The command `appliance doctor` on a fake host."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from appliance.cli import main
from tests.conftest import ROOT
from tests.doctor.fakehost import FakeHost

ARGV = [sys.executable, "-m", "appliance", "doctor"]
"""The command as a process, for tests of its terminal and of its whole start."""


def doctor(host: FakeHost, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command on a host under a folder, in this process: an import takes a second of CPU."""
    host.write_files()
    machine = host.root.parent / "machine.json"
    machine.write_text(json.dumps(host.machine))
    argv = ["--machine", str(machine), "--root", str(host.root), *words]
    if host.site:
        site = host.root.parent / "appliance.json"
        site.write_text(json.dumps(host.site))
        argv += ["--config", str(site)]
    return run_doctor(argv, **environment)


def run_doctor(argv: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with these arguments in this process."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as changed, chdir(ROOT), redirect_stdout(out), redirect_stderr(err):
        for name, value in environment.items():
            changed.setenv(name, value)
        code = main(["doctor", *argv])
    return subprocess.CompletedProcess(list(argv), code, out.getvalue(), err.getvalue())
