"""Access to the machine: files under a root folder, programs with a timeout. Nothing is written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ApplianceError

SYSTEM_PATH = "/run/current-system/sw/bin:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
"""Folders of administrators' tools; the search path of `sudo` and of services often has fewer."""


class CannotLookError(ApplianceError):
    """Something could not be inspected; ``fix`` is the command or the change that makes it possible."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


class TimedOutError(CannotLookError):
    """A program exceeded its timeout."""


@dataclass(frozen=True, slots=True)
class Output:
    """Exit code and output of a program."""

    code: int
    out: str
    err: str

    @property
    def first_error(self) -> str:
        """Return the first line of its error output, or else of its output."""
        return next(
            (line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip()), "no output"
        )


@dataclass(frozen=True, slots=True)
class HostReader:
    """A reader of the machine under ``root``, ``/`` except in tests; ``timeout_s`` limits each program."""

    root: Path = Path("/")
    timeout_s: float = 10.0

    def path(self, name: str | Path) -> Path:
        """Return the absolute path ``name`` under the root."""
        return self.root / str(name).lstrip("/")

    def text(self, name: str | Path) -> str | None:
        """Return the text of a file, ``None`` if it is missing; raises :class:`CannotLookError` if forbidden."""
        try:
            return self.path(name).read_text("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            return None
        except OSError as error:
            raise CannotLookError(f"{name}: {error.strerror}", "run `appliance doctor` as root") from error

    def number(self, name: str | Path) -> int | None:
        """Return the number in a file, ``None`` if there is no file or no number."""
        text = self.text(name)
        with suppress(TypeError, ValueError):
            return int(text)  # type: ignore[arg-type]
        return None

    def link(self, name: str | Path) -> str | None:
        """Return the target of a symbolic link, unresolved; ``None`` if it is missing or not readable."""
        try:
            return str(self.path(name).readlink())
        except OSError:
            return None

    def folder(self, name: str | Path) -> Iterator[str]:
        """Yield the names in a folder; none if it is missing or not readable."""
        try:
            yield from sorted(entry.name for entry in self.path(name).iterdir())
        except OSError:
            return

    def run(self, *argv: str, timeout_s: float | None = None) -> Output:
        """Run ``argv`` and return its output, with ``timeout_s`` in seconds in place of the reader's own.

        Raises :class:`CannotLookError` if the program is missing, :class:`TimedOutError` if it exceeds the timeout.
        """
        program = shutil.which(argv[0], path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
        if program is None:
            raise CannotLookError(f"{argv[0]} is not installed", f"install {argv[0]}, or check PATH")
        limit_s = timeout_s or self.timeout_s
        # A session of its own, so that its child processes end with it and cannot keep the pipes open.
        process = subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # A process that hangs inside a driver survives SIGKILL: do not wait for it.
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            raise TimedOutError(
                f"{argv[0]} did not respond within {limit_s:g} s", f"run `{' '.join(argv)}` by hand"
            ) from None
        return Output(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))
