"""Sets a bare machine up: ``.venv`` for the appliance, ``.venv-engine`` for vLLM, from hash-pinned locks.

Standard library only: it runs under the system's Python before anything is installed. An environment that is
already installed from the same lock is not touched, so a second run takes a fraction of a second.

One process at a time changes the environments. It holds :data:`LOCK`, and so do the programs that it starts: a run
after a killed one begins when the last of them has ended.
"""

from __future__ import annotations

import argparse
import ctypes.util
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import REFUSED, ApplianceError, StoreError
from appliance.system import lock_file
from appliance.system.ports import port
from tools.installer import inheriting, last_line, pip_environment, plain_environment, start, unwritable
from tools.platforms import GLIBC, MACHINES, PYTHONS, span

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent


class SetupError(ApplianceError):
    """A state of the machine that the user must fix; the message names the fix."""


@dataclass(frozen=True)
class Environment:
    """One virtual environment and the lock from which it is made."""

    folder: Path
    lock: Path
    about: str
    no_deps: bool = False
    covers: tuple[str, ...] = ()
    """Names of smaller locks whose packages this environment contains."""

    @property
    def python(self) -> Path:
        """Return its interpreter."""
        return self.folder / "bin" / "python"

    def stamp(self, name: str) -> Path:
        """Return the file whose existence means that the lock ``name`` is installed."""
        return self.folder / f".installed-{name}"

    @property
    def changing(self) -> Path:
        """Return the file that exists while packages are changed, and after an interrupted change."""
        return self.folder / ".changing"

    @property
    def in_use(self) -> Path:
        """Return the file that each service locks for reading while it runs from this environment."""
        return self.folder / lock_file.IN_USE

    @property
    def digest(self) -> str:
        """Return the content of a valid stamp: a digest of the lock and of this Python."""
        return fingerprint(self.lock)

    @property
    def ready(self) -> bool:
        """Return whether this lock, or a larger one, is installed."""
        mark = self.stamp(self.lock.stem)
        whole = self.python.exists() and mark.exists() and not self.changing.exists()
        return whole and mark.read_text() == self.digest

    @property
    def whole(self) -> bool:
        """Return whether no lock has changed since its installation: then an installation only adds packages."""
        if self.changing.exists() or not self.python.exists():
            return False
        stamps = [*self.folder.glob(".installed-*")]
        locks = {stamp: self.lock.parent / f"{stamp.name.removeprefix('.installed-')}.lock" for stamp in stamps}
        return bool(stamps) and all(
            lock.exists() and stamp.read_text() == fingerprint(lock) for stamp, lock in locks.items()
        )


def fingerprint(lock: Path) -> str:
    """Return a digest of ``lock`` and of the Python that would install it."""
    return hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()


WITHOUT_ENGINE = "With ENGINE=fake, the same command needs no engine and runs everything except a model"
"""The alternative of `make up` and of `make test` on a machine without an engine."""

LOCKS = ROOT / "requirements"
LOCK = ROOT / ".bootstrap.lock"
"""Held by the process that changes the environments."""

