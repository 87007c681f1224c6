"""Sets a bare machine up: ``.venv`` for the appliance, ``.venv-engine`` for vLLM, from hash-pinned locks.

Standard library only: it runs under the system's Python before anything is installed. What is already
installed from the same locks is left alone, so a second run takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import ctypes.util
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
ENGINE_PYTHON = (3, 11)
"""The Python for which engine-cpu.lock was resolved and tried."""


class SetupError(Exception):
    """Something the person must mend; the message says how."""


@dataclass(frozen=True)
class Environment:
    """One virtual environment and the lock it is made from."""

    folder: Path
    lock: Path
    about: str
    no_deps: bool = False
    covers: tuple[str, ...] = ()
    """Names of smaller locks whose packages this one contains."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def stamp(self, name: str) -> Path:
        """The file that says lock ``name`` is installed."""
        return self.folder / f".installed-{name}"

    @property
    def digest(self) -> str:
        """What the stamp must hold: the lock, and the Python that it was installed for."""
        return fingerprint(self.lock)

    @property
    def ready(self) -> bool:
        """Whether this lock, or a larger one, is installed."""
        mark = self.stamp(self.lock.stem)
        return self.python.exists() and mark.exists() and mark.read_text() == self.digest


def fingerprint(lock: Path) -> str:
    """A digest of ``lock`` and of the Python that would install it."""
    return hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()


LOCKS = ROOT / "requirements"
SERVICE = Environment(ROOT / ".venv", LOCKS / "loadtest.lock", "the appliance")
TESTS = Environment(ROOT / ".venv", LOCKS / "dev.lock", "the appliance and its tests", covers=("loadtest",))
ENGINE = Environment(
    ROOT / ".venv-engine", LOCKS / "engine-cpu.lock", "vLLM for the CPU (about 1.6 GB)", no_deps=True
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the environments that the command line asks for."""
    parser = argparse.ArgumentParser(description="Set this machine up.")
    parser.add_argument("--tests", action="store_true", help="also what the tests need")
    parser.add_argument("--engine", choices=("vllm", "fake"), default="vllm")
    args = parser.parse_args(arguments)
    environments = [TESTS if args.tests else SERVICE] + ([ENGINE] if args.engine == "vllm" else [])
    try:
        check_machine(args.engine)
        if any(not environment.ready for environment in environments):
            system_packages(args.engine)
        for environment in environments:
            install(environment)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def check_machine(engine: str) -> None:
    """Refuse what cannot work here, and say what can."""
    if sys.version_info < (3, 11):  # noqa: UP036 - an older Python must get a sentence, not a traceback
        raise SetupError(
            f"Python 3.11 or newer is needed, this is {platform.python_version()}; set PYTHON=python3.11"
        )
    if engine != "vllm":
        return
    offer = "or run `make up ENGINE=fake`, which needs no engine and says so in every output"
    if sys.version_info[:2] != ENGINE_PYTHON or platform.machine() != "x86_64" or sys.platform != "linux":
        here = f"Python {platform.python_version()} on {sys.platform} {platform.machine()}"
        raise SetupError(
            f"vLLM for the CPU is locked for Python 3.11 on Linux x86_64, this is {here}; "
            f"set PYTHON to a Python 3.11, {offer}"
        )
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if "avx2" not in flags:
        raise SetupError(
            f"vLLM for the CPU needs a processor with AVX2, this one has none; use another machine, {offer}"
        )


def system_packages(engine: str) -> None:
    """Install Debian's packages that Python packages cannot bring; as root, or say what to type."""
    wanted = []
    if importlib.util.find_spec("ensurepip") is None:
        wanted.append("python3-venv")
    if engine == "vllm" and ctypes.util.find_library("numa") is None:
        wanted.append("libnuma1")
    if not wanted:
        return
    command = f"apt-get install -y {' '.join(wanted)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise SetupError(f"missing on this machine: {', '.join(wanted)}; install them (on Debian: sudo {command})")
    with progress(f"installing {' '.join(wanted)} with apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update"], check=False, **quiet)  # type: ignore[call-overload]
        done = subprocess.run(
            ["apt-get", "install", "-y", "--no-install-recommends", *wanted], check=False, **quiet
        )  # type: ignore[call-overload]
    if done.returncode != 0:
        raise SetupError(f"`{command}` failed; run it by hand and mend what it says")


def install(environment: Environment) -> None:
    """Make ``environment`` from its lock, unless it already is."""
    if environment.ready:
        return
    if environment.folder.exists() and not any(environment.folder.glob(".installed-*")):
        # Left by a run that was interrupted: nobody knows what is in it.
        shutil.rmtree(environment.folder)
    if not environment.python.exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(environment.folder)], check=False)
        if made.returncode != 0:
            raise SetupError(
                f"{environment.folder.name} could not be made; on Debian: apt-get install python3-venv"
            )
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
    with progress(f"installing {environment.about}: {count} packages into {environment.folder.name}"):
        done = subprocess.run(locked, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(explain(environment, done.stderr))
    if environment.folder == SERVICE.folder:
        own = [*pip, "--no-deps", "--no-build-isolation", "--no-index", "-e", str(ROOT)]
        done = subprocess.run(own, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise SetupError(f"the appliance's own package could not be installed: {last_line(done.stderr)}")
    for name in (environment.lock.stem, *environment.covers):
        environment.stamp(name).write_text(fingerprint(LOCKS / f"{name}.lock"))


def explain(environment: Environment, stderr: str) -> str:
    """pip's complaint in one line, with what a person can do about it."""
    said = last_line(stderr)
    if environment is not ENGINE:
        return f"{environment.lock.name} could not be installed ({said}); check the network and run again"
    return (
        f"the engine could not be installed ({said}). If torch's CPU build is what is missing, set "
        "TORCH_INDEX to the address that pytorch.org shows for 'CPU' and run again; without an engine, "
        "`make up ENGINE=fake` shows everything but the model"
    )


def last_line(text: str) -> str:
    """The last line of pip's errors that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1][:300]


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say ``what`` happens, and go on saying that it does: a counter on a terminal, a line now and then else."""
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
