"""models.lock: files that are verified, and each kind of difference that is reported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import ConfigError, StoreError
from appliance.models import lock

REVISION = "a" * 40


@pytest.fixture
def store(tmp_path: Path) -> Path:
    snapshot = tmp_path / "store" / "hub" / "models--Qwen--Qwen3-0.6B" / "snapshots" / REVISION
    blobs = tmp_path / "store" / "hub" / "models--Qwen--Qwen3-0.6B" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "x").write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to(blobs / "x")  # as in the hub's own cache
    (snapshot / "sub").mkdir()
    (snapshot / "sub" / "config.json").write_text("{}")
    return tmp_path / "store"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "appliance", "models", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)


def test_locked_files_are_verified(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.lock"
    file.write_text(run("lock", "--store", store).stdout)
    assert [entry.file for entry in lock.read(file)] == ["model.safetensors", "sub/config.json"]
    done = run("verify", "--lock", file, "--store", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"2 files of {file} are whole in {store}\n"


def test_every_difference_is_reported(store: Path) -> None:
    entries = lock.make(store)
    weights = entries[0].path(store).resolve()
    assert list(lock.verify(entries, store)) == []
    weights.write_bytes(b"Weights")
    assert [line.partition(": ")[2] for line in lock.verify(entries, store)] == [
        "its SHA-256 is not the lock's; remove it and fetch it again"
    ]
    weights.write_bytes(b"weigh")
    assert "5 bytes, the lock has 7; fetch it again" in next(lock.verify(entries, store))
    weights.unlink()
    assert f"is missing in {store}; fetch it" in next(lock.verify(entries, store))


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "0" * 64 + f"  7  Qwen/Q@{REVISION}  ../../etc/passwd",
        "0" * 64 + f"  7  Qwen/Q@{REVISION}  /etc/passwd",
    ],
)
def test_an_invalid_lock_is_an_error(tmp_path: Path, line: str, store: Path) -> None:
    file = tmp_path / "models.lock"
    file.write_text(f"{lock.HEADER}{line}\n")
    with pytest.raises(ConfigError, match="line 2 is not `sha256"):
        lock.read(file)
    done = run("verify", "--lock", file, "--store", store)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_an_empty_lock_or_store_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "models.lock"
    file.write_text(lock.HEADER)
    with pytest.raises(ConfigError, match="names no file"):
        lock.read(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        lock.read(tmp_path / "none")
    with pytest.raises(StoreError, match="holds no model"):
        lock.make(tmp_path)
