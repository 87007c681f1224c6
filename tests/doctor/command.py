"""The command `appliance doctor` on a fake host."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.command_line import run_command
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
    return run_command("doctor", *argv, **environment)
