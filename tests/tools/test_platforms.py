"""Each file that names the versions of Python names those of :data:`tools.platforms.PYTHONS`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

from tests.conftest import ROOT
from tools import platforms

VERSIONS = [f"{major}.{minor}" for major, minor in platforms.PYTHONS]
AROUND = ["2.7", *(f"3.{minor}" for minor in range(20)), "4.0"]
"""Versions among which a range is compared with ours."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text()


def test_the_versions_have_no_gap() -> None:
    majors = {major for major, _ in platforms.PYTHONS}
    minors = [minor for _, minor in platforms.PYTHONS]
    assert majors == {3}
    assert minors == [*range(minors[0], minors[-1] + 1)]


def test_the_package_requires_one_of_them() -> None:
    required = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [version for version in AROUND if f"{version}.1" in required] == VERSIONS


def test_the_package_is_classified_for_each() -> None:
    found = [
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in PROJECT["project"]["classifiers"]
    ]
    assert [match[1] for match in found if match] == VERSIONS


def test_the_locks_are_resolved_for_them() -> None:
    for marker in map(Marker, PROJECT["tool"]["uv"]["environments"]):
        machine = next(one for one in platforms.MACHINES if f"'{one}'" in str(marker) or f'"{one}"' in str(marker))
        known = {"sys_platform": "linux", "platform_machine": machine, "implementation_name": "cpython"}
        found = [
            v for v in AROUND if marker.evaluate({**known, "python_full_version": f"{v}.1", "python_version": v})
        ]
        assert [version for version in found if f"{version}.1" in SpecifierSet(f">={VERSIONS[0]}")] == VERSIONS


def test_the_linters_hold_the_oldest() -> None:
    assert PROJECT["tool"]["mypy"]["python_version"] == VERSIONS[0]
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{VERSIONS[0].replace('.', '')}"


def test_continuous_integration_has_a_job_for_each() -> None:
    (row,) = re.findall(r"python: \[(.*)\]", WORKFLOW)
    assert re.findall(r'"([^"]*)"', row) == VERSIONS


def found_by_make(folder: Path, programs: Mapping[str, str]) -> str:
    """Return the Python that the Makefile chooses with ``folder`` as PATH; ``programs`` maps names to versions."""
    for name, version in programs.items():
        program = folder / name
        fake = f"import sys; sys.version_info = (*map(int, '{version}'.split('.')), 1); exec(sys.argv[1])"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{fake}" "$2"\n')
        program.chmod(0o755)
    argv = [str(shutil.which("make")), '--eval=chosen: ; @echo "$(PYTHON)"', "chosen"]
    variables = {"PATH": str(folder)}
    return subprocess.run(argv, cwd=ROOT, env=variables, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("version", VERSIONS)
def test_make_finds_each(tmp_path: Path, version: str) -> None:
    assert found_by_make(tmp_path, {f"python{version}": version}) == f"python{version}"


def test_make_prefers_the_default_python_if_it_is_one_of_them(tmp_path: Path) -> None:
    (major, oldest), (_, newest) = platforms.PYTHONS[0], platforms.PYTHONS[-1]
    other = f"python{major}.{newest}"
    for minor, expected in ((oldest - 1, other), (oldest, "python3"), (newest, "python3"), (newest + 1, other)):
        programs = {"python3": f"{major}.{minor}", other: VERSIONS[-1]}
        assert found_by_make(tmp_path, programs) == expected, programs


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "Makefile", "docs/decisions/0001-environments.md"]
)
def test_the_texts_name_the_span(name: str) -> None:
    text = " ".join((ROOT / name).read_text().replace("#", " ").split())
    spans = re.findall(r"\b3\.\d+ to 3\.\d+\b", text)
    assert spans
    assert set(spans) == {platforms.span()}
