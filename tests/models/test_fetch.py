"""Download from a hub: what resumes, what is fetched once, and what never appears in a store or a lock."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import StoreError, UsageError
from appliance.models import lock, verified
from appliance.models.hub import Hub, parse_model
from appliance.models.transfer import bring, partial_of
from tests.models.hub_server import CONFIG, REPOSITORY, REVISION, WEIGHTS, FakeHub, hub
from tests.models.quiet import Quiet
from tests.smalldisk import SmallDisk

MODEL = f"{REPOSITORY}@{REVISION}"


@pytest.fixture
def server() -> Iterator[FakeHub]:
    with hub() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def weights(server: FakeHub) -> lock.Entry:
    return entry_of(server, "model.safetensors")


def entry_of(server: FakeHub, name: str, revision: str = REVISION) -> lock.Entry:
    content = server.files[name]
    return lock.Entry(REPOSITORY, revision, name, len(content), hashlib.sha256(content).hexdigest())


def fetch(server: FakeHub, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "appliance", "models", "fetch", *map(str, words)]
    variables = {**os.environ, "HF_ENDPOINT": server.url, **environment}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=variables)


def transfer(server: FakeHub, entries: list[lock.Entry], store: Path, retries: int = 2) -> Quiet:
    watcher = Quiet()
    bring(entries, Hub(server.url), store, watcher, threads=2, waits_s=(0.0,) * retries)
    return watcher


def test_a_model_is_fetched_locked_and_not_fetched_again(server: FakeHub, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.lock"
    server.files["pytorch_model.bin"] = b"the same weights again"
    for copied in (2, 0):
        done = fetch(server, MODEL, "--store", store, "--lock", file)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"; {copied} were copied" in done.stdout
    assert lock.read(file) == lock.make(store)
    assert [one.file for one in lock.read(file)] == ["config.json", "model.safetensors"]
    assert verified.unverified(lock.read(file), store, REPOSITORY, REVISION) == []
    assert server.sent["model.safetensors"] == len(WEIGHTS)
    assert server.sent["config.json"] == len(CONFIG)


def test_a_second_model_is_added_to_the_lock(server: FakeHub, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.lock"
    other = f"{'0' * 64}  7  Other/Model@{'c' * 40}  model.gguf"
    file.write_text(f"{other}\n")
    assert fetch(server, MODEL, "--store", store, "--lock", file, "--only", "*.json").returncode == 0
    assert str(lock.read(file)[0]) == other
    assert [one.file for one in lock.read(file)] == ["model.gguf", "config.json"]


def test_a_cut_download_resumes_in_the_same_run(server: FakeHub, store: Path, weights: lock.Entry) -> None:
    server.cuts = 2
    watcher = transfer(server, [weights], store, retries=1)
    assert weights.path(store).read_bytes() == WEIGHTS
    assert server.sent["model.safetensors"] == len(WEIGHTS) == watcher.bytes


def test_a_cut_download_resumes_in_the_next_run(server: FakeHub, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.lock"
    server.cuts, server.files = 99, {"model.safetensors": WEIGHTS}
    entry = entry_of(server, "model.safetensors")
    with pytest.raises(StoreError, match="ended after 1000000 of 3072000 bytes"):
        transfer(server, [entry], store, retries=0)
    assert partial_of(entry.sha256, store).stat().st_size == 1_000_000
    assert not entry.path(store).exists()
    server.cuts = 0
    assert fetch(server, MODEL, "--store", store, "--lock", file).returncode == 0
    assert server.sent["model.safetensors"] == len(WEIGHTS)
    assert not list((store / "partial").glob("*.tag"))


def test_a_hub_that_stays_cut_leaves_the_lock_unwritten(server: FakeHub, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.lock"
    server.files["model.safetensors"] = WEIGHTS[:-1]
    listed = server.listing
    server.listing = lambda revision: listed(revision) | {"siblings": []}  # type: ignore[method-assign]
    done = fetch(server, MODEL, "--store", store, "--lock", file)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "lists not one file" in done.stderr
    assert not file.exists()


def test_errors_of_the_hub_are_retried(server: FakeHub, store: Path, weights: lock.Entry) -> None:
    server.errors = 2
    transfer(server, [weights], store)
    assert weights.path(store).read_bytes() == WEIGHTS


def test_a_hub_without_ranges_starts_again(server: FakeHub, store: Path, weights: lock.Entry) -> None:
    server.cuts, server.ranges = 1, False
    watcher = transfer(server, [weights], store)
    assert weights.path(store).read_bytes() == WEIGHTS
    assert watcher.bytes == len(WEIGHTS)


@pytest.mark.parametrize("honest", [True, False])
def test_a_changed_tag_starts_again(server: FakeHub, store: Path, weights: lock.Entry, honest: bool) -> None:
    server.cuts, server.honest_condition = 99, honest
    with pytest.raises(StoreError, match="ended after"):
        transfer(server, [weights], store, retries=0)
    partial_of(weights.sha256, store).write_bytes(bytes(1_000_000))
    server.cuts, server.etag = 0, '"two"'
    # The old bytes are discarded before the rest is fetched, not after a hash of the mixture.
    assert transfer(server, [weights], store, retries=0).discarded == [1_000_000]
    assert weights.path(store).read_bytes() == WEIGHTS


def test_a_damaged_partial_file_is_fetched_again(server: FakeHub, store: Path, weights: lock.Entry) -> None:
    (store / "partial").mkdir(parents=True)
    partial_of(weights.sha256, store).write_bytes(bytes(1_000_000))
    watcher = transfer(server, [weights], store)
    assert weights.path(store).read_bytes() == WEIGHTS
    assert watcher.bytes == len(WEIGHTS)


def test_corrupt_weights_never_reach_the_store(server: FakeHub, store: Path, weights: lock.Entry) -> None:
    served = weights.path(store)
    served.parent.mkdir(parents=True)
    served.write_bytes(b"served now")
    server.corrupt = b"X" + WEIGHTS[1:]
    with pytest.raises(StoreError, match="SHA-256 of the copy is not the lock's"):
        transfer(server, [weights], store)
    assert served.read_bytes() == b"served now"
    assert not partial_of(weights.sha256, store).exists()


def test_weights_of_another_size_are_refused_before_the_first_byte(
    server: FakeHub, store: Path, weights: lock.Entry
) -> None:
    server.corrupt = WEIGHTS + b"more"
    with pytest.raises(StoreError, match="the hub has 3072004 bytes, the lock 3072000"):
        transfer(server, [weights], store)
    assert partial_of(weights.sha256, store).read_bytes() == b""


def test_the_same_content_in_another_revision_is_linked(server: FakeHub, store: Path, weights: lock.Entry) -> None:
    transfer(server, [weights], store)
    other = entry_of(server, "model.safetensors", "b" * 40)
    transfer(server, [weights, other], store)
    assert other.path(store).stat().st_ino == weights.path(store).stat().st_ino
    assert server.sent["model.safetensors"] == len(WEIGHTS)
    assert verified.unverified([other], store, REPOSITORY, "b" * 40) == []


def test_a_changed_file_is_not_linked(server: FakeHub, store: Path, weights: lock.Entry) -> None:
    transfer(server, [weights], store)
    weights.path(store).write_bytes(bytes(len(WEIGHTS)))
    other = entry_of(server, "model.safetensors", "b" * 40)
    transfer(server, [other], store)
    assert other.path(store).read_bytes() == WEIGHTS


def test_a_missing_revision_is_one_line(server: FakeHub, store: Path, tmp_path: Path) -> None:
    done = fetch(server, f"{REPOSITORY}@{'f' * 40}", "--store", store, "--lock", tmp_path / "models.lock")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{REPOSITORY}@ffffffffffff: does not exist at {server.url}" in done.stderr


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main", "Qwen3@" + "a" * 40, f"{MODEL}0"])
def test_a_model_without_a_pinned_revision_is_refused(model: str) -> None:
    with pytest.raises(UsageError, match="40 hex digits"):
        parse_model(model)


def test_a_hub_that_is_absent_is_one_line(server: FakeHub, store: Path, weights: lock.Entry) -> None:
    with pytest.raises(StoreError, match="connection to the hub failed"):
        bring([weights], Hub("http://127.0.0.1:9"), store, Quiet(), waits_s=())


def test_the_token_reaches_the_hub_only(server: FakeHub, store: Path, tmp_path: Path) -> None:
    server.token = "secret"
    file = tmp_path / "models.lock"
    done = fetch(server, MODEL, "--store", store, "--lock", file)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "set HF_TOKEN" in done.stderr
    assert fetch(server, MODEL, "--store", store, "--lock", file, HF_TOKEN="secret").returncode == 0
    assert not any("Authorization" in headers for path, headers in server.requests if path.startswith("/cdn/"))


def test_a_small_disk_is_refused_before_the_first_byte(
    server: FakeHub, small_disk: SmallDisk, weights: lock.Entry
) -> None:
    with pytest.raises(StoreError, match=r"needs 3072000 bytes \(3.1 MB\)"):
        transfer(server, [weights], small_disk.folder)
    assert "model.safetensors" not in server.sent


def test_a_disk_that_fills_keeps_the_store_and_resumes(server: FakeHub, small_disk: SmallDisk) -> None:
    server.files = {"model.safetensors": WEIGHTS[:600_000]}
    entry = entry_of(server, "model.safetensors")
    fill = FillingWatcher(small_disk)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\); free space on its disk"):
        bring([entry], Hub(server.url), small_disk.folder, fill, waits_s=())
    assert not entry.path(small_disk.folder).exists()
    small_disk.free()
    transfer(server, [entry], small_disk.folder)
    assert entry.path(small_disk.folder).read_bytes() == WEIGHTS[:600_000]


class FillingWatcher(Quiet):
    """Fills the disk when the transfer begins."""

    def __init__(self, disk: SmallDisk) -> None:
        super().__init__()
        self._disk = disk

    def start_file(self, line: str) -> None:
        self._disk.fill()
