"""Examinations of the environment that the engine's phases build. Each returns a line of the report."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from tools.wheels import elf
from tools.wheels.compiler import HOME, KERNEL, nvcc
from tools.wheels.debian import DebianRoot
from tools.wheels.report import WheelFinding
from tools.wheels.sources import TARGET_PYTHON

DRIVER = "/run/opengl-driver/lib"
ARCHITECTURE = "sm_120"
HASHED_UNCHECKED = 1
"""Flags of bytecode that Python loads without a look at its source (PEP 552)."""


@dataclass(frozen=True, slots=True)
class Built:
    """The built environment in its Debian system."""

    root: DebianRoot
    out: str
    """Store path of the environment."""
    headers: Path
    """The include folder with the newer C library's headers; the system's own is covered by it."""

    @property
    def site(self) -> str:
        """Return the folder of the modules, as the system has it."""
        return f"{self.out}/lib/python{TARGET_PYTHON}/site-packages"

    def outside(self, path: str) -> Path:
        """Return where this machine has ``path`` of the system."""
        return self.root.folder / path.lstrip("/")

    def run(
        self, argv: list[str], environment: Mapping[str, str] | None = None, binds: Mapping[Path, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` as a unit would, with the newer headers and no network."""
        variables = {"PATH": "/usr/bin", "HOME": "/build", "LC_ALL": "C.UTF-8", **(environment or {})}
        return self.root.run(
            argv,
            environment=variables,
            binds={self.headers: "/usr/include", **(binds or {})},
            folder="/build",
        )

    def python(self, script: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a script with the environment's Python."""
        return self.run([f"{self.out}/bin/python", "-c", textwrap.dedent(script)], environment)


def needed(built: Built, listed: dict[str, dict[str, str]], libc: set[str]) -> WheelFinding:
    """Check that the loader finds each NEEDED name of each file by the RUNPATH that autoPatchelf wrote.

    Args:
        built: the environment.
        listed: the content of engine-libraries.json.
        libc: names of the C library's own files, which the loader finds without a RUNPATH.
    """
    files, names, missing, wrong = 0, 0, 0, []
    absent = [*listed["driver"], *listed["optional"]]
    for path, found in libraries(built):
        files += 1
        for name in found.needed:
            names += 1
            folders = [entry.replace("$ORIGIN", str(path.parent)) for entry in found.runpath]
            if name in libc or any(built.outside(f"{folder}/{name}").exists() for folder in folders):
                continue
            if any(fnmatch(name, pattern) for pattern in absent):
                missing += 1
            else:
                wrong.append(f"{path.relative_to(built.out)} needs {name}, which its RUNPATH does not have")
    return WheelFinding(
        "the loader finds each NEEDED name",
        f"{files} files, {names} names; {missing} are the driver's or optional",
        wrong,
    )


def libraries(built: Built) -> Iterator[tuple[PurePosixPath, elf.Elf]]:
    """Yield the programs and shared libraries of the environment for this processor, with their paths."""
    for folder, _, files in os.walk(built.outside(built.out)):
        for file in files:
            path = Path(folder, file)
            if path.is_symlink():
                continue
            with path.open("rb") as stream:
                if stream.read(6) != elf.MAGIC:
                    continue
            found = elf.parse(path.read_bytes())
            if found is not None and found.machine == elf.X86_64:
                yield PurePosixPath("/", path.relative_to(built.root.folder)), found


def bytecode(built: Built) -> WheelFinding:
    """Check that each module has bytecode that Python loads without a look at the source."""
    count, size, without, checked = 0, 0, 0, []
    for path in built.outside(built.site).rglob("*.py"):
        cached = path.parent / "__pycache__" / f"{path.stem}.cpython-{TARGET_PYTHON.replace('.', '')}.pyc"
        if not cached.exists():
            without += 1
            continue
        count, size = count + 1, size + cached.stat().st_size
        with cached.open("rb") as stream:
            if int.from_bytes(stream.read(8)[4:], "little") != HASHED_UNCHECKED:
                checked.append(f"{cached} is compared with its source")
    return WheelFinding(
        "modules have bytecode",
        f"{count} files, {size / 1e6:.0f} MB; {without} files are not Python {TARGET_PYTHON}",
        checked or ([] if count else ["no module has bytecode"]),
    )


IMPORTS = """
import importlib.metadata, json, time
start = time.monotonic()
import torch
torch_seconds = time.monotonic() - start
import vllm, vllm.engine.arg_utils, vllm.entrypoints.openai.api_server
seconds = time.monotonic() - start
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "architectures": torch.cuda.get_arch_list(),
    "vllm": vllm.__version__, "seconds": seconds,
}))
"""


def imports(built: Built) -> WheelFinding:
    """Check that torch and vLLM are imported, and measure the time that the bytecode saves."""
    done = built.python(IMPORTS)
    if done.returncode:
        return WheelFinding("torch and vLLM are imported", "failed", done.stderr.strip().splitlines()[-3:])
    with_bytecode = json.loads(done.stdout.splitlines()[-1])
    again = json.loads(built.python(IMPORTS).stdout.splitlines()[-1])
    other = built.python(IMPORTS, {"PYTHONPYCACHEPREFIX": "/build/none", "PYTHONDONTWRITEBYTECODE": "1"})
    without = json.loads(other.stdout.splitlines()[-1])["seconds"]
    wrong = [] if ARCHITECTURE in with_bytecode["architectures"] else [f"torch was built without {ARCHITECTURE}"]
    return WheelFinding(
        "torch and vLLM are imported",
        f"torch {with_bytecode['torch']} (CUDA {with_bytecode['cuda']}), vLLM {with_bytecode['vllm']}; "
        f"{again['seconds']:.0f} s with the bytecode, {without:.0f} s without",
        wrong,
    )


def kernel(built: Built, glibc: str, original: Path) -> WheelFinding:
    """Check that nvcc compiles against the newer C library, and that it does not with NVIDIA's own header."""
    header = f"{built.site}/{HOME}/include/crt/math_functions.h"
    source = built.root.folder / "build/kernel.cu"
    source.write_text(KERNEL.read_text())
    home = f"{built.site}/{HOME}"
    argv = nvcc(home, ARCHITECTURE, source="/build/kernel.cu", library="/build/kernel.so")
    done = built.run(argv)
    before = built.run(argv, binds={original: header})
    wrong = [] if done.returncode == 0 else done.stderr.strip().splitlines()[-3:]
    if before.returncode == 0 or "rsqrt" not in before.stderr:
        wrong.append("the header without our change compiles, too: this proof shows nothing")
    return WheelFinding(
        f"nvcc compiles a kernel for {ARCHITECTURE} against new headers",
        f"glibc {glibc}; without our change nvcc stops at `rsqrt`",
        wrong,
    )


SAMPLING = """
from flashinfer.jit.sampling import gen_sampling_module
spec = gen_sampling_module()
spec.build(verbose=True)
print(spec.get_library_path())
"""


def sampling(built: Built, glibc: str) -> WheelFinding:
    """Check that FlashInfer compiles and links its sampling kernels, which every engine does at its first start."""
    title = f"FlashInfer compiles and links its sampling kernels for {ARCHITECTURE}"
    variables = {
        "CUDA_HOME": f"{built.site}/{HOME}",
        "FLASHINFER_CUDA_ARCH_LIST": "12.0f",
        "FLASHINFER_WORKSPACE_BASE": "/build/flashinfer",
        "MAX_JOBS": str(os.cpu_count() or 1),
    }
    linked = built.python(SAMPLING, {**variables, "FLASHINFER_EXTRA_LDFLAGS": f"-L{DRIVER}"})
    if linked.returncode:
        return WheelFinding(title, "failed", [*linked.stdout.splitlines(), *linked.stderr.splitlines()][-4:])
    library = linked.stdout.splitlines()[-1]
    found = elf.parse(built.outside(library).read_bytes())
    wrong = [] if found is not None else [f"{library} is not a shared library"]
    built.outside(library).unlink()
    alone = built.python(SAMPLING, variables)
    if alone.returncode == 0 or "-lcuda" not in alone.stdout + alone.stderr:
        wrong.append("it links without the driver's folder, too: this proof shows nothing")
    return WheelFinding(
        title,
        f"glibc {glibc}, {len(found.needed) if found else 0} libraries needed; "
        f"without `-L{DRIVER}` the linker does not find `-lcuda`",
        wrong,
    )


CUDNN = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.cudnnGetVersion.restype = ctypes.c_size_t
print(library.cudnnGetVersion())
"""


def cudnn(built: Built) -> WheelFinding:
    """Check that cuDNN finds its parts, and that it does not with autoPatchelf's default RUNPATH."""
    title = "cuDNN finds the libraries that it loads while it runs"
    own = f"{built.site}/nvidia/cudnn/lib/libcudnn.so.9"
    python = f"{built.out}/bin/python"
    done = built.run([python, "-c", CUDNN, own])
    if done.returncode:
        return WheelFinding(title, "failed", [done.stderr.strip() or f"exit {done.returncode}"])
    copied = "/build/cudnn/libcudnn.so.9"
    script = f"mkdir -p /build/cudnn && cp {shlex.quote(own)} {copied} && patchelf --set-rpath {DRIVER} {copied}"
    built.run(["bash", "-ec", script])
    for path in built.outside(f"{built.site}/nvidia/cudnn/lib").glob("libcudnn_*"):
        target = built.outside(f"/build/cudnn/{path.name}")
        if not target.is_symlink() and not target.exists():
            target.symlink_to(f"{built.site}/nvidia/cudnn/lib/{path.name}")
    without = built.run([python, "-c", CUDNN, copied])
    wrong = [] if without.returncode else ["it does with the default RUNPATH, too: this proof shows nothing"]
    return WheelFinding(
        title,
        f"cudnnGetVersion: {done.stdout.strip()}; with autoPatchelf's default RUNPATH the process aborts",
        wrong,
    )


PARSE = """
import contextlib, io, json, sys
import vllm.platforms
from vllm.platforms.cuda import NonNvmlCudaPlatform

# The parser's defaults depend on the platform, and this machine has no card by which vLLM would recognise it.
vllm.platforms._current_platform = NonNvmlCudaPlatform()
from vllm.entrypoints.common.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
rejected = []
for words in json.loads(sys.argv[1]):
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parser.parse_args(words)
    except SystemExit:
        rejected.append(errors.getvalue().strip().splitlines()[-1])
flags = set()
for action in parser._actions:
    words = [word.removeprefix("--") for word in action.option_strings if word.startswith("--")]
    # A switch has a second name that turns it off: --no-x, or --disable-x of --enable-x and the reverse.
    for on, off in (("enable-", "disable-"), ("disable-", "enable-")):
        if words and words[0].startswith(on):
            words = [word for word in words if not word.startswith(off)]
    flags |= {word for word in words if not word.startswith("no-")}
print(json.dumps({"flags": sorted(flags), "rejected": rejected}))
"""


def flags(built: Built, known: frozenset[str], commands: list[list[str]]) -> WheelFinding:
    """Check that vLLM's own parser has the flags of vllm_flags.txt and no others, and accepts our command lines.

    Args:
        built: the environment.
        known: the flags of vllm_flags.txt, without dashes.
        commands: the arguments of vLLM's server, for each replica of each example.
    """
    title = "vLLM's parser has the flags of vllm_flags.txt and accepts every example"
    done = built.run([f"{built.out}/bin/python", "-c", PARSE, json.dumps(commands)])
    if done.returncode:
        return WheelFinding(title, "failed", done.stderr.strip().splitlines()[-3:])
    found = json.loads(done.stdout.splitlines()[-1])
    own = set(found["flags"]) - {"help"}
    wrong = [f"--{flag} is not in vllm_flags.txt" for flag in sorted(own - known)]
    wrong += [f"vLLM has no --{flag}, which is in vllm_flags.txt" for flag in sorted(known - own)]
    return WheelFinding(title, f"{len(own)} flags, {len(commands)} command lines", wrong + found["rejected"])
