"""The command `appliance doctor` on a fake host."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.conftest import ROOT
from tests.doctor.fakehost import FakeHost

ARGV = [sys.executable, "-m", "appliance", "doctor"]


def doctor(host: FakeHost, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command on a host under a folder."""
    host.write_files()
    machine = host.root.parent / "machine.json"
    machine.write_text(json.dumps(host.machine))
    argv = [*ARGV, "--machine", str(machine), "--root", str(host.root), *words]
    if host.site:
        site = host.root.parent / "appliance.json"
        site.write_text(json.dumps(host.site))
        argv += ["--config", str(site)]
    environ = {**os.environ, **environment}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=environ)
