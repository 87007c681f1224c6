"""Whole runs of the bootstrap: two at once, killed, with variables of pip set, on full and read-only disks.

A small checkout has one small package of its own: venv and pip are real, no package index is used. The package's
build waits for a file, so that a test determines the moment at which an installation is interrupted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import pwd
import re
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
    "tools/platforms.py",
)
"""The modules that the bootstrap may import in addition to the standard library."""

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
    """Write a package of one module; return its digest."""
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
        """Start the first step of `make up` as a process of its own."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        identity = more.pop("identity", "")
        environment |= {"PIP_FIND_LINKS": str(self.folder / "wheels"), "PIP_NO_INDEX": "1", **more}
        run = subprocess.Popen(
            # A background job of a shell passes SIGINT on as ignored.
            ["env", "--default-signal=INT", interpreter, "-m", "tools.bootstrap", "--engine", "fake"],
            cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            **(IDENTITY if identity else {}),
        )  # fmt: skip
        self.runs.append(run)
        return run

    def run(self, interpreter: str = sys.executable, **more: str) -> tuple[int, str]:
        process = self.start(interpreter, **more)
        output, _ = process.communicate(timeout=100)
        return process.returncode, output

    @property
    def builds(self) -> int:
        """Return how often an installation reached its last step."""
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


def kill_runs(checkout: Checkout) -> None:
    for run in checkout.runs:
        run.kill()
        run.communicate()


def holds(pid: int, path: Path) -> bool:
    """Return whether process ``pid`` has ``path`` open."""
    return any(entry.resolve() == path for entry in Path(f"/proc/{pid}/fd").iterdir())


@dataclass
class Together:
    """Two first runs at once: their output and their results."""

    checkout: Checkout
    pids: list[int]
    outputs: list[str]
    codes: list[int]
    note: str
    before_waiting: str
    holders: int
    """Number of processes that hold the lock while a package is being installed."""


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
        outputs = [run.communicate(timeout=60)[0] for run in (first, second)]
        yield Together(
            checkout=checkout,
            pids=[first.pid, second.pid],
            outputs=outputs,
            codes=[first.returncode, second.returncode],
            note=note,
            before_waiting=before,
            holders=holders,
        )
    finally:
        kill_runs(checkout)


@pytest.fixture
def checkout(tmp_path: Path, together: Together) -> Iterator[Checkout]:
    """A checkout of the test's own in which everything is installed."""
    made = Checkout(shutil.copytree(together.checkout.folder, tmp_path / "checkout", symlinks=True))
    assert made.run() == (0, "")
    yield made
    kill_runs(made)


def read_until(run: subprocess.Popen[str], words: str) -> str:
    assert run.stdout is not None
    output = ""
    for line in run.stdout:
        output += line
        if words in line:
            return output
    pytest.fail(f"it never printed {words!r}: {output}")


def error_line(output: str) -> str:
    """Return the only error line of a failed run."""
    assert "Traceback" not in output
    assert "-venv" not in output
    assert "check the network" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    return line


def test_two_first_runs_wait_for_each_other(together: Together) -> None:
    assert together.codes == [0, 0], together.outputs
    assert json.loads(together.note) == {"pid": together.pids[0]}
    line = f"another `make up` is installing here (pid {together.pids[0]}); waiting\n"
    assert together.before_waiting + together.outputs[1] == line, "it does not install again"
    assert together.checkout.builds == 1
    assert together.checkout.works()
    assert together.holders == 2, "pip holds the lock too, also if only the first run is killed"


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
        code, output = checkout.run()
        assert code == 1
        assert f"{checkout.venv} has to be installed anew, and a service runs from it; stop that" in error_line(
            output
        )
        assert checkout.works()
        running.communicate("\n")
    code, output = checkout.run()
    assert code == 0, output
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
"""Variables that change which packages pip installs, their folder, or the modules that a Python imports."""


def test_a_run_after_a_killed_one_repairs_with_any_variables_set(checkout: Checkout) -> None:
    hold, lock = checkout.folder / "hold", checkout.folder / "requirements" / "loadtest.lock"
    hold.touch()
    whole = lock.read_text()
    lock.write_text(whole + "# changed\n")
    first = checkout.start()
    wait_until(lambda: checkout.builds == 2, "the first run is in the middle of its installation", 60)
    lock.write_text(whole)
    first.send_signal(signal.SIGKILL)
    first.wait()
    # pip ends with it, and the lock is free then, although the build that pip waited for continues.
    lock_file.wait(checkout.folder / ".bootstrap.lock", lambda _: None).release()
    assert (checkout.venv / ".changing").exists()
    hold.unlink()
    modules = checkout.folder / "modules" / "pip"
    modules.mkdir(parents=True)
    (modules / "__init__.py").write_text("raise SystemExit('another pip')")
    settings = checkout.folder / "pip.conf"
    # The wheel is found through a configuration file: the source of packages is kept, other settings are not.
    source = f"[global]\nfind-links = {checkout.folder / 'wheels'}\nno-index = true\n"
    settings.write_text(f"{source}[install]\nuser = yes\ntarget = /nowhere/x\n")
    more = HOSTILE | {"PYTHONPATH": str(modules.parent), "PIP_CONFIG_FILE": str(settings), "PIP_FIND_LINKS": ""}
    code, output = checkout.run(**more)
    assert code == 0, output
    assert "waiting" not in output
    assert checkout.works()
    assert not list(Path("/nowhere").parent.glob("nowhere"))
    assert checkout.run(**more) == (0, "")


