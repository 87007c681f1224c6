"""The setup of a machine: errors name the fix, locks are complete, a second run does nothing."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from tools import bootstrap
from tools.bootstrap import ENGINE, SERVICE, TESTS, Environment, SetupError
from tools.platforms import ALL, PYTHONS, Platform

LOCKS = sorted(bootstrap.LOCKS.glob("*.lock"))
Version = namedtuple("Version", "major minor micro releaselevel serial")


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock.read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locks_hold_versions_and_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", text.replace("    --hash=sha256:", ""), re.MULTILINE)
    entries = [entry for entry in re.split(r"^(?=\S)", text, flags=re.MULTILINE) if "==" in entry]
    assert len(entries) == len(pins(lock)) > 1
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


def test_a_second_run_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("a second run started a program")

    assert TESTS.ready
    assert SERVICE.ready, "the tests' environment holds the service's lock too"
    monkeypatch.setattr(subprocess, "run", never)
    bootstrap.install(TESTS)
    bootstrap.install(SERVICE)


def test_a_changed_lock_is_not_ready(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    lock.write_text("a==1\n")
    environment = Environment(tmp_path, lock, "x")
    environment.python.parent.mkdir()
    environment.python.touch()
    assert not environment.ready
    environment.stamp("x").write_text(environment.digest)
    assert [environment.ready] == [True]
    lock.write_text("a==2\n")
    assert not environment.ready


def test_a_package_with_another_hash_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "bad.lock"
    lock.write_text("sniffio==1.3.1 \\\n    --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    with pytest.raises(
        SetupError, match=r"^sniffio==1.3.1 has another hash than bad.lock names, so it was not .* index$"
    ):
        bootstrap.install(Environment(tmp_path / "venv", lock, "a bad lock"))


ON_A_MACHINE = [
    (
        (3, 10),
        "x86_64",
        "glibc 2.36",
        "Python 3.11 to 3.14 is needed, this is",
        "command, such as PYTHON=python3.13",
    ),
    (
        (3, 15),
        "x86_64",
        "glibc 2.36",
        "Python 3.11 to 3.14 is needed, this is",
        "command, such as PYTHON=python3.13",
    ),
    ((3, 13), "riscv64", "glibc 2.36", "locked for Linux on x86_64 and aarch64, this is", "ENGINE=fake"),
    ((3, 13), "aarch64", "glibc 2.27", "needs glibc 2.31 or newer, this Python runs on glibc 2.27", "ENGINE=fake"),
    ((3, 13), "x86_64", "", "needs glibc 2.31 or newer, this Python runs on another C library", "ENGINE=fake"),
]


def pretend(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], machine: str, library: str) -> None:
    name, _, number = library.partition(" ")
    monkeypatch.setattr(sys, "version_info", Version(*version, 0, "final", 0))
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.libc_ver", lambda: (name, number))


@pytest.mark.parametrize(("version", "machine", "library", "words", "fix"), ON_A_MACHINE)
def test_an_error_on_other_machines_names_an_alternative(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], machine: str, library: str, words: str, fix: str
) -> None:
    pretend(monkeypatch, version, machine, library)
    with pytest.raises(SetupError, match=re.escape(words)) as error:
        bootstrap.check_machine("vllm")
    assert fix in str(error.value)
    if version in PYTHONS:
        bootstrap.check_machine("fake")


@pytest.mark.parametrize("one", ALL, ids=str)
def test_each_platform_of_the_locks_may_run_the_engine(monkeypatch: pytest.MonkeyPatch, one: Platform) -> None:
    pretend(monkeypatch, one.python, one.machine, "glibc 2.31")
    bootstrap.check_machine("vllm")


def test_a_missing_torch_is_explained() -> None:
    errors = (
        "WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution found for torch==2.13.0+cpu\n"
    )
    message = bootstrap.pip_failure(ENGINE, errors)
    assert "No matching distribution found for torch==2.13.0+cpu" in message
    assert "TORCH_INDEX" in message
    assert "ENGINE=fake" in message


def test_another_missing_package_of_the_engine_is_not_explained_by_torch() -> None:
    message = bootstrap.pip_failure(ENGINE, "ERROR: No matching distribution found for einops==0.8.2\n")
    here = f"for Python {platform.python_version()} on {platform.machine()}"
    assert f"No matching distribution found for einops==0.8.2, {here}); check the network and run again" in message
    assert "TORCH_INDEX" not in message


def test_missing_system_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda _: None)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SetupError, match=r"missing on this machine: libnuma1; .*sudo apt-get install -y libnuma1"):
        bootstrap.system_packages("vllm")
    bootstrap.system_packages("fake")