SERVICE = Environment(ROOT / ".venv", LOCKS / "loadtest.lock", "the appliance")
TESTS = Environment(ROOT / ".venv", LOCKS / "dev.lock", "the appliance and its tests", covers=("loadtest",))
ENGINE = Environment(
    ROOT / ".venv-engine", LOCKS / "engine-cpu.lock", "vLLM for the CPU (about 1.6 GB)", no_deps=True
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the environments that the command line requests."""
    parser = argparse.ArgumentParser(description="Set this machine up.")
    parser.add_argument("--tests", action="store_true", help="install the requirements of the tests as well")
    parser.add_argument("--engine", choices=("vllm", "fake"), default="vllm")
    # They are not used here: an invalid port is reported before the minutes of an installation, not after.
    parser.add_argument("--port", help="the port of `make up`, checked only")
    parser.add_argument("--engine-port", help="the engine's port of `make up`, checked only")
    args = parser.parse_args(arguments)
    environments = [TESTS if args.tests else SERVICE] + ([ENGINE] if args.engine == "vllm" else [])
    try:
        for text, name in ((args.port, "PORT"), (args.engine_port, "ENGINE_PORT")):
            if text is not None:
                port(text, name)
        check_machine(args.engine)
        if not all(environment.ready for environment in environments):
            with exclusive():
                set_up([environment for environment in environments if not environment.ready], args.engine)
    except ApplianceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def describe(error: OSError) -> str:
    """Return a sentence about ``error``: the file, the cause and the fix."""
    path = Path(error.filename) if isinstance(error.filename, str) else ROOT
    if error.errno in REFUSED:
        return str(StoreError.unwritable(path, error))
    return f"{path}: {error.strerror or error}; `git status` shows whether the checkout is whole"


def set_up(environments: Sequence[Environment], engine: str) -> None:
    """Install ``environments``, which are not ready, after the system packages that they need."""
    if environments:
        system_packages(engine)
    for environment in environments:
        install(environment)


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold :data:`LOCK`; report another process that holds it, and wait for its end."""

    def waiting(note: lock_file.Note) -> None:
        print(f"another `make up` is installing here (pid {note.get('pid', 'unknown')}); waiting", flush=True)

    lock = lock_file.wait(LOCK, waiting)
    try:
        lock.note()
        with inheriting(lock.number):
            yield
    finally:
        lock.release()


def check_machine(engine: str) -> None:
    """Raise :class:`SetupError` if ``engine`` cannot run on this machine; the message names an alternative."""
    if sys.version_info[:2] not in PYTHONS:
        raise SetupError(
            f"Python {span()} is needed, this is {platform.python_version()}; name one of them in the same "
            "command, such as PYTHON=python3.13"
        )
    if engine != "vllm":
        return
    offer = "or run the same command with ENGINE=fake, which needs no engine"
    machine = platform.machine()
    if machine not in MACHINES or sys.platform != "linux":
        raise SetupError(
            f"vLLM for the CPU is locked for Linux on {' and '.join(MACHINES)}, this is {sys.platform} on {machine}"
            f"; use another machine, {offer}"
        )
    library = platform.libc_ver()
    if library[0] != "glibc" or tuple(map(int, library[1].split("."))) < GLIBC:
        raise SetupError(
            f"vLLM for the CPU needs glibc {GLIBC[0]}.{GLIBC[1]} or newer, this Python runs on "
            f"{' '.join(library).strip() or 'another C library'}; use another system, {offer}"
        )
    if machine == "x86_64" and "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        raise SetupError(
            f"vLLM for the CPU needs a processor with AVX2, this one has none; use another machine, {offer}"
        )


def system_packages(engine: str) -> None:
    """Install the Debian packages that Python packages cannot replace.

    Raises :class:`SetupError` with the command to run if this process is not root.
    """
    wanted = []
    if importlib.util.find_spec("ensurepip") is None:
        # Debian's names; the plain python3-venv belongs to the default Python alone.
        wanted.append("python{}.{}-venv".format(*sys.version_info[:2]))
    if engine == "vllm" and ctypes.util.find_library("numa") is None:
        wanted.append("libnuma1")
    if not wanted:
        return
    command = f"apt-get install -y {' '.join(wanted)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise SetupError(f"missing on this machine: {', '.join(wanted)}; install them (on Debian: sudo {command})")
    with progress(f"installing {' '.join(wanted)} with apt-get"):
        quiet = {**plain_environment(), "DEBIAN_FRONTEND": "noninteractive"}
        start(["apt-get", "update"], quiet)
        done = start(["apt-get", "install", "-y", "--no-install-recommends", *wanted], quiet)
    if done.returncode != 0:
        raise SetupError(f"`{command}` failed ({last_line(done.stderr)}); run it by hand and correct the cause")


def install(environment: Environment) -> None:
    """Make ``environment`` from its lock, unless it is ready."""
    if environment.ready:
        return
    if environment.folder.exists() and not environment.whole:
        _require_unused(environment)
        if environment.changing.exists() or not any(environment.folder.glob(".installed-*")):
            # A run was interrupted: the content is unknown.
            _remove(environment.folder)
    if not environment.python.exists():
        _create(environment)
    environment.changing.touch()
    environment.in_use.touch()
    _install_packages(environment)
    for name in (environment.lock.stem, *environment.covers):
        draft = environment.folder / f".{name}.new"
        draft.write_text(fingerprint(LOCKS / f"{name}.lock"))
        draft.replace(environment.stamp(name))
    environment.changing.unlink()


