"""A user of this machine who owns nothing: as root, tests run programs as that user."""

from __future__ import annotations

import os
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
IDENTITY: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def environment() -> dict[str, str]:
    """Variables with which another Python of the same version finds the packages of this one."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "HOME": "/nonexistent",
    }


@cache
def python() -> str:
    """A Python of this version that the user may run: this one may lie in root's home. Else the test is skipped."""
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
    pytest.skip("NOT CHECKED: no Python here that another user may run")


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python with ``arguments`` as the user."""
    argv = [python(), *map(str, arguments)]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, cwd=cwd, env=environment(), **IDENTITY
    )


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder that other users may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="appliance-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
