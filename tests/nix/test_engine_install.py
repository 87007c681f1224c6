"""The installation phase of the engine's derivation, run by bash on small wheels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.nix import checker

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
DECLARATIONS = """\
extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ double                 rsqrt(double x);
extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ float                  rsqrtf(float x);
"""
UNCHECKED_HASH = 1


def small_wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    file = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in files))
    return file


def install_phase(not_python: tuple[str, ...]) -> str:
    found = checker.expression(
        f"""
        (import (root + "/modules/packages/engine-cuda.nix") {{
          inherit lib;
          pkgs = {{ }};
          stdenv.mkDerivation = lib.id;
          fetchurl = lib.id;
          python313 = {{
            pythonVersion = "{PYTHON}";
            interpreter = {checker.string(sys.executable)};
            pkgs = {{ pip = "pip"; fetchPypi = throw "not used"; }};
          }};
          autoPatchelfHook = "hook";
          addDriverRunpath.driverLink = "/run/opengl-driver";
          notPython = builtins.fromJSON {checker.string(json.dumps(not_python))};
        }}).installPhase
        """
    )
    assert isinstance(found, str)
    return found


def install(
    tmp_path: Path,
    header: str = DECLARATIONS,
    module: str = "x = 1\n",
    start: str = "",
    not_python: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run the phase as setup.sh does; of its functions only two are used."""
    folder = tmp_path / "store"
    folder.mkdir()
    modules = {"vllm/__init__.py": module, "start.pth": start}
    crt = {"nvidia/cu13/include/crt/math_functions.h": header, "nvidia/cu13/lib/libcudart.so.13": ""}
    wheels = [
        small_wheel(folder, "nvidia_cuda_crt", crt),
        small_wheel(folder, "vllm", modules),
    ]
    script = 'set -eu\nshopt -s nullglob\nrunHook() { :; }\nstripHash() { basename "$1"; }\n'
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "out": str(tmp_path / "out"),
        "srcs": " ".join(map(str, wheels)),
        "NIX_BUILD_CORES": "1",
    }
    return subprocess.run(
        ["bash", "-c", script + install_phase(not_python)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def site(tmp_path: Path) -> Path:
    return tmp_path / f"out/lib/python{PYTHON}/site-packages"


def test_cuda_declares_rsqrt_as_glibc_does(tmp_path: Path) -> None:
    done = install(tmp_path)
    assert done.returncode == 0, done.stderr
    cuda = site(tmp_path) / "nvidia/cu13"
    lines = (cuda / "include/crt/math_functions.h").read_text().splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "rsqrt(double x) noexcept(true);",
        "rsqrtf(float x) noexcept(true);",
    ]
    assert (cuda / "lib64/libcudart.so").resolve().name == "libcudart.so.13"


@pytest.mark.parametrize("declaration", ["rsqrt(double x)", "rsqrtf(float x)"])
def test_another_header_stops_the_build(tmp_path: Path, declaration: str) -> None:
    changed = DECLARATIONS.replace(f" {declaration};", f" {declaration} _NV_RSQRT_SPECIFIER;")
    done = install(tmp_path, header=changed)
    assert done.returncode == 1
    assert f'math_functions.h has no "{declaration};"' in done.stderr.splitlines()[-1]


def test_bytecode_is_made_and_never_compared_with_the_source(tmp_path: Path) -> None:
    assert install(tmp_path).returncode == 0
    (cached,) = (site(tmp_path) / "vllm/__pycache__").glob("*.pyc")
    assert int.from_bytes(cached.read_bytes()[4:8], "little") == UNCHECKED_HASH
    source = site(tmp_path) / "vllm/__init__.py"
    source.write_text("raise SystemExit('compiled anew')\n")
    program = [tmp_path / "out/bin/python", "-c", "import vllm; print(vllm.x)"]
    assert checker.output_of(program) == "1\n"


def test_bytecode_that_the_start_of_python_wrote_is_replaced(tmp_path: Path) -> None:
    """Packages with a .pth file are imported by each start, also by that of the compilation itself."""
    assert install(tmp_path, start="import vllm\n").returncode == 0
    (cached,) = (site(tmp_path) / "vllm/__pycache__").glob("*.pyc")
    assert int.from_bytes(cached.read_bytes()[4:8], "little") == UNCHECKED_HASH


def test_a_module_that_does_not_compile_stops_the_build(tmp_path: Path) -> None:
    done = install(tmp_path, module="{{ template }} = \n")
    assert done.returncode == 1
    assert "vllm/__init__.py" in done.stdout + done.stderr
    assert "add them to the list notPython" in done.stderr.splitlines()[-1]


def test_a_listed_file_is_not_compiled(tmp_path: Path) -> None:
    done = install(tmp_path, module="{{ template }} = \n", not_python=("vllm/__init__.py",))
    assert done.returncode == 0, done.stderr


def test_a_listed_file_must_exist(tmp_path: Path) -> None:
    done = install(tmp_path, not_python=("vllm/gone.py",))
    assert done.returncode == 1
    assert "vllm/gone.py is in the list notPython, but no wheel has it" in done.stderr.splitlines()[-1]
