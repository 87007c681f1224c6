"""Files that outlive a process: complete or absent. The error of a refused write has file, cause and fix."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import StoreError
from appliance.system import files
from tests.conftest import ROOT
from tests.otheruser import NAME, NOBODY, run, shared_folder
from tests.smalldisk import SmallDisk


@pytest.fixture
def shared() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


def test_replacing_keeps_the_mode_and_leaves_no_draft(tmp_path: Path) -> None:
    for text in ("one", "another", ""):
        files.replace(tmp_path / "key", text, mode=0o600)
        assert (tmp_path / "key").read_text() == text
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / ".key.new").write_text("left by a killed run")
    files.replace(tmp_path / "key", "last", mode=0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_the_old_file(small_disk: SmallDisk) -> None:
    file = small_disk.folder / "site.json"
    files.replace(file, "old")
    small_disk.fill()
    with pytest.raises(
        StoreError, match=r"site\.json cannot be written \(No space left on device\); free space on"
    ):
        files.replace(file, "new" * 10_000)
    assert file.read_text() == "old"
    assert sorted(path.name for path in small_disk.folder.iterdir()) == ["filler", "site.json"]
    with pytest.raises(StoreError, match="free space on its disk"):
        files.require_room(small_disk.folder / "models" / "tiny")
    small_disk.free()
    files.require_room(small_disk.folder / "models" / "tiny")
    files.replace(file, "new")
    assert file.read_text() == "new"


def test_a_read_only_disk(small_disk: SmallDisk) -> None:
    small_disk.read_only()
    path = small_disk.folder / "log" / "x"
    for write in (files.make_folder, files.open_log, lambda path: files.replace(path.parent.parent / "x", "")):
        with pytest.raises(StoreError, match=r"cannot be written \(Read-only file system\); its disk is read-only"):
            write(path)


def test_a_name_that_is_taken_by_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "x").mkdir(parents=True)
    for write, path in (
        (files.make_folder, tmp_path / "file"),
        (files.make_folder, tmp_path / "file" / "folder"),
        (files.open_log, tmp_path / "folder"),
        (files.open_log, tmp_path / "file" / "log"),
        (lambda path: files.replace(path, ""), tmp_path / "folder"),
        (lambda path: files.move(tmp_path / "file", path), tmp_path / "folder"),
    ):
        with pytest.raises(
            StoreError, match=r" cannot be written \([A-Z][a-z ]+\); a (file|folder) has .*: move it away"
        ):
            write(path)


REFUSED = """
import sys
from pathlib import Path
from appliance.system import files
from appliance.errors import StoreError
try:
    getattr(files, sys.argv[1])(Path(sys.argv[2]), *sys.argv[3:])
except StoreError as error:
    print(error)
"""


def test_another_users_folder_is_named_with_both_users_and_the_command(shared: Path) -> None:
    """As after `sudo make up`: the user owns the clone, and root owns a tree in it."""
    checkout = shared / "checkout"
    (checkout / "var" / "log").mkdir(parents=True)
    (checkout / "var" / "key").touch(mode=0o600)
    os.chown(checkout, NOBODY, NOBODY)
    for function, path in (
        ("make_folder", "var/models"),
        ("open_log", "var/log/gateway.log"),
        ("replace", "var/site.json"),
        ("read", "var/key"),
    ):
        done = run("-c", REFUSED, function, checkout / path, *(["text"] if function == "replace" else []))
        said = done.stdout.strip()
        verb = "read" if function == "read" else "written"
        place = checkout / path if function != "open_log" else checkout / "var" / "log" / "gateway.log"
        assert said.startswith(f"{place} cannot be {verb} (Permission denied); "), done
        whose = f"{checkout / 'var'} belongs to root, and this runs as {NAME}"
        assert said.endswith(f"{whose}: `sudo chown -R {NAME} {checkout / 'var'}`, or run as root")


@pytest.mark.parametrize("path", ["/appliance", "/var/lib/appliance/trial", "/etc/appliance", "/usr/share/x/y"])
def test_a_folder_of_the_system_is_not_to_be_given_away(path: str) -> None:
    done = run("-c", REFUSED, "make_folder", path)
    assert "Permission denied" in done.stdout
    assert "chown" not in done.stdout
    assert "choose another place, or run as root" in done.stdout


def test_a_folder_of_ones_own_without_permission(shared: Path) -> None:
    mine = shared / "mine"
    mine.mkdir(mode=0o555)
    os.chown(mine, NOBODY, NOBODY)
    done = run("-c", REFUSED, "make_folder", mine / "x")
    assert f"its permissions forbid it: `chmod -R u+rwX {mine}`" in done.stdout


WRITES = {"write_text", "write_bytes", "mkdir", "touch", "rename", "replace", "symlink_to", "unlink"}


@pytest.mark.parametrize("module", ["up.py", "engines/processes.py", "models/prepare.py"])
def test_the_parts_of_make_up_write_through_this_module_only(module: str) -> None:
    tree = ast.parse((ROOT / "appliance" / module).read_text())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and call.func.attr in WRITES | {"open", "fdopen"}:
            if ast.unparse(call.func.value).startswith("opener("):
                # A URL, not a file.
                continue
            assert isinstance(call.func.value, ast.Name), ast.unparse(call)
            assert call.func.value.id == "files", ast.unparse(call)
        assert not (isinstance(call.func, ast.Name) and call.func.id == "open")
