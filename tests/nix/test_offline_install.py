"""The ISO without a network: what disko-install has to build there needs only what the ISO has.

The device of the disk is known only on the machine, so disko-install evaluates the host anew. The test follows the
graph of these derivations down to outputs that are on the ISO. `make test-install` runs their scripts on a disk.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.nix import checker, rendered
from tests.nix.storepaths import STORE_PATH

Derivations = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def install() -> dict[str, Any]:
    # Of a copy of the tree: Python writes bytecode into the tree itself meanwhile, and both systems contain it.
    found: dict[str, Any] = rendered.evaluated(
        'import (/. + given.root + "/tests/nix/offline_install.nix") { inherit flake inputs; }', rendered.stored()
    )
    return found


@pytest.fixture(scope="module")
def graph(install: dict[str, Any]) -> Derivations:
    shown = rendered.nix("derivation", "show", "--recursive", *install["builds"].values(), *install["contents"])
    found: Derivations = json.loads(shown)
    return found


def on_the_iso(contents: list[str], graph: Derivations) -> set[str]:
    """Return the outputs on the ISO, as far as the derivations of ``contents`` show them.

    These are their own outputs, and the paths in the scripts that they write. nixpkgs' ``inputDerivation`` writes
    the paths of all direct inputs of a derivation.
    """
    found = set()
    for path in contents:
        derivation = graph[path]
        found |= {output["path"] for output in derivation["outputs"].values()}
        if derivation["name"].startswith("inputDerivation-"):
            found |= inputs(derivation, graph)
        found |= written(path, graph)
    return found


def inputs(derivation: dict[str, Any], graph: Derivations) -> set[str]:
    """Return the direct inputs of a derivation: sources, and outputs of others."""
    built = {
        graph[path]["outputs"][name]["path"]
        for path, needed in derivation["inputDrvs"].items()
        for name in needed["outputs"]
    }
    return built | set(derivation["inputSrcs"])


def written(path: str, graph: Derivations) -> set[str]:
    """Return the store paths in the script of a derivation, also if the script is behind a link."""
    derivation = graph[path]
    text = rendered.attributes(derivation).get("content", "")
    same = [other for other in derivation["inputDrvs"] if graph[other]["name"] == derivation["name"]]
    found = {f"/nix/store/{match['entry']}" for match in STORE_PATH.finditer(text)}
    return found.union(*(written(other, graph) for other in same))


def to_build(targets: list[str], present: set[str], graph: Derivations) -> set[str]:
    """Return the names of the derivations and sources that ``targets`` need beyond ``present``."""
    names, seen = set(), set()
    waiting = [path for path in targets if graph[path]["outputs"]["out"]["path"] not in present]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        derivation = graph[path]
        names.add(derivation["name"])
        names |= set(derivation["inputSrcs"]) - present
        for needed, wanted in derivation["inputDrvs"].items():
            if {graph[needed]["outputs"][name]["path"] for name in wanted["outputs"]} - present:
                waiting.append(needed)
    return names


def test_the_installer_installs_the_system_of_the_iso(install: dict[str, Any]) -> None:
    assert install["builds"]["installToplevel"] == install["installed"]


def test_the_installer_builds_only_its_scripts(install: dict[str, Any], graph: Derivations) -> None:
    names = to_build(list(install["builds"].values()), on_the_iso(install["contents"], graph), graph)
    assert names == {"closure-info", "disko", "disko-format", "disko-mount"}


def test_without_its_inputs_the_installer_would_build_the_world(
    install: dict[str, Any], graph: Derivations
) -> None:
    """The control: an ISO that has the system alone."""
    names = to_build(list(install["builds"].values()), on_the_iso(install["contents"][:1], graph), graph)
    assert len(names) > 100


def test_the_installer_uses_the_names_of_the_script_of_disko(install: dict[str, Any], graph: Derivations) -> None:
    """`make test-install` shows that these names decide whether an install is finished."""
    outer = graph[install["builds"]["diskoScript"]]
    (inner,) = (path for path in outer["inputDrvs"] if graph[path]["name"] == "disko")
    script = rendered.attributes(graph[inner])["content"]
    installer = (checker.ROOT / "modules/installer/install.sh").read_text()
    (names,) = re.findall(r"^names='(.*)'$", installer, re.MULTILINE)
    made = re.findall(r'--change-name="\d:(.*)"', script)
    assert set(made) == {"disk-main-ESP", "disk-main-root"}
    assert all(re.fullmatch(names, name) for name in made)
    assert re.search(r"mkfs\.ext4 \\\s+-L appliance-new ", script)
    assert "$(labelled appliance-new)" in installer
    (mount_point,) = re.findall(r"^mount_point=(.*)$", installer, re.MULTILINE)
    assert f'mount "/dev/disk/by-partlabel/disk-main-root" "{mount_point}/"' in script
    assert script.index("disk-deactivate") < script.index("sgdisk") < script.index("mkfs.ext4")


STEPS = {
    "nix": 'echo \'{"path": "/flake"}\'',
    "nix-build": "printf '%s\\n' /system FOLDER/closure FOLDER/bin/format",
    "format": "[ $1 != format ]",
    "xcp": "[ $1 != xcp ]",
    "nix-store": "[ $1 != nix-store ]",
    "nixos-install": "[ $1 != nixos-install ]",
    "mountpoint": "false",
    "rmdir": "true",
}
"""Programs that disko-install calls, as lines of a shell. ``$1`` is the name of the program that fails."""


def disko_install(folder: Path, patch: str, fails: str) -> int:
    """Run disko-install of disko's source after the phase ``patch``; return its exit code."""
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: disko-install needs root")
    script = folder / "disko-install"
    script.write_text((rendered.source("disko") / "disko-install").read_text())
    subprocess.run(["bash", "-euc", patch], cwd=folder, check=True)
    (folder / "closure").mkdir()
    (folder / "closure/store-paths").write_text("/system\n")
    (folder / "closure/registration").write_text("")
    (folder / "bin").mkdir()
    for name, line in STEPS.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\nset -- {fails}\n{line.replace('FOLDER', str(folder))}\n")
        (folder / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    argv = ["bash", str(script), "--flake", "/flake#gpu", "--disk", "main", "/dev/null"]
    argv += ["--mount-point", str(folder / "mounted")]
    return subprocess.run(argv, env=environment, capture_output=True, check=False).returncode


@pytest.mark.parametrize("fails", ["format", "xcp", "nix-store", "nixos-install"])
def test_a_failed_step_fails_the_install(install: dict[str, Any], tmp_path: Path, fails: str) -> None:
    assert disko_install(tmp_path, install["patch"], fails) != 0


def test_an_install_without_a_failure_succeeds(install: dict[str, Any], tmp_path: Path) -> None:
    assert disko_install(tmp_path, install["patch"], "none") == 0


def test_control_disko_install_itself_ignores_a_failed_copy(install: dict[str, Any], tmp_path: Path) -> None:
    assert disko_install(tmp_path, "", "xcp") == 0
