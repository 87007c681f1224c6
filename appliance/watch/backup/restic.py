"""Runs restic: one child at a time, with a limit, without a secret in an argument list or a message.

restic runs as a user of its own. `restic unlock` sends SIGHUP to the process id of each lock of this host to see
whether its holder lives. As root it would end the unrelated service that has that id after a reboot.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from appliance.contract.backup import Repository
from appliance.errors import ConfigError, StartError
from appliance.system import text_file
from appliance.system.stopping import Stop

NO_REPOSITORY, PARTIAL = 10, 3
"""Exit codes of restic: no repository (0.17 and later), and a snapshot that lacks unreadable files."""

INTERRUPT_S, KILL_S = 15.0, 5.0
"""Seconds in which an interrupted restic removes its lock, and in which a killed one ends.

While all its connections upload, restic cannot remove the lock. The next run then does."""

RETRY_LOCK_SINCE = (0, 16)
"""The version that waits for a lock by itself."""


@dataclass(frozen=True, slots=True)
class RepositoryAccess:
    """A repository and the secrets that open it."""

    url: str = field(repr=False)
    password: str = field(repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def without_secrets(self, text: str) -> str:
        """Return ``text`` without any secret of this access."""
        hidden = {self.password, *self.environment.values()}
        with contextlib.suppress(ValueError):
            hidden.add(urlsplit(self.url.partition(":")[2]).password or "")
        for secret in sorted(hidden, key=len, reverse=True):
            if len(secret) > 3:
                text = text.replace(secret, "***")
        return text


@dataclass(frozen=True, slots=True)
class ResticResult:
    """The end of a restic command. ``code`` is ``None`` if it exceeded its limit or was interrupted."""

    code: int | None
    out: str
    reason: str
    """The line that gives the reason of a failure."""

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.code == 0

    @property
    def no_repository(self) -> bool:
        """Whether the server responds and the repository does not exist.

        restic before 0.17 prints "Is there a repository" also if it cannot reach the server.
        """
        hint = "Is there a repository at the following location" in self.reason
        absent = "does not exist" in self.reason or "no such file" in self.reason
        return self.code == NO_REPOSITORY or (hint and absent)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON messages of the output."""
        for line in self.out.splitlines():
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    yield message


@dataclass(frozen=True)
class Restic:
    """restic for one repository; ``cache`` is its cache folder."""

    access: RepositoryAccess
    cache: Path
    stop: Stop

    def run(self, *arguments: str, timeout_s: float) -> ResticResult:
        """Run restic with ``arguments``; at the limit, or when the run must end, restic gets time to unlock.

        Raises :class:`StartError` if restic cannot be run.
        """
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.cache),
            "LC_ALL": "C",
            **self.access.environment,
            "RESTIC_REPOSITORY": self.access.url,
            "RESTIC_PASSWORD": self.access.password,
            "RESTIC_CACHE_DIR": str(self.cache),
            "RESTIC_PROGRESS_FPS": "0.01",
        }
        # Files, not pipes: a child of restic (rclone, ssh) that survives must not keep this process waiting.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                # A session of its own: Ctrl-C in a terminal reaches this process only, which ends restic in order.
                process = subprocess.Popen(
                    ["restic", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise StartError(f"restic cannot be run ({error.strerror}); install it (Debian: restic)") from None
            ended = self._wait(process, timeout_s)
            text, errors = _content(out), _content(err)
        code, reason = process.returncode, self.access.without_secrets(_reason(errors) or _reason(text))
        if ended:
            code, reason = None, ended
        return ResticResult(code, text, reason or f"restic ended with {code} and no message")

    def retry_lock(self) -> tuple[str, ...]:
        """Return the arguments that make restic wait for the lock of another client; none for an old restic."""
        found = re.search(r"restic (\d+)\.(\d+)", self.run("version", timeout_s=60).out)
        new = found is not None and (int(found[1]), int(found[2])) >= RETRY_LOCK_SINCE
        return ("--retry-lock", "10m") if new else ()

    def _wait(self, process: subprocess.Popen[bytes], timeout_s: float) -> str:
        """Wait for ``process``; return why it was ended, or an empty text."""
        deadline = time.monotonic() + timeout_s
        reason = ""
        while process.poll() is None:
            if self.stop.wait(0.1):
                reason = f"interrupted by {self.stop.reason}"
            elif time.monotonic() >= deadline:
                reason = f"did not end within {timeout_s:g} s"
            if reason:
                _end(process)
                break
            if self.stop.requested:
                time.sleep(0.1)
        return reason


def _end(process: subprocess.Popen[bytes]) -> None:
    """End restic and its children: first by SIGINT, on which each version removes its lock, then by SIGKILL."""
    for number, seconds in ((signal.SIGINT, INTERRUPT_S), (signal.SIGKILL, KILL_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        # A process that hangs inside the kernel survives SIGKILL: do not wait for it without a limit.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def _content(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _reason(text: str) -> str:
    """Return the lines of restic's output that give the reason: the fatal one, or else the last, and its detail."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    plain = [_plain(line) for line in lines]
    for number, line in enumerate(plain):
        if line.startswith("Fatal:"):
            detail = next((one for one in plain[:number] if "error" in one.lower()), "")
            return " ".join(plain[number : number + 3]).removeprefix("Fatal: ") + (f" ({detail})" if detail else "")
    if not plain:
        return ""
    detail = next((one for one in plain[:-1] if "error" in one.lower()), "")
    return plain[-1] + (f" ({detail})" if detail else "")


def _plain(line: str) -> str:
    """Return a line of restic's output; of a JSON message, the text in it."""
    try:
        message = json.loads(line)
    except ValueError:
        return line
    if not isinstance(message, dict):
        return line
    error = message.get("error")
    text = error.get("message") or error.get("Err") if isinstance(error, dict) else None
    return f"error: {message.get('item', '')}: {text or error}" if error else str(message.get("message", line))


def open_access(name: str, repository: Repository) -> RepositoryAccess:
    """Return the access to ``repository``, from systemd's credentials if this process has them.

    Raises :class:`ConfigError` if a secret cannot be read.
    """
    url = repository.url or _secret(name, "url", repository.url_file)
    environment = {}
    if repository.environment_file is not None:
        text = _secret(name, "environment", repository.environment_file)
        environment = parse_environment(text, f"the environment of {name}")
    return RepositoryAccess(url, _secret(name, "password", repository.password_file), environment)


def parse_environment(text: str, name: str) -> dict[str, str]:
    """Return the variables of ``NAME=value`` lines; raises :class:`ConfigError` that begins with ``name``."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        variable, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable.strip()):
            raise ConfigError(f"{name}: line {number} is not NAME=value; write one variable a line")
        found[variable.strip()] = value.strip().strip("\"'")
    return found


def _secret(name: str, part: str, file: str | None) -> str:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(folder) / f"{name}-{part}" if folder else None
    path = credential if credential is not None and credential.exists() else Path(file or "")
    text = text_file.read(path, missing="no such file; sops-nix or the owner puts this secret there").strip()
    if not text:
        raise ConfigError(f"{path}: is empty; it must hold the {part} of the repository {name}")
    return text
