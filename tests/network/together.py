"""Run the network tests in two concurrent processes: they wait most of the time for a line to recover.

    python -m tests.network.together [PYTEST ARGUMENT ...]

Each process has its own machines, and the namespaces are separate. The output of a process is shown at its end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT

HERE = Path(__file__).resolve().parent
APART = ("test_certificates.py", "test_line.py", "test_real_engine.py", "test_two_vps.py")
"""The files of one process, about half of the time: those that wait longest, for a line, a clock or vLLM."""


def groups() -> list[list[str]]:
    """Return the files of each process."""
    files = sorted(file.name for file in HERE.glob("test_*.py"))
    return [[name for name in files if name in APART], [name for name in files if name not in APART]]


def run(further: list[str], reports: Path | None = None) -> int:
    """Run all tests and return the highest exit code; write JUnit reports to the folder ``reports``."""
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for number, names in enumerate(groups()):
            argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(str(HERE / name) for name in names)]
            if reports is not None:
                argv += [f"--junitxml={reports / f'{number}.xml'}", "-o", "junit_family=xunit1"]
            output = Path(folder) / f"{number}.log"
            with output.open("wb") as file:
                started.append((output, subprocess.Popen([*argv, *further], cwd=ROOT, stdout=file, stderr=file)))
        try:
            # 5: the arguments select no test of this process.
            codes = [0 if process.wait() == 5 else process.returncode for _, process in started]
        finally:
            for output, process in started:
                process.wait()
                sys.stdout.write(output.read_text(errors="replace"))
        return max(codes)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
