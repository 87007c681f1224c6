"""The bootstrap beside another one, killed, with variables of pip set, and on disks and in folders that refuse.

A small checkout with one small package of its own: venv and pip are real, no package index is used. The package's
build waits for a file, so that a test decides when an installation is in its middle.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.system import lock_file
from tests.conftest import ROOT, wait_until
from tests.otheruser import IDENTITY, NOBODY, python, shared_folder
from tests.process_tree import descendants
from tests.smalldisk import SmallDisk
from tools import bootstrap

MODULES = (
    "appliance/__init__.py",
    "appliance/errors.py",
    "appliance/system/__init__.py",
    "appliance/system/early.py",
    "appliance/system/lock_file.py",
    "appliance/system/ports.py",
    "tools/__init__.py",
    "tools/bootstrap.py",
    "tools/installer.py",
)
"""What the bootstrap may import: the standard library, and these."""

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "own"
version = "1"
"""

BACKEND = """
import os, pathlib, time, zipfile
here = pathlib.Path(__file__).parent
def build_editable(folder, config_settings=None, metadata_directory=None):
    with open(here / "builds", "a") as file:
        file.write("one\\n")
    while (here / "hold").exists():
        time.sleep(0.02)
    with zipfile.ZipFile(f"{folder}/own-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("own.pth", str(here))
        wheel.writestr("own-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: own\\nVersion: 1\\n")
        wheel.writestr("own-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("own-1.dist-info/RECORD", "")
    return "own-1-py3-none-any.whl"
"""


def tiny_wheel(folder: Path) -> str:
    """Write a package of one module; its digest."""
    path = folder / "tiny-1-py3-none-any.whl"
    files = {
        "tiny.py": "x = 1\n",
        "tiny-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n",
        "tiny-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        rows = []
        for name, text in files.items():
            wheel.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(text)}")
        wheel.writestr("tiny-1.dist-info/RECORD", "\n".join([*rows, "tiny-1.dist-info/RECORD,,", ""]))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Checkout:
    folder: Path
    runs: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    def start(self, interpreter: str = sys.executable, **more: str) -> subprocess.Popen[str]:
        """`make up`'s first step, in a process of its own."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        identity = more.pop("identity", "")
        environment |= {"PIP_FIND_LINKS": str(self.folder / "wheels"), "PIP_NO_INDEX": "1", **more}
        run = subprocess.Popen(
            [interpreter, "-m", "tools.bootstrap", "--engine", "fake"],
            cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            **(IDENTITY if identity else {}),
        )  # fmt: skip
        self.runs.append(run)
        return run

    def run(self, interpreter: str = sys.executable, **more: str) -> tuple[int, str]:
        process = self.start(interpreter, **more)
        said, _ = process.communicate(timeout=100)
        return process.returncode, said

    @property
    def builds(self) -> int:
        """How often the installation came to its last step."""
        file = self.folder / "builds"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def works(self) -> bool:
        done = subprocess.run([self.venv / "bin" / "python", "-c", "import tiny"], check=False, capture_output=True)
        return done.returncode == 0 and not (self.venv / ".changing").exists()


def make_checkout(folder: Path) -> Checkout:
    for part in ("requirements", "wheels"):
        (folder / part).mkdir(parents=True)
    for name in MODULES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    digest = tiny_wheel(folder / "wheels")
    (folder / "requirements" / "loadtest.lock").write_text(f"tiny==1 \\\n    --hash=sha256:{digest}\n")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "backend.py").write_text(BACKEND)
    return Checkout(folder)


def ended(checkout: Checkout) -> None:
    for run in checkout.runs:
        run.kill()
        run.communicate()


def holds(pid: int, path: Path) -> bool:
    """Whether process ``pid`` has ``path`` open."""
    return any(entry.resolve() == path for entry in Path(f"/proc/{pid}/fd").iterdir())


@dataclass
class Together:
    """What two first runs at once printed, and what they left."""

    checkout: Checkout
    pids: list[int]
    said: list[str]
    codes: list[int]
    note: str
    before_waiting: str
    holders: int
    """How many processes hold the lock while a package is being installed."""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    checkout = make_checkout(tmp_path_factory.mktemp("together") / "checkout")
    hold = checkout.folder / "hold"
    hold.touch()
    try:
        first = checkout.start()
        wait_until(lambda: checkout.builds == 1, "the first run is in the middle of its installation", 60)
        note = (checkout.folder / ".bootstrap.lock").read_text()
        holders = sum(
            holds(pid, checkout.folder / ".bootstrap.lock") for pid in {first.pid} | descendants(first.pid)
        )
        second = checkout.start()
        before = read_until(second, "waiting")
        hold.unlink()
        said = [run.communicate(timeout=60)[0] for run in (first, second)]
        yield Together(
            checkout, [first.pid, second.pid], said, [first.returncode, second.returncode], note, before, holders
        )
    finally:
        ended(checkout)


@pytest.fixture
def checkout(tmp_path: Path, together: Together) -> Iterator[Checkout]:
    """A checkout of the test's own where everything is installed."""
    made = Checkout(shutil.copytree(together.checkout.folder, tmp_path / "checkout", symlinks=True))
    assert made.run() == (0, "")
    yield made
    ended(made)


