"""Installs the client programs outside of the repository, at the versions of ``npm/`` and ``python/``.

The folder is ``CLIENTS_CACHE``, by default ``appliance-clients`` in the user's cache. npm's lock holds hashes; no
file names a registry. No install script of a package runs. ``python -m tests.client_programs.install --lock``
resolves npm's lock anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.install import LOCKING, InstallError, lock_text, node

HERE = Path(__file__).resolve().parent
NEWEST_FOR_AIDER = (3, 12)
"""The newest Python that aider 0.86 supports."""


@dataclass(frozen=True)
class InstalledPrograms:
    """The folders of the installed programs."""

    modules: Path
    """``node_modules``."""
    environments: Path
    """The folder of the Python environments by their names."""

    def path(self) -> str:
        """Return a ``PATH`` with all programs and with the Node that they need."""
        own = [
            *sorted(self.modules.glob("node-linux-*/bin")),
            *sorted(self.modules.glob("opencode-linux-*[!e]/bin")),
            self.modules / ".bin",
            self.environments / "aider" / "bin",
        ]
        return os.pathsep.join([*map(str, own), "/usr/local/bin", "/usr/bin", "/bin"])


def cache_folder() -> Path:
    """Return the folder of the installations."""
    named = os.environ.get("CLIENTS_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "appliance-clients"


def requirements(name: str) -> list[str]:
    """Return the pinned packages of the Python environment ``name``."""
    lines = (HERE / "python" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def install(folder: Path) -> InstalledPrograms:
    """Install all programs in ``folder``; raises :class:`InstallError` with the output of the failed command."""
    npm, environments = folder / "npm", folder / "python"
    npm.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / "npm" / name, npm)
    node()
    modules = _modules(npm)
    for name in ("aider", "langchain"):
        if name != "aider" or sys.version_info[:2] <= NEWEST_FOR_AIDER:
            _environment(environments / name, requirements(name))
    return InstalledPrograms(modules, environments)


def _modules(folder: Path) -> Path:
    """Install exactly the packages of the lock."""
    modules = folder / "node_modules"
    stamp, text = modules / ".installed", (folder / "package-lock.json").read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != text:
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _run(["npm", "ci", *options, "--prefix", str(folder)])
        stamp.write_text(text, encoding="utf-8")
    return modules


def without_missing(table: dict[str, Any]) -> dict[str, Any]:
    """Return the lock ``table`` without names of optional packages that it does not hold.

    npm omits optional packages that a registry does not have, such as those of other platforms, and keeps their
    names. ``npm ci`` then refuses the lock.
    """
    packages = table["packages"]
    held = {path.rpartition("node_modules/")[2] for path in packages}
    for package in packages.values():
        if "optionalDependencies" in package:
            kept = {name: pin for name, pin in package["optionalDependencies"].items() if name in held}
            package["optionalDependencies"] = kept
    return table


def write_lock() -> None:
    """Resolve ``npm/package.json`` into its lock."""
    node()
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(HERE / "npm" / "package.json", scratch)
        _run(["npm", "install", *LOCKING, "--prefix", scratch])
        table = json.loads((Path(scratch) / "package-lock.json").read_text(encoding="utf-8"))
    (HERE / "npm" / "package-lock.json").write_text(lock_text(without_missing(table)), encoding="utf-8")


def _environment(folder: Path, pins: list[str]) -> None:
    stamp, text = folder / ".installed", "\n".join(pins)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == text:
        return
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    python = str(folder / "bin" / "python")
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *pins])
    stamp.write_text(text, encoding="utf-8")


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise InstallError(f"`{' '.join(argv[:6])}` failed: {(done.stderr or done.stdout)[:1500].strip()}")


if __name__ == "__main__":
    try:
        write_lock() if "--lock" in sys.argv[1:] else install(cache_folder())
    except InstallError as error:
        sys.exit(f"error: {error}")
