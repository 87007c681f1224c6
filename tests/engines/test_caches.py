"""The folders of compiled kernels: shared by replicas, kept over upgrades, dropped two versions later."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.engines import caches
from appliance.errors import StoreError, UsageError
from tests.conftest import ROOT
from tests.smalldisk import SmallDisk


def start(folder: Path, version: str, *kernels: str) -> Path:
    """Start an engine of ``version`` that compiles ``kernels``; return its folder."""
    own = Path(caches.prepare(folder, version)["HOME"])
    for kernel in kernels:
        (own / kernel).mkdir()
        (own / kernel / "kernel.so").write_text(version)
    return own


def versions(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_version_finds_its_kernels_again(tmp_path: Path) -> None:
    first = start(tmp_path, "1", ".triton")
    assert start(tmp_path, "1") == first
    assert (first / ".triton" / "kernel.so").read_text() == "1"


def test_the_folders_are_those_that_the_compilers_use(tmp_path: Path) -> None:
    folder = str(tmp_path / "compiled-0.33.0-ab12")
    assert caches.prepare(tmp_path, "0.33.0-ab12") == {
        "HOME": folder,
        "XDG_CACHE_HOME": folder,
        "HF_MODULES_CACHE": f"{folder}/modules",
    }


def test_another_version_starts_without_kernels_and_keeps_those_of_the_version_before(tmp_path: Path) -> None:
    before = start(tmp_path, "1", "vllm")
    assert not any(start(tmp_path, "2").iterdir())
    assert (before / "vllm" / "kernel.so").exists()
    assert any(start(tmp_path, "1").iterdir()), "a return to it is as fast as before"


def test_older_versions_are_dropped_by_their_last_start(tmp_path: Path) -> None:
    for number, version in enumerate(["1", "2", "1", "3"]):
        os.utime(start(tmp_path, version), ns=(number * 10**9, number * 10**9))
    start(tmp_path, "3")
    assert versions(tmp_path) == {"compiled-1", "compiled-3"}


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "caches", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "vllm").mkdir(parents=True)
    (folder / "compiled-notes").write_text("a file")
    (folder / "compiled-link").symlink_to(elsewhere)
    for version in "1234":
        start(folder, version)
    assert versions(folder) == {"vllm", "compiled-notes", "compiled-link", "compiled-3", "compiled-4"}
    assert elsewhere.exists()


def test_replicas_start_together(tmp_path: Path) -> None:
    for version in "1234":
        start(tmp_path, version, *(f"kernel{number}" for number in range(50)))
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: start(tmp_path, "5"), range(8)))) == 1
    assert versions(tmp_path) == {"compiled-4", "compiled-5"}


@pytest.mark.parametrize("version", ["", "..", "../../etc", "a/b", "-x", "a b", "a" * 101])
def test_an_invalid_version_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(UsageError, match="is not a name"):
        caches.prepare(tmp_path / "new", version)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_cannot_be_written_is_one_line(small_disk: SmallDisk) -> None:
    small_disk.read_only()
    with pytest.raises(StoreError, match="cannot be written"):
        caches.prepare(small_disk.folder / "caches", "1")


def test_the_command_runs_the_mounted_environment_with_these_caches(tmp_path: Path) -> None:
    """A program in place of Python prints what the engine would get."""
    program = tmp_path / "environment" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!{sys.executable}\nimport os, sys\nprint(sys.argv[0], os.environ["XDG_CACHE_HOME"])\n')
    program.chmod(0o755)
    site = (ROOT / "examples" / "laptop.toml").read_text()
    config = tmp_path / "site.toml"
    config.write_text(site.replace("[engines.chat]", '[engines.chat]\ncommand = "/nix/store/another/bin/python"'))
    assert config.read_text() != site
    command = [sys.executable, "-m", "appliance", "engine", "exec", "chat", "--config", str(config)]
    more = ["--environment", str(program.parent.parent), "--caches", str(tmp_path / "caches"), "0.33.0"]
    done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(program), str(tmp_path / "caches" / "compiled-0.33.0")]
    without = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert without.returncode == 2
    assert "/nix/store/another/bin/python cannot be run" in without.stderr
