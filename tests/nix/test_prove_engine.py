"""The parts of `make prove-engine` that need neither wheels nor root: what it finds, and where it stops."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from tests.nix import checker, rendered
from tests.nix.test_pins import shared_library
from tools.wheels import built, report, stand_ins
from tools.wheels.debian import DebianRoot
from tools.wheels.derivation import Derivation, evaluate, name_of
from tools.wheels.sources import TARGET_PYTHON

OUT = f"/nix/store/{'a' * 32}-engine-cuda-1"
NIXPKGS = Path("/nowhere")


def tree(tmp_path: Path) -> built.Built:
    folder = tmp_path / OUT.lstrip("/")
    (folder / f"lib/python{TARGET_PYTHON}/site-packages").mkdir(parents=True)
    return built.Built(DebianRoot(tmp_path), OUT, tmp_path / "include")


def derivation(*paths: str) -> Derivation:
    environment = {"out": OUT, "buildInputs": " ".join(paths), "stdenv": f"/nix/store/{'b' * 32}-stdenv-linux"}
    return Derivation("/bin/bash", (), environment, {"shell": "/bin/bash"})


def test_an_input_without_a_stand_in_stops_the_build(tmp_path: Path) -> None:
    path = f"/nix/store/{'0' * 32}-hwloc-2.12.0"
    with pytest.raises(ApplianceError, match=r"has nothing in place of nixpkgs' hwloc-2.12.0: add it"):
        stand_ins.lay(DebianRoot(tmp_path), derivation(path), NIXPKGS, tmp_path)


def test_a_missing_wheel_stops_the_build(tmp_path: Path) -> None:
    path = f"/nix/store/{'0' * 32}-a-1-py3-none-any.whl"
    with pytest.raises(ApplianceError, match=r"has no a-1-py3-none-any.whl; run `make verify-wheels`"):
        stand_ins.lay(DebianRoot(tmp_path), derivation(path), NIXPKGS, tmp_path)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("python3.13-pip-26.0.1", "pip"),
        ("python3-3.13.13", "python3"),
        ("gcc-15.2.0-lib", "gcc"),
        ("gcc-wrapper-15.2.0", "gcc-wrapper"),
        ("patch-2.8", "patch"),
        ("patchelf-0.15.2", "patchelf"),
        ("auto-patchelf-hook", "auto-patchelf-hook"),
        ("bash-5.3p9", "bash"),
        ("hwloc-2.12.0", None),
    ],
)
def test_store_paths_are_known_by_their_packages(name: str, package: str | None) -> None:
    assert stand_ins.package(name) == package


def test_each_input_of_the_evaluated_derivation_has_a_stand_in() -> None:
    """Real Nix evaluates the derivation with a real nixpkgs; nothing is built."""
    nixpkgs = rendered.source("nixpkgs")
    found = evaluate(checker.require_nix(), nixpkgs)
    assert found.environment["doInstallCheck"] == "1"
    assert found.environment["appendRunpaths"].split() == [
        "$ORIGIN",
        f"{found.out}/lib/python3.13/site-packages/nvidia/cu13/lib",
        "/run/opengl-driver/lib",
    ]
    names = {path: name_of(path) for path in found.store_paths()}
    unknown = {
        name
        for path, name in names.items()
        if not (name.endswith(".whl") or name == "stdenv-linux" or stand_ins.package(name) or Path(path).exists())
    }
    assert unknown == set()
    assert {"auto-patchelf-hook", "pip", "glibc", "rdma-core"} <= {
        stand_ins.package(name) for name in names.values()
    }


def test_a_nixpkgs_that_does_not_evaluate_is_named(tmp_path: Path) -> None:
    (tmp_path / "default.nix").write_text('_: throw "too old"\n')
    with pytest.raises(ApplianceError, match="nix eval failed: error: too old"):
        evaluate(checker.require_nix(), tmp_path)


def test_a_library_outside_the_runpath_is_reported(tmp_path: Path) -> None:
    environment = tree(tmp_path)
    folder = environment.outside(environment.site)
    (folder / "liba.so").write_bytes(shared_library("libb.so", "libc.so.6", "libcuda.so.1", runpath="/x:$ORIGIN"))
    (folder / "libb.so").write_bytes(shared_library("libc.so.6", "libz.so.1"))
    listed = {"nixpkgs": {}, "driver": {"libcuda.so.1": ""}, "optional": {}}
    found = built.needed(environment, listed, {"libc.so.6"})
    assert found.found == "2 files, 5 names; 1 are the driver's or optional"
    assert found.wrong == ["lib/python3.13/site-packages/libb.so needs libz.so.1, which its RUNPATH does not have"]


def test_missing_and_compared_bytecode_is_reported(tmp_path: Path) -> None:
    environment = tree(tmp_path)
    folder = environment.outside(environment.site)
    for name in ("a", "b"):
        (folder / f"{name}.py").write_text("x = 1\n")
    assert built.bytecode(environment).wrong == ["no module has bytecode"]
    (folder / "__pycache__").mkdir()
    cached = folder / "__pycache__/a.cpython-313.pyc"
    cached.write_bytes(b"\0\0\0\0" + (1).to_bytes(4, "little"))
    found = built.bytecode(environment)
    assert found.wrong == []
    assert found.found.startswith("1 files, 0 MB; 1 files are not")
    cached.write_bytes(b"\0\0\0\0" + (0).to_bytes(4, "little"))
    assert built.bytecode(environment).wrong == [f"{cached} is compared with its source"]


def test_each_tool_writes_its_own_part_of_the_report() -> None:
    first = report.with_first_part("", "# Set\n\none\n")
    both = report.with_last_part(first, f"{report.BUILT}\n\ntwo")
    assert both == f"# Set\n\none\n\n{report.BUILT}\n\ntwo\n"
    assert report.with_first_part(both, "# Set\n\nthree\n") == f"# Set\n\nthree\n\n{report.BUILT}\n\ntwo\n"
    assert report.with_last_part(both, f"{report.BUILT}\n\nfour") == f"# Set\n\none\n\n{report.BUILT}\n\nfour\n"


def test_a_violation_is_in_the_table_and_below_it() -> None:
    found = [report.WheelFinding("a", "1"), report.WheelFinding("b", "2", ["b is missing"])]
    assert report.table(found)[2:] == ["| a | 1 | yes |", "| b | 2 | NO |", "\n- b is missing"]
    assert report.printed(found) == "ok  a: 1\nNO  b: 2\n     b is missing\n"


def test_the_options_name_what_the_tool_needs(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tools.wheels.prove_engine", "--wheels", str(tmp_path)]
    done = subprocess.run(argv, cwd=checker.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the following arguments are required: --nixpkgs, --work" in done.stderr


def test_the_committed_report_is_about_this_environment() -> None:
    text = (checker.ROOT / "docs/wheels.md").read_text().partition(report.BUILT)[2]
    locked = {w["name"]: w["version"] for w in json.loads((checker.ROOT / "modules/wheels.json").read_text())}
    assert f"vllm {locked['vllm']}, torch {locked['torch']}." in text
    assert "| NO |" not in text
    for line in ("cudnnGetVersion", "nvcc stops at `rsqrt`", "FlashInfer compiles", "no two wheels claim one file"):
        assert line in text
