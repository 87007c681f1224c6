"""Runs programs as another user of this machine, if the tests run as root."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOBODY = 65534
NAME = pwd.getpwuid(NOBODY).pw_name
IDENTITY: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def environment() -> dict[str, str]:
    """Return variables with which another Python of the same version imports the packages of this one."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "HOME": "/nonexistent",
    }


@cache
def python() -> str:
    """Return a Python of this version that the user may run: this one may be in root's home. Else skip the test."""
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: another user needs root")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        try:
            argv = [candidate, "-c", "import appliance.up"]
            subprocess.run(argv, check=True, cwd="/", env=environment(), capture_output=True, **IDENTITY)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    pytest.skip("NOT CHECKED: another user may run no Python of this version")


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python with ``arguments`` as the user."""
    argv = [python(), *map(str, arguments)]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, cwd=cwd, env=environment(), **IDENTITY
    )


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Yield a temporary folder that the user may enter, unlike pytest's own. Skip the test without another user."""
    python()
    with tempfile.TemporaryDirectory(prefix="appliance-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
