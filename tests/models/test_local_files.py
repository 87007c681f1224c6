"""Files of a store outside of the hub's folders: locked, verified before a start, and never fetched from a hub."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.models import gc, lock, verification, verified
from appliance.models.offline import FolderSource
from appliance.models.transfer import bring
from tests.command_line import run_command
from tests.models.quiet import Quiet


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a GGUF in two parts, a folder of weights, whisper's file in the hub, and other files."""
    store = tmp_path / "store"
    hub = store / "hub" / "models--ggerganov--whisper.cpp" / "snapshots" / ("a" * 40)
    for folder in (store / "gguf", store / "Qwen3-32B", store / "partial", store / ".locks", store / "xet", hub):
        folder.mkdir(parents=True)
    for part in (1, 2):
        (store / "gguf" / f"big-0000{part}-of-00002.gguf").write_bytes(b"%d" % part * 4000)
    (store / "Qwen3-32B" / "config.json").write_text("{}")
    (store / "Qwen3-32B" / "model.safetensors").write_bytes(b"w" * 4000)
    (hub / "ggml.bin").write_bytes(b"speech")
    for other in ("partial/x", ".locks/x", "xet/x", "verified", "warmed"):
        (store / other).write_text("# none")
    (store / "notes.txt").write_text("fetched on Monday")
    return store


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return run_command("models", *words)


def local(store: Path) -> list[lock.Entry]:
    return [one for one in lock.make(store) if one.is_local]


def test_files_outside_of_the_hub_are_locked(store: Path, tmp_path: Path) -> None:
    lock.write(tmp_path / "models.lock", lock.make(store))
    entries = lock.read(tmp_path / "models.lock")
    assert [one.file for one in entries if one.is_local] == [
        "Qwen3-32B/config.json",
        "Qwen3-32B/model.safetensors",
        "gguf/big-00001-of-00002.gguf",
        "gguf/big-00002-of-00002.gguf",
    ]
    (store / "gguf" / "a name.gguf").write_bytes(b"x")
    with pytest.raises(StoreError, match="its name has a blank"):
        lock.make(store)


def test_a_path_is_loaded_only_with_all_its_verified_files(store: Path) -> None:
    entries = lock.make(store)
    part, folder = store / "gguf" / "big-00001-of-00002.gguf", store / "Qwen3-32B"
    assert len(verified.unverified_path(entries, store, part)) == 2, "no file was hashed yet"
    verification.verify(entries, store)
    assert verified.unverified_path(entries, store, part) == []
    assert verified.unverified_path(entries, store, folder) == []

    part.with_name("big-00002-of-00002.gguf").write_bytes(b"X" * 4000)
    assert len(verification.verify(entries, store, changed_only=True).differences) == 1
    (reason,) = verified.unverified_path(entries, store, part)
    assert reason.startswith("local/files gguf/big-00002-of-00002.gguf: not verified in its present state")
    assert verified.unverified_path(entries, store, folder) == [], "another model is not concerned"

    (folder / "code.py").write_text("x")
    (reason,) = verified.unverified_path(entries, store, folder)
    assert reason.startswith("local/files code.py: is not in models.lock")
    (reason,) = verified.unverified_path(entries, store, store / "other.gguf")
    assert "models.lock has no file of it" in reason


def test_a_service_verifies_its_own_file_alone(store: Path, tmp_path: Path) -> None:
    """As whisper's unit does before its start: damage of another model does not stop it."""
    file = tmp_path / "models.lock"
    entries = lock.make(store)
    lock.write(file, entries)
    speech = next(one for one in entries if one.file == "ggml.bin").path(store)
    (store / "gguf" / "big-00001-of-00002.gguf").write_bytes(b"X" * 4000)
    words = ("verify", "--changed", "--lock", file, "--store", store)
    assert run(*words).returncode == 1
    assert run(*words, speech).returncode == 0
    speech.write_bytes(b"Speech")
    damaged = run(*words, speech)
    assert (damaged.returncode, damaged.stderr.count("\n")) == (1, 1)
    assert "ggml.bin: its SHA-256 is not the lock's" in damaged.stderr
    unknown = run(*words, tmp_path / "none.bin")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "models.lock has no file of it" in unknown.stderr


def test_local_files_are_imported_from_a_store_and_never_fetched_from_a_hub(store: Path, tmp_path: Path) -> None:
    entries, copy = local(store), tmp_path / "copy"
    copy.mkdir()
    assert bring(entries, FolderSource(store), copy, Quiet()).fetched == len(entries)
    assert verified.unverified_path(entries, copy, copy / "Qwen3-32B") == []
    lock.write(tmp_path / "models.lock", entries)
    (copy / "Qwen3-32B" / "config.json").unlink()
    refused = run("fetch", "--store", copy, "--lock", tmp_path / "models.lock")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "config.json: is missing and in no repository; copy it there" in refused.stderr
    listed = run("list", "--store", copy, "--lock", tmp_path / "models.lock")
    assert "1 files missing" in " ".join(listed.stdout.split())


def test_the_removal_of_other_weights_leaves_the_records_of_local_ones(store: Path) -> None:
    entries = [one for one in lock.make(store) if one.is_local]
    verification.verify(lock.make(store), store)
    assert gc.remove(store, entries, [])
    assert verified.read(store).keys() == {verified.key(one) for one in entries}
    assert verified.unverified_path(entries, store, store / "Qwen3-32B") == []
