"""`appliance loadtest` before a running gateway, and in an interpreter without packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

from tests.conftest import ROOT, RunningService
from tests.loadtests.stall import STALL
from tests.ports import free_port


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "appliance", *map(str, words)]
    environ = {**os.environ, **environment}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=environ)


def test_a_load_test_makes_the_requested_number_of_requests(service: RunningService, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ("loadtest", "--config", service.config, "--users", "3", "--requests", "4", *STALL, "--json", report)
    done = run(*words, APPLIANCE_API_KEY=service.key)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(report.read_text())["requests"] == 12
    assert "PASS" in done.stdout


def test_a_load_test_runs_in_an_interpreter_without_packages(service: RunningService, tmp_path: Path) -> None:
    """As in a Nix package: a wrapper adds the packages to ``sys.path``, and ``sys.executable`` has none."""
    # An environment without packages: the interpreter below it may have some, Locust among them.
    venv.create(tmp_path / "bare", symlinks=True)
    bare = tmp_path / "bare" / "bin" / "python"
    imported = subprocess.run([bare, "-c", "import locust"], capture_output=True, check=False, cwd=tmp_path)
    assert imported.returncode != 0
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    words = ["loadtest", "--config", str(service.config), "--users", "1", "--requests", "2", *STALL]
    wrapper = (
        f"import site, sys; site.addsitedir({packages!r}); sys.path.append({str(ROOT)!r}); "
        f"from appliance.cli import main; sys.exit(main({words!r}))"
    )
    environment = {**os.environ, "APPLIANCE_API_KEY": service.key}
    environment.pop("PYTHONPATH", None)
    argv = [str(bare), "-c", wrapper]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout


def test_an_impossible_load_test_is_rejected(service: RunningService) -> None:
    done = run("loadtest", "--config", service.config, "--users", "0", APPLIANCE_API_KEY=service.key)
    assert (done.returncode, done.stderr) == (
        2,
        "error: users: input should be greater than or equal to 1, not 0\n",
    )
    done = run("loadtest", "--config", service.config, APPLIANCE_API_KEY="")
    assert (done.returncode, done.stderr.startswith("error: APPLIANCE_API_KEY is not set")) == (2, True)
    port = free_port()
    done = run("loadtest", "--config", service.config, "--url", f"http://127.0.0.1:{port}", APPLIANCE_API_KEY="x")
    assert done.returncode == 2
    assert "no answer (ConnectionRefusedError); check that the gateway runs there" in done.stderr
