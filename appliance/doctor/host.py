"""The edge to the machine: files under a root folder, other programs with a deadline. Nothing is written."""

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
"""Where administrators' tools lie; `sudo` and services often search less."""


class CannotLookError(ApplianceError):
    """Something could not be looked at; ``fix`` says how it could."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


class TimedOutError(CannotLookError):
    """A program did not answer within its deadline."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a program said."""

    code: int
    out: str
    err: str

    @property
    def first_error(self) -> str:
        """The first line of what it complained about."""
        return next((line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip()), "no word")


@dataclass(frozen=True, slots=True)
class HostReader:
    """A machine as seen from ``root`` (``/`` outside of tests)."""

    root: Path = Path("/")
    timeout_s: float = 10.0

    def path(self, name: str | Path) -> Path:
        """Where the absolute path ``name`` lies under the root."""
        return self.root / str(name).lstrip("/")

    def text(self, name: str | Path) -> str | None:
        """The text of a file; ``None`` where there is none. Raises :class:`CannotLookError` when not allowed."""
        try:
            return self.path(name).read_text("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            return None
        except OSError as error:
            raise CannotLookError(f"{name}: {error.strerror}", "run `appliance doctor` as root") from error

    def number(self, name: str | Path) -> int | None:
        """The number that a file holds; ``None`` where there is no file or no number."""
        text = self.text(name)
        with suppress(TypeError, ValueError):
            return int(text)  # type: ignore[arg-type]
        return None

    def link(self, name: str | Path) -> str | None:
        """Where a symbolic link leads, unresolved; ``None`` where there is none or one may not look."""
        try:
            return str(self.path(name).readlink())
        except OSError:
            return None

    def folder(self, name: str | Path) -> Iterator[str]:
        """The names in a folder; none where it is not there or may not be read."""
        try:
            yield from sorted(entry.name for entry in self.path(name).iterdir())
        except OSError:
            return

    def run(self, *argv: str, timeout_s: float | None = None) -> Output:
        """What ``argv`` says. Raises :class:`CannotLookError` where it is missing or does not end in time."""
        program = shutil.which(argv[0], path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
        if program is None:
            raise CannotLookError(f"{argv[0]} is not installed", f"install {argv[0]}, or look at its PATH")
        deadline = timeout_s or self.timeout_s
        # A session of its own: what it starts ends with it, and cannot keep our pipes open.
        process = subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # One that hangs inside a driver does not die even so; it is left behind rather than waited for.
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            raise TimedOutError(
                f"{argv[0]} did not answer within {deadline:g} s", f"run `{' '.join(argv)}` by hand"
            ) from None
        return Output(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))
