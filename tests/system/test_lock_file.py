"""Locks of processes: one holder at a time, released by the kernel, with a note for other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.system import lock_file
from tests.conftest import ROOT, wait_until
from tests.otheruser import run, shared_folder
from tests.smalldisk import SmallDisk

HOLD = """
import subprocess, sys
from pathlib import Path
from appliance.system import lock_file
lock = lock_file.take(Path(sys.argv[1]))
lock.note(url="here")
if "child" in sys.argv:
    child = subprocess.Popen(["sleep", "600"], pass_fds=[lock.number], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


def holder(path: Path, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *more],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_process_reads_the_note_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holder(path) as process:
        assert line(process) == "held"
        before = path.read_bytes()
        with pytest.raises(lock_file.HeldError) as caught:
            lock_file.take(path)
        assert caught.value.note == {"pid": process.pid, "url": "here"}
        assert path.read_bytes() == before
        process.communicate("")
    lock = lock_file.take(path)
    assert lock.left == {}, "an orderly end leaves no note"
    lock.release()


def test_a_killed_holder_releases_it_and_leaves_its_note(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holder(path) as process:
        assert line(process) == "held"
        process.kill()
    lock = lock_file.take(path)
    assert lock.left == {"pid": process.pid, "url": "here"}
    lock.note()
    lock.release()
    assert path.read_bytes() == b""


def test_a_child_that_inherits_it_holds_it_after_its_parent_was_killed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holder(path, "child") as process:
        child = int(line(process))
        assert line(process) == "held"
        process.kill()
    with pytest.raises(lock_file.HeldError):
        lock_file.take(path)
    os.kill(child, signal.SIGKILL)
    lock_file.wait(path, lambda _: None).release()


def test_a_wait_ends_with_the_holder(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    notes: list[lock_file.Note] = []
    got: list[lock_file.Lock] = []
    with holder(path) as process:
        assert line(process) == "held"
        thread = threading.Thread(target=lambda: got.append(lock_file.wait(path, notes.append)))
        thread.start()
        wait_until(lambda: bool(notes), "it waits")
        assert not got
        process.communicate("")
    thread.join(20)
    assert notes == [{"pid": process.pid, "url": "here"}]
    got[0].release()


def test_a_deleted_lock_file_excludes_no_one(tmp_path: Path) -> None:
    """After `make clean`, a waiting process must not continue with a lock that no other process sees."""
    path = tmp_path / ".lock"
    first = lock_file.take(path)
    taken: list[lock_file.Lock] = []
    noted = threading.Event()
    thread = threading.Thread(target=lambda: taken.append(lock_file.wait(path, lambda _: noted.set())))
    thread.start()
    assert noted.wait(20)
    path.unlink()
    first.release()
    thread.join(20)
    with pytest.raises(lock_file.HeldError):
        lock_file.take(path)
    taken[0].release()


@pytest.mark.parametrize("content", [b"", b"no JSON", b"[1]", b"\xff", b'{"pid": '])
def test_an_invalid_note_locks_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ".lock"
    path.write_bytes(content)
    lock = lock_file.take(path)
    assert lock.left == {}
    lock.release()


def test_readers_share_a_lock_and_exclude_a_writer(tmp_path: Path) -> None:
    path = tmp_path / ".in-use"
    assert lock_file.share(path) is None, "nothing is created for reading"
    path.touch()
    one, two = lock_file.share(path), lock_file.share(path)
    assert one is not None
    assert two is not None
    with pytest.raises(lock_file.HeldError):
        lock_file.take(path)
    os.close(one)
    os.close(two)
    lock = lock_file.take(path)
    with pytest.raises(lock_file.HeldError):
        lock_file.share(path)
    lock.release()


def test_a_disk_that_refuses_is_an_error(small_disk: SmallDisk) -> None:
    lock = lock_file.take(small_disk.folder / "x")
    small_disk.fill()
    with pytest.raises(
        StoreError, match=r"/x cannot be written \(No space left on device\); free space on its disk"
    ):
        lock.note()
    lock.release()
    small_disk.read_only()
    with pytest.raises(StoreError, match=r"/x cannot be written \(Read-only file system\)"):
        lock_file.take(small_disk.folder / "x")


TAKE = """
import sys
from pathlib import Path
from appliance.system import lock_file
try:
    lock_file.take(Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, getattr(error, "note", ""), error)
"""


def test_a_lock_of_another_user() -> None:
    with shared_folder() as folder:
        path = folder / "var" / ".lock"
        path.parent.mkdir()
        with holder(path) as process:
            assert line(process) == "held"
            said = run("-c", TAKE, path).stdout
            assert said.startswith(f"HeldError {{'pid': {process.pid}, 'url': 'here'}}"), "the better reason"
            process.communicate("")
        said = run("-c", TAKE, path).stdout
    assert f"StoreError  {path} cannot be written (Permission denied); {path.parent} belongs to root" in said
