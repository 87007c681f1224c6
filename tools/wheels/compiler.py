"""A test compilation for the GPUs with the set alone: engines compile kernels while they run.

The CUDA toolkit of the wheels is unpacked as in the engine's environment, and its nvcc compiles and links a small
kernel. This machine's g++ replaces the one from nixpkgs.
"""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

from tools.wheels.sources import Wheel

HOME = "nvidia/cu13"
"""The toolkit's folder inside site-packages; CUDA_HOME points to it."""

KERNEL = Path(__file__).resolve().parents[2] / "modules" / "packages" / "engine-kernel.cu"
"""The kernel that the Nix build compiles, too."""


def unpack_toolkit(wheels: list[Wheel], folder: Path, target: Path) -> Path:
    """Unpack the toolkit, without the large libraries of mathematics, into ``target``; return its home."""
    parts = ("nvidia-cuda-", "nvidia-nvvm", "nvidia-nvjitlink")
    for wheel in wheels:
        if wheel.name.startswith(parts):
            with zipfile.ZipFile(folder / wheel.file) as archive:
                for entry in archive.infolist():
                    if entry.filename.startswith(f"{HOME}/"):
                        place = Path(archive.extract(entry, target))
                        place.chmod(place.stat().st_mode | (entry.external_attr >> 16 & 0o100))
    home = target / HOME
    # As in engine-cuda.nix: compilers search lib64, linkers the name without a version.
    (home / "lib64").symlink_to("lib")
    for library in list((home / "lib").glob("lib*.so.*")):
        bare = library.with_name(library.name.split(".so.", 1)[0] + ".so")
        if not bare.exists():
            bare.symlink_to(library.name)
    return home


def nvcc(home: str, architecture: str, *, source: str, library: str) -> list[str]:
    """Return the command that compiles ``source`` to a shared library, as the Nix build does."""
    argv = [f"{home}/bin/nvcc", f"-arch={architecture}", "-std=c++17", "-shared", "-Xcompiler", "-fPIC"]
    return [*argv, "-cudart", "shared", "-o", library, source]


def compile_kernel(home: Path, scratch: Path, architecture: str) -> tuple[Path | None, str]:
    """Compile :data:`KERNEL`; return the shared library, or ``None``, and the end of nvcc's error output."""
    if shutil.which("g++") is None:
        return None, "g++ is missing on this machine; install it"
    library = scratch / "kernel.so"
    argv = nvcc(str(home), architecture, source=str(KERNEL), library=str(library))
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (library if done.returncode == 0 else None), done.stderr[-400:]
