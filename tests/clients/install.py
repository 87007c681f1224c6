"""Installs the Node SDKs of ``node/package-lock.json`` into the folder of their drivers, once for each lock.

The lock holds versions and integrity hashes, and names no registry: npm uses the registry of its configuration.
Standard library only. ``python -m tests.clients.install --lock`` resolves the lock anew from ``node/package.json``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NODE = Path(__file__).resolve().parent / "node"
LEAST_NODE = 18
"""The major version of the oldest Node that runs all SDKs."""

LOCKING = ["--package-lock-only", "--omit-lockfile-registry-resolved", "--ignore-scripts"]


class InstallError(Exception):
    """The Node SDKs cannot be installed; the message contains the reason and the fix."""


class MissingError(InstallError):
    """This machine has no Node, no npm, or a Node that is too old."""


def node() -> str:
    """Return the path of ``node``; raises :class:`MissingError` if it, or npm, is missing or too old."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        raise MissingError("node and npm are not installed; on Debian: apt-get install nodejs npm")
    version = _run([found, "--version"], NODE).strip()
    if int(version.removeprefix("v").partition(".")[0]) < LEAST_NODE:
        raise MissingError(f"{found} is Node {version}; install Node {LEAST_NODE} or newer")
    return found


def install(folder: Path = NODE) -> Path:
    """Install the lock in ``folder`` unless it is installed, and return its ``node_modules``.

    A file lock makes other processes wait. Raises :class:`InstallError` with the output of npm.
    """
    node()
    modules = folder / "node_modules"
    digest = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    with (folder / ".install-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = modules / ".installed"
        if not stamp.exists() or stamp.read_text() != digest:
            _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], folder)
            stamp.write_text(digest)
    return modules


def write_lock(folder: Path = NODE) -> None:
    """Resolve ``package.json`` into ``package-lock.json``, without addresses."""
    node()
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(folder / "package.json", scratch)
        _run(["npm", "install", *LOCKING], Path(scratch))
        table = json.loads((Path(scratch) / "package-lock.json").read_text())
    (folder / "package-lock.json").write_text(lock_text(table))


def lock_text(table: dict[str, Any]) -> str:
    """Return the lock ``table`` as JSON; raises :class:`InstallError` if it names an address or lacks a hash."""
    for name, package in table["packages"].items():
        # An address of the authors, for `npm fund`.
        package.pop("funding", None)
        if name and "integrity" not in package:
            raise InstallError(f"the lock has no hash of {name}; depend on a release, not on a link or a branch")
    text = json.dumps(table, indent=2) + "\n"
    if address := re.search(r'"resolved"|\w+://[^\s"]+', text):
        raise InstallError(f"npm wrote {address.group(0)} into the lock; a lock names no address")
    return text


def _run(argv: Sequence[str], folder: Path) -> str:
    """Run ``argv`` in ``folder`` and return its output."""
    done = subprocess.run(argv, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise InstallError(f"`{' '.join(argv)}` failed in {folder}: {(done.stderr or done.stdout)[-1500:].strip()}")
    return done.stdout


if __name__ == "__main__":
    try:
        write_lock() if "--lock" in sys.argv[1:] else install()
    except InstallError as error:
        sys.exit(f"error: {error}")
