"""Shows on real vLLM that an upgrade does not compile kernels anew (``make prove-cold-start``).

vLLM runs on the CPU from two copies of its environment, as from two store paths of Nix. It has the options of an
engine's unit: the environment is mounted at one path, and the caches are those of its version. The controls run the
copies at their own paths, and under another version. Needs root for the mounts, and ten minutes on two idle cores.
Prints a table; exits non-zero if the kernels of a start were compiled and should not be, or the reverse.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.engines.probe import probe_token
from appliance.errors import ApplianceError, StartError, UsageError
from appliance.models.prepare import TINY_NAME, prepare

ROOT = Path(__file__).resolve().parent.parent
MOUNT = Path("/run/engine-environment")
"""``environmentMount`` of modules/lib.nix."""

TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Start:
    """One start: the copy of the environment, whether it is mounted, the version of the caches and their folder."""

    copy: str
    mounted: bool
    version: str
    caches: str
    compiles: bool

    def __str__(self) -> str:
        place = str(MOUNT) if self.mounted else "its own path"
        return f"{self.copy} at {place}, caches {self.caches} of version {self.version}"


STARTS = (
    Start("store a", True, "1", "kept", compiles=True),
    Start("store b", True, "1", "kept", compiles=False),
    Start("store b", True, "2", "kept", compiles=True),
    Start("store a", False, "1", "control", compiles=True),
    Start("store b", False, "1", "control", compiles=True),
)
"""The first two are an upgrade, the third has new wheels, and the last two are an upgrade without a mount."""


def site(python: Path, model: Path, port: int) -> dict[str, Any]:
    """Return a site with one engine that compiles."""
    return {
        "version": 1,
        "hosts": {"here": {"memory_gib": 8}},
        "models": {TINY_NAME: {"source": str(model)}},
        "engines": {
            "chat": {
                "host": "here",
                "model": TINY_NAME,
                "device": "cpu",
                "context": 2048,
                "concurrency": 3,
                "kv_cache_gib": 1,
                "port": port,
                "command": str(python),
            }
        },
    }


def kernels(folder: Path) -> dict[tuple[str, int], int]:
    """Return the compiled kernels below ``folder`` by path and inode, with the time of their last change."""
    found = {}
    for path in folder.rglob("*.so"):
        facts = path.stat()
        found[str(path), facts.st_ino] = facts.st_mtime_ns
    return found


def run(start: Start, work: Path, model: Path, port: int) -> tuple[int, float]:
    """Start the engine, wait for a token, and stop it; return the number of kernels compiled, and the seconds."""
    environment, caches = work / start.copy.replace(" ", "-"), work / start.caches
    config = work / "site.json"
    config.write_text(json.dumps(site(environment / "bin" / "python", model, port)))
    before = kernels(caches)
    argv = [sys.executable, "-m", "appliance", "engine", "exec", "chat", "--config", str(config)]
    argv += ["--caches", str(caches), start.version]
    if start.mounted:
        argv += ["--environment", str(MOUNT)]
        script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", script, "sh", str(environment), str(MOUNT), *argv]
    log = work / "engine.log"
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_for_a_token(process, port, log)
        seconds = time.monotonic() - began
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    after = kernels(caches)
    return sum(before.get(key) != changed for key, changed in after.items()), seconds


def _wait_for_a_token(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while reason := probe_token(f"http://127.0.0.1:{port}", TINY_NAME, "generate", TIMEOUT_S):
        if process.poll() is not None:
            reason = f"it ended with {process.returncode}"
        elif time.monotonic() < deadline:
            time.sleep(0.5)
            continue
        raise StartError(f"the engine generates no token: {reason}; its log ends: {log.read_text()[-2000:]}")


def prove(engine_python: Path, work: Path, port: int) -> bool:
    """Run every start of :data:`STARTS` and print its line; return whether all are as expected."""
    model = asyncio.run(prepare("tiny", python=engine_python, data=work, report=print)).folder
    for copy in sorted({start.copy for start in STARTS}):
        # Links: the copies differ in their paths only.
        target = work / copy.replace(" ", "-")
        shutil.copytree(engine_python.parent.parent, target, symlinks=True, copy_function=os.link)
    made = not MOUNT.exists()
    MOUNT.mkdir(exist_ok=True)
    good = True
    try:
        print("| start | kernels compiled | seconds to a token |\n|---|---|---|", flush=True)
        for start in STARTS:
            count, seconds = run(start, work, model, port)
            good &= (count > 0) == start.compiles
            note = "" if (count > 0) == start.compiles else ", not as expected"
            print(f"| {start} | {count}{note} | {seconds:.0f} |", flush=True)
    finally:
        if made:
            MOUNT.rmdir()
    return good


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine-python", type=Path, default=ROOT / ".venv-engine" / "bin" / "python")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "var", help="folder on the same disk as the environment"
    )
    parser.add_argument("--port", type=int, default=8199)
    args = parser.parse_args()
    try:
        if os.geteuid() != 0:
            raise UsageError("the mounts need root: run it as root")
        if not args.engine_python.exists():
            raise UsageError(f"{args.engine_python} does not exist: run `make up` once, which installs vLLM")
        args.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.work, prefix="cold-start-") as work:
            return 0 if prove(args.engine_python, Path(work), args.port) else 1
    except ApplianceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
