"""models.lock: files that are verified, and each kind of difference that is reported."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from appliance.errors import ConfigError, StoreError
from appliance.models import lock, verification, verified
from tests.command_line import run_command

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
    return run_command("models", *words)


def test_locked_files_are_verified(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.lock"
    file.write_text(run("lock", "--store", store).stdout)
    assert [entry.file for entry in lock.read(file)] == ["model.safetensors", "sub/config.json"]
    done = run("verify", "--lock", file, "--store", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"2 files of {file} are whole in {store}; 2 were hashed\n"


def test_every_difference_is_reported(store: Path) -> None:
    entries = lock.make(store)
    weights = entries[0].path(store).resolve()
    assert list(verification.differences(entries, store)) == []
    weights.write_bytes(b"Weights")
    assert [line.partition(": ")[2] for line in verification.differences(entries, store)] == [
        "its SHA-256 is not the lock's; remove it and fetch it again"
    ]
    weights.write_bytes(b"weigh")
    assert "5 bytes, the lock has 7; fetch it again" in next(verification.differences(entries, store))
    weights.unlink()
    assert f"is missing in {store}; fetch it" in next(verification.differences(entries, store))


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


def test_a_second_verification_hashes_what_changed(store: Path) -> None:
    entries = lock.make(store)
    first, second = (entry.path(store) for entry in entries)
    assert verification.verify(entries, store).hashed == 2
    assert verification.verify(entries, store, changed_only=True).hashed == 0
    first.touch()
    result = verification.verify(entries, store, changed_only=True)
    assert (result.hashed, result.differences) == (1, ())
    second.write_text("[]")
    result = verification.verify(entries, store, changed_only=True)
    assert (result.hashed, len(result.differences)) == (1, 1)
    assert verified.unverified(entries, store, "Qwen/Qwen3-0.6B", REVISION) == [
        (
            f"Qwen/Qwen3-0.6B@{REVISION[:12]} sub/config.json: not verified in its present state; "
            "run `appliance models verify`"
        )
    ]


def test_only_verified_files_of_the_lock_may_be_loaded(store: Path) -> None:
    entries = lock.make(store)
    assert len(verified.unverified(entries, store, "Qwen/Qwen3-0.6B", REVISION)) == 2
    verification.verify(entries, store)
    assert verified.unverified(entries, store, "Qwen/Qwen3-0.6B", REVISION) == []
    extra = entries[0].path(store).with_name("extra.safetensors")
    extra.write_bytes(b"x")
    assert "is not in models.lock" in verified.unverified(entries, store, "Qwen/Qwen3-0.6B", REVISION)[0]
    extra.unlink()
    # The same content in a new file, with the old time: a copy of a disk, or a replacement.
    weights = entries[0].path(store).resolve()
    status = weights.stat()
    copy = weights.with_name("copy")
    copy.write_bytes(b"weights")
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(weights)
    assert (
        "not verified in its present state" in verified.unverified(entries, store, "Qwen/Qwen3-0.6B", REVISION)[0]
    )
    weights.unlink()
    assert "is missing" in verified.unverified(entries, store, "Qwen/Qwen3-0.6B", REVISION)[0]
    for name, revision in (("Qwen/Other", REVISION), ("Qwen/Qwen3-0.6B", None)):
        assert "has no file of it" in verified.unverified(entries, store, name, revision)[0]


def test_an_invalid_record_is_an_error(store: Path) -> None:
    (store / verified.NAME).write_text(f"{verified.HEADER}nonsense\n")
    with pytest.raises(StoreError, match="line 2 is not valid; remove the file"):
        verified.read(store)


def test_the_list_has_each_model_and_its_state(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.lock"
    missing = f"{'0' * 64}  7  Other/Model@{'c' * 40}  model.gguf\n"
    file.write_text(run("lock", "--store", store).stdout + missing)
    lost = store / "hub" / "models--Qwen--Lost" / "snapshots" / REVISION / "model.safetensors"
    lost.parent.mkdir(parents=True)
    lost.symlink_to("absent")
    assert run("verify", "--store", store, "--lock", file).returncode == 1
    found = {
        one["repository"]: one
        for one in json.loads(run("list", "--store", store, "--lock", file, "--json").stdout)["models"]
    }
    assert {name: (one["state"], one["locked"]) for name, one in found.items()} == {
        "Other/Model": ("1 files missing", True),
        "Qwen/Lost": ("1 files not verified", False),
        "Qwen/Qwen3-0.6B": ("verified", True),
    }
    assert (found["Qwen/Qwen3-0.6B"]["files"], found["Qwen/Qwen3-0.6B"]["size"]) == (2, 9)
