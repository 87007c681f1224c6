"""Removal of weights: only those that no lock and no site names, and only on request."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.models import gc, lock, verification, verified
from appliance.system import lock_file
from tests.command_line import run_command
from tests.conftest import a_site

KEPT, OLD = "a" * 40, "b" * 40


def snapshot(store: Path, repository: str, revision: str) -> Path:
    folder = store / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two revisions of one model, which share one file, and a model in the hub's own form."""
    store = tmp_path / "store"
    kept, old = snapshot(store, "Qwen/Qwen3", KEPT), snapshot(store, "Qwen/Qwen3", OLD)
    (kept / "model.safetensors").write_bytes(b"w" * 5000)
    (kept / "tokenizer.json").write_bytes(b"t" * 700)
    os.link(kept / "tokenizer.json", old / "tokenizer.json")
    (old / "model.safetensors").write_bytes(b"o" * 3000)
    hub = snapshot(store, "Other/Model", KEPT)
    blobs = hub.parent.parent / "blobs"
    blobs.mkdir()
    for name in ("used", "unused"):
        (blobs / name).write_bytes(name.encode() * 100)
    (hub / "model.safetensors").symlink_to(blobs / "used")
    (store / "partial").mkdir()
    (store / "partial" / ("0" * 64)).write_bytes(b"p" * 40)
    (store / "notes.txt").write_text("of the operator")
    return store


@pytest.fixture
def entries(store: Path) -> list[lock.Entry]:
    return [one for one in lock.make(store) if (one.repository, one.revision) == ("Qwen/Qwen3", KEPT)]


def test_only_unnamed_weights_are_removed(store: Path, entries: list[lock.Entry]) -> None:
    verification.verify(lock.make(store), store)
    removals = gc.remove(store, entries, [gc.NamedModel("Other/Model", None)])
    # The shared file has another name, so its bytes are not freed.
    assert {one.path.name: one.size for one in removals} == {OLD: 3000, "unused": 600, "0" * 64: 40}
    assert {(one.repository, one.revision) for one in lock.make(store)} == {
        ("Qwen/Qwen3", KEPT),
        ("Other/Model", KEPT),
    }
    assert list(verification.differences(entries, store)) == []
    assert len(verified.read(store)) == 3
    assert (store / "notes.txt").exists()
    assert gc.plan(store, entries, [gc.NamedModel("Other/Model", None)]) == []


def test_another_revision_of_a_named_model_is_removed(store: Path, entries: list[lock.Entry]) -> None:
    named = [gc.NamedModel("Other/Model", OLD)]
    gc.remove(store, entries, named)
    assert not (store / "hub" / "models--Other--Model").exists()


def test_a_model_that_a_site_names_by_its_folder_is_kept(store: Path, entries: list[lock.Entry]) -> None:
    weights = store / "hub" / "models--Other--Model" / "snapshots" / KEPT / "model.safetensors"
    removals = gc.plan(store, entries, [gc.NamedModel(str(weights.parent), None)])
    assert {one.path.name for one in removals} == {OLD, "unused", "0" * 64}


def test_a_partial_file_of_the_lock_is_kept(store: Path, entries: list[lock.Entry]) -> None:
    partial = store / "partial" / entries[0].sha256
    partial.write_bytes(b"half")
    gc.remove(store, entries, [])
    assert partial.read_bytes() == b"half"


def test_a_store_in_use_is_not_cleaned(store: Path, entries: list[lock.Entry]) -> None:
    held = lock_file.take(store / "partial" / "lock")
    with pytest.raises(StoreError, match="another run writes into this store"):
        gc.remove(store, entries, [])
    held.release()
    assert len(lock.make(store)) == 5


def test_the_command_shows_first_and_keeps_the_models_of_the_site(
    store: Path, entries: list[lock.Entry], tmp_path: Path
) -> None:
    file, site = tmp_path / "models.lock", tmp_path / "site.json"
    lock.write(file, entries)
    models = {"fake": {"source": "Qwen/Qwen3", "revision": OLD}}
    site.write_text(json.dumps(a_site(8000, 8100, tmp_path, models=models)))
    argv = ["models", "gc", "--store", store, "--lock", file, "--config", site]
    shown = run_command(*argv)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--delete removes them" in shown.stdout
    assert OLD not in shown.stdout
    assert len(lock.make(store)) == 5
    assert run_command(*argv, "--delete").returncode == 0
    assert {one.revision for one in lock.make(store) if one.repository == "Qwen/Qwen3"} == {KEPT, OLD}
    assert not (store / "hub" / "models--Other--Model").exists()
