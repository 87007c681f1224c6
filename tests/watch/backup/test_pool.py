"""sanoid and syncoid with the settings of modules/pool.nix, on a real pool of zfs-fuse."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.watch.backup.pool import read_pool
from tests.conftest import ROOT, wait_until


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.parametrize(
    ("text", "state"), [("ONLINE\n", "ONLINE"), ("SUSPENDED\n", "SUSPENDED"), (None, "ABSENT")]
)
def test_the_state_of_a_pool_is_read_without_a_child(tmp_path: Path, text: str | None, state: str) -> None:
    folder = tmp_path / "proc/spl/kstat/zfs/tank"
    folder.mkdir(parents=True)
    if text is not None:
        (folder / "state").write_text(text)
    assert read_pool("tank", tmp_path) == state


def settings(name: str) -> dict[str, str]:
    """Return the settings of sanoid's template in modules/pool.nix, with the defaults of its options."""
    text = (ROOT / "modules/pool.nix").read_text()
    block = re.search(rf"templates\.{name} = \{{(.*?)\}};", text, re.DOTALL)
    assert block
    kept = dict(re.findall(r'(\w+) = kept "\w+" (\d+) \d+;', text))
    fixed = dict(re.findall(r"(\w+) = (\w+);", block[1]))
    return kept | {key: value.replace("true", "yes") for key, value in fixed.items()}


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two pools on files."""
    for program in ("zfs-fuse", "zpool", "sanoid", "syncoid"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"NOT CHECKED: {program} is missing; apt-get install $(cat tests/nix/apt.txt)")
    if not Path("/dev/fuse").exists():
        pytest.skip("NOT CHECKED: zfs-fuse needs /dev/fuse")
    if subprocess.run(["zpool", "list"], capture_output=True, check=False).returncode == 0:
        pytest.skip("NOT CHECKED: another ZFS runs on this machine")
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(["zfs-fuse", "--no-daemon"], stdout=log, stderr=log)
    names = (f"a{daemon.pid}", f"b{daemon.pid}")
    try:

        def listens() -> bool:
            if daemon.poll() is not None:
                pytest.skip(f"NOT CHECKED: zfs-fuse does not start here: {(tmp_path / 'log').read_text()[-200:]}")
            return subprocess.run(["zpool", "list"], capture_output=True, check=False).returncode == 0

        wait_until(listens, "zfs-fuse listens", 60)
        for name in names:
            file = tmp_path / name
            with file.open("wb") as disk:
                disk.truncate(128 << 20)
            run("zpool", "create", "-m", tmp_path / f"mount-{name}", name, file)
        yield names
    finally:
        for name in names:
            subprocess.run(["zpool", "destroy", "-f", name], capture_output=True, check=False)
        daemon.terminate()
        daemon.wait(30)


def test_snapshots_and_copies_with_the_settings_of_the_module(pools: tuple[str, str], tmp_path: Path) -> None:
    first, second = pools
    run("zfs", "create", f"{first}/data")
    data = tmp_path / f"mount-{first}/data"
    (data / "chat").write_text("before\n")
    conf = tmp_path / "sanoid"
    conf.mkdir()
    lines = [f"[{first}/data]", "use_template = appliance", "recursive = yes", "[template_appliance]"]
    lines += [f"{key} = {value}" for key, value in settings("appliance").items()]
    (conf / "sanoid.conf").write_text("\n".join([*lines, ""]))
    shutil.copy("/usr/share/sanoid/sanoid.defaults.conf", conf)
    run("sanoid", "--cron", "--configdir", conf, "--cache-dir", tmp_path / "cache", "--run-dir", tmp_path / "run")
    taken = run("zfs", "list", "-H", "-o", "name", "-t", "snapshot", "-r", first).split()
    assert {name.rpartition("_")[2] for name in taken} == {"hourly", "daily", "monthly"}
    run("syncoid", "--no-sync-snap", "--recursive", f"{first}/data", f"{second}/data")
    copied = run("zfs", "list", "-H", "-o", "name", "-t", "snapshot", "-r", second).split()
    assert {name.partition("@")[2] for name in copied} == {name.partition("@")[2] for name in taken}
    # An accident, and the copy of the second disk.
    (data / "chat").unlink()
    assert (tmp_path / f"mount-{second}/data/chat").read_text() == "before\n"
    run("zfs", "rollback", "-r", taken[-1])
    assert (data / "chat").read_text() == "before\n"
