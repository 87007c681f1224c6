"""Proves on a card what tests without one cannot: ``python -m tools.prove_gpu [--python PYTHON] [--json FILE]``.

It needs a driver and a Python with vLLM for CUDA, of requirements/engine-cuda.lock or any other. It needs no NixOS,
no network and no package of this repository's own environment. Exit codes are those of :mod:`.verdict`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from appliance.system.nvidia_smi import GpuQuery, NvidiaSmiError
from tools.prove_gpu.verdict import VERDICTS, ProofPart, exit_code, part_of, to_json

HERE = Path(__file__).resolve().parent / "parts"
ROOT = Path(__file__).resolve().parents[2]
FIELDS = ("index", "name", "memory.total", "memory.used", "driver_version", "power.limit", "compute_cap")

PARTS = (("copies", 60.0), ("loaders", 180.0), ("sleep_cycles", 180.0), ("engine", 180.0))
"""The parts with their limits in seconds: ten minutes together."""

BUSY_MIB = 2048.0
"""Memory in use above which another process works on the card: figures and memory would be those of both."""


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, print the report and return the exit code."""
    parser = argparse.ArgumentParser(prog="prove-gpu", description=__doc__)
    parser.add_argument(
        "--python", type=Path, default=_default_python(), metavar="FILE",
        help="Python with vLLM for CUDA (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--card", type=int, default=0, metavar="N", help="card by its index (%(default)s)")
    parser.add_argument("--disk", type=Path, default=Path.cwd(), metavar="DIR", help="disk of the loaders' files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to FILE")
    parser.add_argument("--only", metavar="NAME", choices=[name for name, _ in PARTS], help="run one part")
    parser.add_argument("--scale", type=float, default=1.0, metavar="S", help="factor of all limits of time")
    args = parser.parse_args(arguments)
    machine, problem = _machine(args.card, args.python)
    chosen = [(name, limit) for name, limit in PARTS if args.only in (None, name)]
    parts = []
    for name, limit_s in chosen:
        if problem:
            part = ProofPart(name, "missing", problem)
        else:
            print(f"{name}: {limit_s * args.scale:.0f} s at most ...", file=sys.stderr, flush=True)
            part = _run(name, args, limit_s * args.scale)
        print(f"{name}: {part.outcome}{f': {part.reason}' if part.reason else ''}", file=sys.stderr, flush=True)
        parts.append(part)
    report = to_json(machine, parts)
    print(report)
    if args.json is not None:
        args.json.write_text(report + "\n", "utf-8")
    code = exit_code(parts)
    print(f"verdict: {VERDICTS[code]}", file=sys.stderr)
    return code


def _default_python() -> Path:
    own = ROOT / ".venv-engine-cuda" / "bin" / "python"
    return own if own.exists() else Path(sys.executable)


def _machine(card: int, python: Path) -> tuple[dict[str, Any], str]:
    """Return the facts of the machine, and why the proof cannot run; empty if it can."""
    facts: dict[str, Any] = {"system": platform.platform(), "python": str(python)}
    try:
        rows = {row.integer("index"): row for row in GpuQuery(FIELDS).rows()}
    except NvidiaSmiError as error:
        return facts, str(error)
    if card not in rows:
        return facts, f"card {card} does not exist; nvidia-smi lists {', '.join(map(str, rows)) or 'none'}"
    facts["card"] = {name: rows[card].text(name) for name in FIELDS}
    used = rows[card].number("memory.used") or 0.0
    if used > BUSY_MIB:
        return facts, f"card {card} has {used:.0f} MiB in use; stop the process that uses it"
    if not (shutil.which(str(python)) or python.exists()):
        return facts, f"{python} does not exist; name a Python with vLLM for CUDA by --python"
    return facts, ""


def _run(name: str, args: argparse.Namespace, limit_s: float) -> ProofPart:
    """Run one part within ``limit_s`` seconds; all of its processes end with it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"prove-gpu-{name}-", dir=args.disk) as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": str(args.card),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "PROVE_GPU_SECONDS": f"{limit_s * 0.8:.0f}",
            "PROVE_GPU_TINY": str(ROOT / "appliance/models/tiny_qwen3.py"),
        }
        argv = [str(args.python), str(HERE / f"{name}.py"), folder]
        log = Path(folder) / "output"
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0, env=environment
                )
            except OSError as error:
                return ProofPart(name, "missing", f"{args.python} cannot be run ({error.strerror})")
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return ProofPart(name, "failed", f"it did not end within {limit_s:g} s", {}, time.monotonic() - began)
        finally:
            _end(process)
        return part_of(name, log.read_text("utf-8", "replace"), code, round(time.monotonic() - began, 1))


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
