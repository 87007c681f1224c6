"""The systems of the guest, as far as they are built without a boot: the rendered texts and what they name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boot.image import (
    GUEST_MODULE,
    NOT_NEEDED,
    POWER,
    POWER_MODULE,
    PROGRAM,
    SCRIPTS,
    VARIANTS,
    WATCH,
    write_operation,
    write_system,
)
from tests.nix import checker, rendered

GUEST_PROGRAMS = (
    "usr/bin/bash",
    "usr/bin/systemctl",
    "usr/bin/bootctl",
    "usr/bin/sed",
    "usr/bin/sync",
    "usr/bin/sleep",
    "usr/local/bin/nix-env",
    "usr/sbin/upsdrvctl",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two systems for a guest that has some programs."""
    folder = tmp_path_factory.mktemp("guest")
    for program in GUEST_PROGRAMS:
        (folder / program).parent.mkdir(parents=True, exist_ok=True)
        (folder / program).touch()
    host = rendered.host("gpu", "tests/boot/guest.nix")
    for variant in (VARIANTS[0], next(one for one in VARIANTS if one.slo is not None)):
        write_system(folder, variant, host)
    power = rendered.host("gpu", GUEST_MODULE, POWER_MODULE)
    write_operation(folder, VARIANTS[0], power, rendered.host("gpu"))
    return folder


def inside(tree: Path, path: str) -> Path:
    return tree / path.removeprefix("/")


def test_the_units_of_the_guest_are_the_rendered_ones(tree: Path) -> None:
    """Every text is that of NixOS, except the lines that only a switch reads."""
    folder = inside(tree, VARIANTS[0].system) / "etc/systemd/system"
    names = {file.name for file in folder.iterdir() if file.is_file()}
    assert {"appliance-smoke.service", "appliance-trial-deadline.timer", "appliance-trial-alerts.path"} <= names
    for name, unit in rendered.host("gpu", "tests/boot/guest.nix").units.items():
        if name in names:
            kept = [line for line in unit.text.splitlines() if "-Triggers=" not in line]
            different = [
                (old, new)
                for old, new in zip(kept, (folder / name).read_text().splitlines(), strict=True)
                if old != new
            ]
            assert all(old.startswith('Environment="') for old, _ in different), different
    assert (folder / "multi-user.target.wants/appliance-smoke.service").readlink() == Path(
        "../appliance-smoke.service"
    )


def test_every_store_path_of_a_unit_exists_in_the_guest(tree: Path) -> None:
    folder = inside(tree, VARIANTS[0].system) / "etc/systemd/system"
    assert {*POWER, WATCH} <= {file.name for file in folder.iterdir()}
    for file in [*folder.glob("appliance-*"), *folder.glob("ups*")]:
        for path in re.findall(r"^Exec\w+=[-+@!]*(\S+)", file.read_text(), re.MULTILINE):
            assert path.startswith("/nix/store/")
            assert inside(tree, path).exists(), path
    # A host with cards builds the package with CUDA in nixpkgs, so its path differs.
    programs = list((tree / "nix/store").glob("*-llm-appliance-*/bin/appliance"))
    assert programs
    assert {program.read_text() for program in programs} == {SCRIPTS["appliance"]}
    assert PROGRAM in SCRIPTS["appliance"]


def test_only_the_cut_of_the_power_starts_by_itself(tree: Path) -> None:
    """Steps start the other units of operation, so that the boots of a trial stay as they are."""
    folder = inside(tree, VARIANTS[0].system) / "etc/systemd/system"
    links = {link.name: link.parent.name for link in folder.glob("*.wants/*")}
    assert {name: links.get(name) for name in (*POWER, WATCH)} == {
        **dict.fromkeys((*POWER, WATCH)), "ups-killpower.service": "shutdown.target.wants",
    }  # fmt: skip


def test_the_programs_of_a_unit_are_those_of_the_guest(tree: Path) -> None:
    """A program that the guest lacks is absent, and the unit that calls it fails."""
    unit = (inside(tree, VARIANTS[0].system) / "etc/systemd/system/appliance-trial-passed.service").read_text()
    found = re.search('^Environment="PATH=(.*)"$', unit, re.MULTILINE)
    assert found
    there = {file.name: file for folder in found[1].split(":") for file in inside(tree, folder).iterdir()}
    assert {"systemctl", "bootctl", "nix-env"} <= there.keys()
    assert there["nix-env"].readlink() == Path("/usr/local/bin/nix-env")
    assert "systemd-run" not in there


def test_the_boot_loader_is_installed_by_the_rendered_script(tree: Path) -> None:
    system = inside(tree, VARIANTS[0].system)
    script = inside(tree, str((system / "install-boot-loader").readlink())).read_text()
    assert "/bin/appliance trial installed" in script
    (builder,) = re.findall(r"^(/nix/store/\S+/bin/systemd-boot) ", script, re.MULTILINE)
    assert inside(tree, builder).read_text() == SCRIPTS["systemd-boot"]
    for syntax in (script, (system / "bin/switch-to-configuration").read_text()):
        assert subprocess.run([checker.require("bash"), "-n"], input=syntax, text=True, check=False).returncode == 0


def test_a_variant_changes_only_its_site(tree: Path) -> None:
    first, second = (
        json.loads((inside(tree, one.system) / "etc/appliance/appliance.json").read_text())
        for one in (VARIANTS[0], next(one for one in VARIANTS if one.slo is not None))
    )
    assert first["smoke"].pop("slo") != second["smoke"].pop("slo")
    assert first == second


def test_every_command_starts_with_the_packages_of_the_guest() -> None:
    """The guest has no package that :data:`NOT_NEEDED` matches; a command that imports one ends with an error."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, NOT_NEEDED.pattern], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, f"numpy|{NOT_NEEDED.pattern}"], capture_output=True, text=True, check=False
    )
    assert "smoke: numpy" in done.stderr, "the test sees an absent package"


IMPORTS = """
import importlib, pkgutil, re, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if path is None and re.match(sys.argv[1], name):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import appliance.cli
for module in pkgutil.iter_modules(appliance.cli.__path__):
    try:
        importlib.import_module(f"appliance.cli.{module.name}")
    except ModuleNotFoundError as error:
        print(f"{module.name}: {error}", file=sys.stderr)
"""
"""Imports each command, without the packages that match the first argument."""