def _require_unused(environment: Environment) -> None:
    """Raise :class:`SetupError` if a service runs from ``environment``, whose packages will be replaced."""
    try:
        lock = environment.in_use.open("rb")
    except FileNotFoundError:
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(
                f"{environment.folder} has to be installed anew, and a service runs from it; stop that `make up` "
                "with Ctrl-C and run the same command again"
            ) from None


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        # The error names a file without its folder.
        raise StoreError.unwritable(folder, error) from None


def _create(environment: Environment) -> None:
    """Make an environment that holds pip alone."""
    # In two steps: in one step, venv does not print why pip could not be installed.
    steps = (
        [sys.executable, "-m", "venv", "--without-pip", str(environment.folder)],
        [str(environment.python), "-Im", "ensurepip", "--upgrade", "--default-pip"],
    )
    for argv in steps:
        done = start(argv)
        if done.returncode != 0:
            raise SetupError(
                unwritable(environment.folder, done.stderr)
                or f"{environment.folder} could not be made ({last_line(done.stderr or done.stdout)}); remove it "
                f"and run again, or set PYTHON to another Python than {sys.executable}"
            )


def _install_packages(environment: Environment) -> None:
    count = sum("==" in line for line in environment.lock.read_text().splitlines())
    pip = [
        str(environment.python),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-input",
    ]
    locked = [*pip, "--require-hashes", "-r", str(environment.lock)] + (
        ["--no-deps"] if environment.no_deps else []
    )
    index = os.environ.get("TORCH_INDEX", "")
    if environment is ENGINE and index:
        locked += ["--extra-index-url", index]
    variables = pip_environment(environment.python)
    before = _content(environment)
    with progress(f"installing {environment.about}: {count} packages into {environment.folder.name}"):
        done = start(locked, variables)
    if done.returncode != 0:
        if _content(environment) == before:
            # The packages of before are unchanged, and work without a network.
            environment.changing.unlink()
        raise SetupError(unwritable(environment.folder, done.stderr) or pip_failure(environment, done.stderr))
    if environment.folder == SERVICE.folder:
        own = [*pip, "--no-deps", "--no-build-isolation", "--no-index", "-e", str(ROOT)]
        done = start(own, variables)
        if done.returncode != 0:
            raise SetupError(
                unwritable(environment.folder, done.stderr)
                or f"the appliance's own package could not be installed: {last_line(done.stderr)}"
            )


def _content(environment: Environment) -> list[tuple[str, int]]:
    """Return the times of the folders that hold packages; they change with each added, removed or replaced one."""
    return [(str(folder), folder.stat().st_mtime_ns) for folder in environment.folder.glob("lib/*/site-packages")]


def pip_failure(environment: Environment, stderr: str) -> str:
    """Return the error of pip in one line, with its fix."""
    lock, reason = environment.lock.name, last_line(stderr)
    replaced = re.search(r"DO NOT MATCH THE HASHES.*?^\s+(\S+==\S+)", stderr, re.DOTALL | re.MULTILINE)
    if replaced:
        return (
            f"{replaced[1]} has another hash than {lock} names, so it was not installed. The download is damaged, "
            "or the index has another package under this name; run again, or use another index"
        )
    if "No matching distribution found" in reason:
        reason += f", for Python {platform.python_version()} on {platform.machine()}"
    if environment is not ENGINE:
        return f"{lock} could not be installed ({reason}); check the network and run again"
    if "found for torch==" in reason:
        return (
            f"torch's CPU build is on no package index of this machine ({reason}); set TORCH_INDEX to the address "
            f"that pytorch.org shows for 'CPU' and run again. {WITHOUT_ENGINE}"
        )
    return f"the engine could not be installed ({reason}); check the network and run again. {WITHOUT_ENGINE}"


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Print ``what`` and the seconds since: a counter on a terminal, otherwise a line every 20 s."""
    began = time.monotonic()
    stop = threading.Event()
    terminal = sys.stdout.isatty()

    def tick() -> None:
        while not stop.wait(1 if terminal else 20):
            spent = time.monotonic() - began
            print(
                f"\r{what} ... {spent:.0f} s " if terminal else f"{what} ... {spent:.0f} s",
                end="" if terminal else "\n",
                flush=True,
            )

    thread = threading.Thread(target=tick, daemon=True)
    print(f"{what} ...", end="" if terminal else "\n", flush=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        spent = time.monotonic() - began
        print(f"\r{what}: {spent:.0f} s    " if terminal else f"{what}: {spent:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