def read_until(run: subprocess.Popen[str], words: str) -> str:
    assert run.stdout is not None
    said = ""
    for line in run.stdout:
        said += line
        if words in line:
            return said
    pytest.fail(f"it never printed {words!r}: {said}")


def sentence(said: str) -> str:
    """The one error line of a run that failed as it should."""
    assert "Traceback" not in said
    assert "python3-venv" not in said
    assert "check the network" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line


def test_two_first_runs_wait_for_each_other(together: Together) -> None:
    assert together.codes == [0, 0], together.said
    assert json.loads(together.note) == {"pid": together.pids[0]}
    line = f"another `make up` is installing here (pid {together.pids[0]}); waiting\n"
    assert together.before_waiting + together.said[1] == line, "it installs nothing again"
    assert together.checkout.builds == 1
    assert together.checkout.works()
    assert together.holders == 2, "pip holds the lock too: killed alone, the first run leaves it to pip"


def test_a_changed_lock_waits_for_the_service_that_runs_from_the_environment(checkout: Checkout) -> None:
    lock = checkout.folder / "requirements" / "loadtest.lock"
    lock.write_text(lock.read_text() + "# changed\n")
    service = "\n".join(
        [
            "import fcntl, sys",
            "f = open(sys.argv[1])",
            "fcntl.flock(f, fcntl.LOCK_SH)",
            "print('runs', flush=True)",
            "input()",
        ]
    )
    with subprocess.Popen(
        [sys.executable, "-c", service, str(checkout.venv / ".in-use")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        read_until(running, "runs")
        code, said = checkout.run()
        assert code == 1
        assert f"{checkout.venv} has to be installed anew, and a service runs from it; stop that" in sentence(said)
        assert checkout.works()
        running.communicate("\n")
    code, said = checkout.run()
    assert code == 0, said
    assert checkout.builds == 2


HOSTILE = {
    "PIP_USER": "1",
    "PIP_TARGET": "/nowhere/target",
    "PIP_PREFIX": "/nowhere/prefix",
    "PIP_ROOT": "/nowhere/root",
    "PIP_NO_BINARY": ":all:",
    "PIP_DRY_RUN": "1",
    "PIP_CONSTRAINT": "/nowhere/constraints.txt",
    "PIP_REQUIREMENT": "/nowhere/requirements.txt",
    "PIP_PYTHON": "/nowhere/python",
    "PIP_LOG": "/nowhere/log",
    "PIP_REQUIRE_VIRTUALENV": "1",
    "PYTHONUSERBASE": "/nowhere",
    "PYTHONOPTIMIZE": "2",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""Variables that change what pip installs or where to, or what a Python imports."""


def test_a_run_after_a_killed_one_repairs_whatever_variables_are_set(checkout: Checkout) -> None:
    hold, lock = checkout.folder / "hold", checkout.folder / "requirements" / "loadtest.lock"
    hold.touch()
    whole = lock.read_text()
    lock.write_text(whole + "# changed\n")
    first = checkout.start()
    wait_until(lambda: checkout.builds == 2, "the first run is in the middle of its installation", 60)
    lock.write_text(whole)
    first.send_signal(signal.SIGKILL)
    first.wait()
    # pip ends with it, and with pip the lock is free, though the build that pip waited for goes on.
    lock_file.wait(checkout.folder / ".bootstrap.lock", lambda _: None).release()
    assert (checkout.venv / ".changing").exists()
    hold.unlink()
    modules = checkout.folder / "modules" / "pip"
    modules.mkdir(parents=True)
    (modules / "__init__.py").write_text("raise SystemExit('another pip')")
    settings = checkout.folder / "pip.conf"
    # The wheel is found through a file of settings: where packages come from is kept, all else is not.
    source = f"[global]\nfind-links = {checkout.folder / 'wheels'}\nno-index = true\n"
    settings.write_text(f"{source}[install]\nuser = yes\ntarget = /nowhere/x\n")
    more = HOSTILE | {"PYTHONPATH": str(modules.parent), "PIP_CONFIG_FILE": str(settings), "PIP_FIND_LINKS": ""}
    code, said = checkout.run(**more)
    assert code == 0, said
    assert "waiting" not in said
    assert checkout.works()
    assert not list(Path("/nowhere").parent.glob("nowhere"))
    assert checkout.run(**more) == (0, "")


def test_a_package_that_cannot_be_had_leaves_what_is_installed(checkout: Checkout) -> None:
    lock = checkout.folder / "requirements" / "loadtest.lock"
    whole = lock.read_text()
    lock.write_text(whole + f"other==1 \\\n    --hash=sha256:{'0' * 64}\n")
    code, said = checkout.run()
    assert code == 1
    assert "No matching distribution found for other==1" in said
    assert "check the network and run again" in said
    assert checkout.works(), "without a network, what was installed goes on working"
    lock.write_text(whole)
    assert checkout.run() == (0, "")
    # pip that rejects its own configuration.
    lock.write_text(whole + "# changed\n")
    broken = checkout.folder / "broken.conf"
    broken.write_text("no section\n")
    code, said = checkout.run(PIP_CONFIG_FILE=str(broken))
    assert code == 1
    assert "the configuration of pip cannot be read" in sentence(said)


def on_disk(disk: SmallDisk) -> Checkout:
    return make_checkout(disk.folder / "checkout")


def test_a_disk_that_becomes_full_on_the_way(small_disk: SmallDisk) -> None:
    checkout = on_disk(small_disk)
    code, said = checkout.run()
    assert code == 1
    assert "cannot be written (No space left on device); free space on its disk" in sentence(said)
    small_disk.fill()
    code, said = checkout.run()
    assert code == 1
    assert "No space left on device" in sentence(said)
    assert str(small_disk.folder) in said


def test_a_read_only_checkout(small_disk: SmallDisk) -> None:
    checkout = on_disk(small_disk)
    small_disk.read_only()
    code, said = checkout.run()
    assert code == 1
    assert f"{checkout.folder}/.bootstrap.lock cannot be written (Read-only file system); its disk is" in sentence(
        said
    )


@pytest.mark.parametrize("what", ["checkout", "environment", "lock"])
def test_a_checkout_of_another_user(what: str) -> None:
    """As after `sudo make up`, or where root cloned."""
    interpreter = python()
    with shared_folder() as folder:
        checkout = make_checkout(folder / "checkout")
        place = {
            "checkout": checkout.folder,
            "environment": checkout.venv,
            "lock": checkout.folder / ".bootstrap.lock",
        }
        if what == "lock":
            place[what].touch(mode=0o644)
        if what == "environment":
            (checkout.venv / "bin").mkdir(parents=True)
            (checkout.venv / "bin" / "x").touch()
        if what != "checkout":
            os.chown(checkout.folder, NOBODY, NOBODY)
        code, said = checkout.run(interpreter, identity="nobody")
        assert code == 1
        line = sentence(said)
        assert "cannot be written (Permission denied); " in line
        assert line.endswith(
            f"{place[what]} belongs to root, and this runs as nobody: "
            f"`sudo chown -R nobody {place[what]}`, or run as root"
        )


@pytest.mark.parametrize("value", ["70000", "65536", "-1", "0", "abc", "", "8_000", " 80", "٨٠", "1e3", "8000.0"])
@pytest.mark.parametrize(("flag", "name"), [("--port", "PORT"), ("--engine-port", "ENGINE_PORT")])
def test_ports_are_checked_before_anything_is_installed(
    capsys: pytest.CaptureFixture[str], flag: str, name: str, value: str
) -> None:
    assert bootstrap.main(["--engine", "fake", f"{flag}={value}"]) == 2
    assert (
        capsys.readouterr().err == f"error: {name}: {value!r} is not a port; use a whole number from 1 to 65535\n"
    )
