"""Runs the programs of an installation: venv, pip, apt-get. Standard library only.

No variable and no configuration file of pip changes which packages they install, or their folder. Their output
about a refused write becomes a sentence.
"""

from __future__ import annotations

import ast
import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import REFUSED, StartError, existing, write_fix

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = frozenset(
    {"index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "cert", "client-cert", "proxy"}
    | {"timeout", "default-timeout", "retries", "resume-retries", "cache-dir", "no-cache-dir", "keyring-provider"}
)
"""The settings of pip that are kept: the source of packages, and how they are fetched. All others would change
which packages are installed, or their folder; the locks determine that."""

_inherited: list[int] = []
"""Descriptors that each program inherits: a lock is held until the last program has ended."""


@contextmanager
def inheriting(number: int) -> Iterator[None]:
    """Let programs that are started meanwhile inherit the descriptor ``number``."""
    _inherited.append(number)
    try:
        yield
    finally:
        _inherited.remove(number)


def start(argv: Sequence[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``argv`` to its end with its output captured.

    It ends if this process is killed. No variable changes the behaviour of Python or pip in it.
    """
    return subprocess.run(
        argv,
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        env=plain_environment() if environment is None else environment,
        pass_fds=_inherited,
        preexec_fn=_die_with_parent,
    )


def _die_with_parent() -> None:
    """Request SIGTERM at the death of the parent (PR_SET_PDEATHSIG, prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def plain_environment() -> dict[str, str]:
    """Return this process's environment without the variables of Python and pip."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}


def _variable_of(name: str) -> str | None:
    """Return the setting of pip that the variable ``name`` sets."""
    return name.removeprefix("PIP_").lower().replace("_", "-") if name.startswith("PIP_") else None


def pip_environment(python: Path) -> dict[str, str]:
    """Return the environment for the pip of ``python``, with no settings but :data:`SOURCES`.

    The settings are read from variables and configuration files, as pip does.
    Raises :class:`StartError` if pip rejects its own configuration.
    """
    given = {name: value for name, value in os.environ.items() if _variable_of(name) in SOURCES}
    if file := os.environ.get("PIP_CONFIG_FILE"):
        given["PIP_CONFIG_FILE"] = file
    done = start([str(python), "-m", "pip", "config", "list"], plain_environment() | given)
    if done.returncode != 0:
        raise StartError(f"the configuration of pip cannot be read ({last_line(done.stderr)}); correct it there")
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in done.stdout.splitlines():
        setting, _, value = line.partition("=")
        section, _, name = setting.partition(".")
        # To pip an empty value is an absent one.
        if section in found and name in SOURCES and value[:1] in ("'", '"') and (text := ast.literal_eval(value)):
            found[section][name] = str(text)
    settings = found["global"] | found["install"] | found[":env:"]
    variables = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in settings.items()}
    return plain_environment() | variables | {"PIP_CONFIG_FILE": os.devnull}


def unwritable(folder: Path, stderr: str) -> str | None:
    """Return the sentence for a program that could not write to ``folder``; ``None`` for another failure.

    ``stderr`` is its output: Python programs print the errno.
    """
    errors = "\n".join(line for line in stderr.splitlines() if not line.lstrip().startswith("WARNING"))
    for match in re.finditer(r"\[Errno (\d+)\] ([^:\n]+)(?:: '([^'\n]+)')?", errors):
        number = int(match[1])
        if number not in REFUSED:
            continue
        path = Path(match[3] or folder)
        if number in (errno.ENOSPC, errno.EDQUOT) and shutil.disk_usage(existing(path)).free:
            # Programs name at most the file that they wrote last: wheels are unpacked in the temporary folder.
            path = min((folder, Path(tempfile.gettempdir())), key=_room)
        return f"{path} cannot be written ({match[2].strip()}); {write_fix(path, number)}"
    return None


def _room(path: Path) -> int:
    return shutil.disk_usage(existing(path)).free


def last_line(text: str) -> str:
    """Return the last line of pip's errors, or of its output, in at most 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1][:300]
