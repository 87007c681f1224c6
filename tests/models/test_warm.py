"""Weights in RAM: which amounts are refused, and what is recorded."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from appliance.errors import StoreError, UsageError
from appliance.models import lock, verified, warm
from tests.command_line import run_command

REVISION = "a" * 40
GB = 10**9


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for name in ("Qwen3", "Other"):
        folder = tmp_path / "disk" / "hub" / f"models--Qwen--{name}" / "snapshots" / REVISION
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(name.encode() * 300_000)
    return tmp_path / "disk"


@pytest.fixture
def lock_of(store: Path, tmp_path: Path) -> Path:
    file = tmp_path / "models.lock"
    lock.write(file, lock.make(store))
    return file


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return run_command("models", "warm", *words)


@pytest.mark.parametrize(
    ("weights", "page_cache", "tmpfs"),
    [(42 * GB, True, True), (43 * GB, True, False), (80 * GB, True, False), (81 * GB, False, False)],
)
def test_the_rules_for_ram(weights: int, page_cache: bool, tmpfs: bool) -> None:
    memory = warm.HostMemory(total=128 * GB, available=100 * GB)
    assert (warm.page_cache_excess(weights, memory) == "") is page_cache
    assert (warm.tmpfs_excess(weights, memory) == "") is tmpfs


def test_the_page_cache_is_filled_and_recorded(store: Path, lock_of: Path) -> None:
    assert not warm.is_warm(store, "Qwen/Qwen3", REVISION)
    done = run("Qwen/Qwen3", "--store", store, "--lock", lock_of)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 files, 1.5 MB, are in the page cache" in done.stdout
    assert warm.is_warm(store, "Qwen/Qwen3", REVISION)
    assert not warm.is_warm(store, "Qwen/Other", REVISION)
    assert not warm.is_warm(store, "Qwen/Qwen3", "b" * 40)


@pytest.mark.parametrize("record", ['{"boot": "an earlier one", "models": ["Qwen/Qwen3@%s"]}', "[]", "nonsense %s"])
def test_a_record_of_another_boot_is_not_warm(store: Path, record: str) -> None:
    (store / warm.RECORD).write_text(record.replace("%s", REVISION))
    assert not warm.is_warm(store, "Qwen/Qwen3", REVISION)


def test_a_tmpfs_gets_verified_copies(store: Path, lock_of: Path, tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    assert run("--store", store, "--lock", lock_of, "--to", ram).returncode == 0
    assert verified.unverified(lock.read(lock_of), ram, "Qwen/Qwen3", REVISION) == []
    assert "; 0 were copied" in run("--store", store, "--lock", lock_of, "--to", ram).stdout


def test_a_damaged_disk_warms_nothing_of_its_model(store: Path, lock_of: Path, tmp_path: Path) -> None:
    damaged = lock.make(store)[0].path(store)
    damaged.write_bytes(b"X" * damaged.stat().st_size)
    done = run("--store", store, "--lock", lock_of, "--to", tmp_path / "ram")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "SHA-256 of the copy is not the lock's" in done.stderr
    assert not lock.make(store)[0].path(tmp_path / "ram").exists()


def test_unknown_models_and_absurd_weights_are_refused(store: Path, lock_of: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no model 'Qwen/None'; it has Qwen/Other, Qwen/Qwen3"):
        warm.chosen(lock.read(lock_of), ["Qwen/None"])
    lock_of.write_text(f"{'0' * 64}  {10**14}  Qwen/Huge@{REVISION}  model.gguf\n")
    for words, reason in (((), "do not fit the page cache"), (("--to", tmp_path / "ram"), "300.0 TB of RAM")):
        done = run("--store", store, "--lock", lock_of, *words)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert reason in done.stderr


def test_a_host_without_meminfo_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no MemTotal"):
        warm.read_memory(tmp_path / "none")