def test_a_folder_with_spaces_in_the_c_locale(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "Größe und 'Platz' $HOME")
    # pip separates the folders of this setting by spaces.
    wheels = shutil.copytree(checkout.folder / "wheels", tmp_path / "wheels")
    plain = {"PIP_FIND_LINKS": str(wheels), "LC_ALL": "C", "LANG": ""}
    try:
        code, output = checkout.run(**plain)
        assert code == 0, output
        assert checkout.works()
        assert checkout.run(**plain) == (0, "")
    finally:
        kill_runs(checkout)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_next_run_completes_an_interrupted_first_installation(tmp_path: Path, number: signal.Signals) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    hold = checkout.folder / "hold"
    hold.touch()
    try:
        first = checkout.start()
        wait_until(lambda: checkout.builds == 1, "the installation is in its last step", 60)
        first.send_signal(number)
        output, _ = first.communicate(timeout=60)
        hold.unlink()
        if number == signal.SIGINT:
            assert first.returncode == 130
            assert output.endswith("interrupted; run the same command again to go on\n")
            assert "Traceback" not in output
        assert (checkout.venv / ".changing").exists()
        code, output = checkout.run()
        assert code == 0, output
        assert checkout.works()
        assert checkout.run() == (0, "")
    finally:
        kill_runs(checkout)


def test_a_second_start_needs_no_network(checkout: Checkout) -> None:
    words = ["unshare", "--net"]
    if subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("NOT CHECKED: a machine without a network needs root and unshare")
    argv = [*words, sys.executable, "-m", "tools.bootstrap", "--engine", "fake"]
    done = subprocess.run(argv, cwd=checkout.folder, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_lock_that_misses_this_platform_is_one_line(checkout: Checkout) -> None:
    """Only a wheel for another Python is there, as for a Python that a lock does not cover."""
    wheels, lock = checkout.folder / "wheels", checkout.folder / "requirements" / "loadtest.lock"
    (wheels / "tiny-1-py3-none-any.whl").rename(wheels / "tiny-2-cp27-cp27m-manylinux1_x86_64.whl")
    lock.write_text(lock.read_text().replace("tiny==1", "tiny==2"))
    code, output = checkout.run()
    assert code == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "No matching distribution found for tiny==2, for Python " in line
    assert f"{platform.python_version()} on {platform.machine()}" in line
    assert checkout.works()


def test_a_package_with_another_hash_is_one_line(checkout: Checkout) -> None:
    wheels, lock = checkout.folder / "wheels", checkout.folder / "requirements" / "loadtest.lock"
    (wheels / "tiny-1-py3-none-any.whl").rename(wheels / "tiny-2-py3-none-any.whl")
    lock.write_text(
        re.sub("tiny==1(.*)sha256:[0-9a-f]{4}", r"tiny==2\1sha256:0000", lock.read_text(), flags=re.DOTALL)
    )
    code, output = checkout.run()
    assert code == 1
    assert error_line(output).startswith("error: tiny==2 has another hash than loadtest.lock names, so it was not")
    assert checkout.works()


def test_an_unavailable_package_leaves_the_installed_ones(checkout: Checkout) -> None:
    lock = checkout.folder / "requirements" / "loadtest.lock"
    whole = lock.read_text()
    lock.write_text(whole + f"other==1 \\\n    --hash=sha256:{'0' * 64}\n")
    code, output = checkout.run()
    assert code == 1
    assert "No matching distribution found for other==1" in output
    assert "check the network and run again" in output
    assert checkout.works(), "without a network, the installed packages keep working"
    lock.write_text(whole)
    assert checkout.run() == (0, "")
    # A configuration that pip rejects.
    lock.write_text(whole + "# changed\n")
    invalid = checkout.folder / "invalid.conf"
    invalid.write_text("no section\n")
    code, output = checkout.run(PIP_CONFIG_FILE=str(invalid))
    assert code == 1
    assert "the configuration of pip cannot be read" in error_line(output)


def on_disk(disk: SmallDisk) -> Checkout:
    return make_checkout(disk.folder / "checkout")


def test_a_disk_that_becomes_full_during_a_run(small_disk: SmallDisk) -> None:
    checkout = on_disk(small_disk)
    code, output = checkout.run()
    assert code == 1
    assert "cannot be written (No space left on device); free space on its disk" in error_line(output)
    small_disk.fill()
    code, output = checkout.run()
    assert code == 1
    assert "No space left on device" in error_line(output)
    assert str(small_disk.folder) in output


def test_a_read_only_checkout(small_disk: SmallDisk) -> None:
    checkout = on_disk(small_disk)
    small_disk.read_only()
    code, output = checkout.run()
    assert code == 1
    assert (
        f"{checkout.folder}/.bootstrap.lock cannot be written (Read-only file system); its disk is"
        in error_line(output)
    )


@pytest.mark.parametrize("owned", ["checkout", "environment", "lock"])
def test_a_checkout_of_another_user(owned: str) -> None:
    """As after `sudo make up`, or in a clone of root."""
    interpreter = python()
    with shared_folder() as folder:
        checkout = make_checkout(folder / "checkout")
        place = {
            "checkout": checkout.folder,
            "environment": checkout.venv,
            "lock": checkout.folder / ".bootstrap.lock",
        }
        if owned == "lock":
            place[owned].touch(mode=0o644)
        if owned == "environment":
            (checkout.venv / "bin").mkdir(parents=True)
            (checkout.venv / "bin" / "x").touch()
        if owned != "checkout":
            os.chown(checkout.folder, NOBODY, NOBODY)
        code, output = checkout.run(interpreter, identity="another")
        user = pwd.getpwuid(NOBODY).pw_name
        assert code == 1
        line = error_line(output)
        assert "cannot be written (Permission denied); " in line
        assert line.endswith(
            f"{place[owned]} belongs to root, and this runs as {user}: "
            f"`sudo chown -R {user} {place[owned]}`, or run as root"
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
