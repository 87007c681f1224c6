"""Import of weights from another store: what resumes, and what never appears in the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.models import lock
from appliance.models.offline import FolderSource
from appliance.models.transfer import bring
from appliance.system import lock_file
from tests.models.quiet import Quiet
from tests.smalldisk import SmallDisk

WEIGHTS = b"weights" * 1000


def import_files(entries: list[lock.Entry], stick: Path, store: Path) -> int:
    return bring(entries, FolderSource(stick), store, Quiet()).fetched


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    snapshot = tmp_path / "stick" / "hub" / "models--Qwen--Qwen3-0.6B" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(WEIGHTS)
    (snapshot / "config.json").write_text("{}")
    return tmp_path / "stick"


@pytest.fixture
def weights(stick: Path) -> lock.Entry:
    return next(entry for entry in lock.make(stick) if entry.file == "model.safetensors")


def test_second_import_copies_nothing(stick: Path, tmp_path: Path) -> None:
    file, store = tmp_path / "models.lock", tmp_path / "store"
    file.write_text("\n".join(map(str, lock.make(stick))))
    argv = [sys.executable, "-m", "appliance", "models", "fetch", "--lock", str(file), "--from", str(stick)]
    argv += ["--store", str(store)]
    for copied in (2, 0):
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(f"; {copied} were copied\n")
    assert lock.make(store) == lock.make(stick)


def test_interrupted_copy_resumes(stick: Path, weights: lock.Entry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "partial").mkdir(parents=True)
    partial = store / "partial" / weights.sha256
    partial.write_bytes(WEIGHTS[:1234])
    inode = partial.stat().st_ino
    assert import_files([weights], stick, store) == 1
    assert weights.path(store).read_bytes() == WEIGHTS
    assert weights.path(store).stat().st_ino == inode


def test_corrupt_source_leaves_what_the_store_has(stick: Path, weights: lock.Entry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    weights.path(store).parent.mkdir(parents=True)
    weights.path(store).write_bytes(b"served now")
    weights.path(stick).write_bytes(b"X" + WEIGHTS[1:])
    with pytest.raises(StoreError, match="SHA-256 of the copy is not the lock's"):
        import_files([weights], stick, store)
    assert weights.path(store).read_bytes() == b"served now"
    assert not (store / "partial" / weights.sha256).exists()


def test_truncated_source_is_refused(stick: Path, weights: lock.Entry, tmp_path: Path) -> None:
    weights.path(stick).write_bytes(WEIGHTS[:-1])
    with pytest.raises(StoreError, match="6999 bytes, the lock has 7000"):
        import_files([weights], stick, tmp_path / "store")
    assert not weights.path(tmp_path / "store").exists()


def test_small_disk_is_refused_before_the_copy(stick: Path, weights: lock.Entry, small_disk: SmallDisk) -> None:
    weights.path(stick).write_bytes(bytes(2 << 20))
    with pytest.raises(StoreError, match="needs 2097154 bytes"):
        import_files(lock.make(stick), stick, small_disk.folder)


def test_second_import_at_the_same_time_is_refused(stick: Path, weights: lock.Entry, tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    held = lock_file.take(tmp_path / "partial" / "lock")
    with pytest.raises(StoreError, match="another run writes into this store"):
        import_files([weights], stick, tmp_path)
    held.release()


def test_a_stick_that_cannot_be_read_is_not_an_error_of_the_store(
    stick: Path, weights: lock.Entry, tmp_path: Path
) -> None:
    # A folder opens as a file that cannot be read, also for root.
    origin = weights.path(stick)
    origin.unlink()
    origin.mkdir()
    size = origin.stat().st_size
    entry = lock.Entry(weights.repository, weights.revision, weights.file, size, weights.sha256)
    with pytest.raises(StoreError) as error:
        import_files([entry], stick, tmp_path / "store")
    assert str(error.value).startswith(f"{origin} cannot be read")
    assert not weights.path(tmp_path / "store").exists()
