"""Installs the client programs outside of the repository, at the versions of ``npm/`` and ``python/``.

The folder is ``CLIENTS_CACHE``, by default ``appliance-clients`` in the user's cache. npm's lock holds hashes; no
file names a registry. No install script of a package runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.clients.install import InstallError, node

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
    """Install the lock. ``npm ci`` refuses it: optional packages of other platforms do not exist."""
    modules = folder / "node_modules"
    stamp, text = modules / ".installed", (folder / "package-lock.json").read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != text:
        options = ["--ignore-scripts", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"]
        _run(["npm", "install", *options, "--prefix", str(folder)])
        stamp.write_text(text, encoding="utf-8")
    return modules


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
