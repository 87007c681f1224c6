"""`appliance up` in a folder of another run or user, or on a full or read-only disk: an error of one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance import up as module
from appliance.cli import main
from appliance.contract.load import load, parse, read
from appliance.contract.model import Site
from appliance.engines.argv import replicas
from appliance.store.keys import KeyStore
from appliance.up import Options, first_token, on_ports
from tests.conftest import ROOT, http, wait_until
from tests.otheruser import NAME, NOBODY, run, shared_folder
from tests.ports import free_port
from tests.process_tree import descendants
from tests.smalldisk import SmallDisk
from tests.up_process import Up, site_file, start_up

FAKE = ("--engine", "fake")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start `appliance up` with options in the test's folder; at the end kill each run that did not end."""
    started: list[Up] = []

    def begin(*options: str) -> Up:
        started.append(start_up(tmp_path, *options))
        return started[-1]

    yield begin
    for up in started:
        up.process.kill()
        up.process.wait()


def serves(up: Up) -> bool:
    assert up.process.poll() is None, up.output
    return "Ctrl-C stops everything" in up.output


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = start_up(tmp_path_factory.mktemp("running"), *FAKE)
    wait_until(lambda: serves(up), "it serves", 60)
    yield up
    up.process.send_signal(signal.SIGINT)
    up.process.wait(60)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of the run except logs and the database, which the run still changes."""
    names = (".lock", "site.json", "running.json", "key", "smoke.json")
    return {name: (folder / name).read_bytes() for name in names}


def sentence(said: str) -> str:
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    "options",
    [FAKE, (*FAKE, "--port", "0free"), (*FAKE, "--engine-port", "0free"), ("--model", "tiny"), (*FAKE, "--once")],
    ids=["the same", "another port", "another engine port", "another engine", "once"],
)
def test_a_second_run_changes_nothing_of_the_first(running: Up, tmp_path: Path, options: tuple[str, ...]) -> None:
    words = [str(free_port()) if word == "0free" else word for word in options]
    table = json.loads((running.data.parent / "laptop.json").read_text())
    table["gateway"]["port"] = free_port()
    config = tmp_path / "other.json"
    config.write_text(json.dumps(table))
    before, children = contents(running.data), descendants(running.process.pid)
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "up", "--config", str(config), *words],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == "", "it is refused before it does anything"
    pid = running.process.pid
    assert sentence(done.stderr) == (
        f"error: a service already runs in {running.data} (pid {pid}, {running.url}); it was not changed: stop it "
        f"with Ctrl-C or `kill {pid}`, or choose another gateway.data_dir in {config}"
    )
    assert contents(running.data) == before
    assert descendants(running.process.pid) == children
    assert http(f"{running.url}/v1/models", key=running.key).status == 200


def child_of(up: Up, words: bytes) -> tuple[int, bytes]:
    """Return pid and command line of the child whose command contains ``words``."""
    for pid in descendants(up.process.pid):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if words in line:
            return pid, line
    return 0, b""


def test_a_crashed_child_restarts_with_its_first_configuration(start: Callable[..., Up]) -> None:
    up = start(*FAKE)
    wait_until(lambda: serves(up), "it serves", 60)
    models = [model["id"] for model in http(f"{up.url}/v1/models", key=up.key).json["data"]]
    assert "fake" in models
    (up.data / "site.json").write_text("{}")
    for words in (b"engines.mock", b"gateway"):
        pid, line = child_of(up, words)
        assert pid
        os.kill(pid, signal.SIGKILL)
        assert comes_back(up, words, pid) == line
    wait_until(lambda: ready(up), "it serves again", 30)
    assert [model["id"] for model in http(f"{up.url}/v1/models", key=up.key).json["data"]] == models

    # After it was killed, the next run can use the folder at once.
    up.process.kill()
    up.process.wait()
    code, said = up_once(up.data.parent / "laptop.json")
    assert code == 0, said
    assert f"an earlier run here was killed (pid {up.process.pid})" in said
    assert (up.data / ".lock").read_bytes() == b""
    assert json.loads((up.data / "site.json").read_text())["models"].keys() == {"fake"}


def comes_back(up: Up, words: bytes, pid: int) -> bytes:
    """Return the command line of the process that replaces ``pid``."""
    wait_until(lambda: child_of(up, words)[0] not in (0, pid), "it runs again", 30)
    return child_of(up, words)[1]


def ready(up: Up) -> bool:
    try:
        return http(f"{up.url}/ready").status == 200
    except OSError:
        return False


ENGINE = """#!{python}
import os, sys
if "tiny_qwen3.py" in sys.argv[1]:
    os.makedirs(sys.argv[2])
    open(sys.argv[2] + "/config.json", "w").write("{{}}")
    sys.exit()
port = sys.argv[sys.argv.index("--port") + 1]
os.execv("{python}", ["{python}", "-m", "appliance.engines.mock", "--port", port, "--model", "tiny-qwen3-random"])
"""
"""A replacement of the engine's Python: it creates an empty model, and runs the mock engine as vLLM."""


def test_an_engine_without_its_program_is_reported_and_restarted_later(
    tmp_path: Path, start: Callable[..., Up]
) -> None:
    """`make clean` in another terminal, or a new installation of the environment."""
    program = tmp_path / "python"
    model = tmp_path / "var" / "models"
    program.write_text(ENGINE.format(python=sys.executable))
    program.chmod(0o755)
    up = start("--model", "tiny", "--engine-python", str(program))
    wait_until(lambda: serves(up), "it serves", 60)
    assert model.is_dir()
    program.rename(tmp_path / "away")
    os.kill(child_of(up, b"engines.mock")[0], signal.SIGKILL)
    wait_until(lambda: "engine-chat cannot be restarted" in up.output, "it is reported", 30)
    (tmp_path / "away").rename(program)
    wait_until(lambda: child_of(up, b"engines.mock")[0] != 0, "it runs again", 30)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    said = " ".join(up.output.split())
    assert f"engine-chat cannot be restarted: {program} cannot be run (No such file or directory); name the" in said
    assert "; the next attempt is in " in said


def up_once(config: Path) -> tuple[int, str]:
    argv = [sys.executable, "-m", "appliance", "up", "--config", str(config), *FAKE, "--once"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("free_kib", [0, 8, 64])
def test_a_full_disk_is_one_line_at_each_step(small_disk: SmallDisk, tmp_path: Path, free_kib: int) -> None:
    (small_disk.folder / "var").mkdir()
    config, _, _ = site_file(tmp_path)
    config.write_text(config.read_text().replace(str(tmp_path / "var"), str(small_disk.folder / "var")))
    (small_disk.folder / "reserve").write_bytes(b"x" * 1024 * free_kib)
    small_disk.fill()
    (small_disk.folder / "reserve").unlink()
    code, said = up_once(config)
    assert code == 1, said
    line = sentence(said)
    assert str(small_disk.folder / "var") in line
    assert "free space on its disk" in line
    small_disk.free()
    code, said = up_once(config)
    assert code == 0, said
    assert (small_disk.folder / "var" / "key").read_text().startswith("sk-"), "no half key is left"


def test_a_full_disk_is_the_reason_if_a_model_cannot_be_created(small_disk: SmallDisk, tmp_path: Path) -> None:
    config, _, _ = site_file(tmp_path)
    config.write_text(config.read_text().replace(str(tmp_path / "var"), str(small_disk.folder / "var")))
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\nmkdir -p "$2" && exec dd if=/dev/zero of="$2/model.safetensors" bs=1M count=2\n')
    program.chmod(0o755)
    argv = [sys.executable, "-m", "appliance", "up", "--config", str(config), "--model", "tiny"]
    argv += ["--engine-python", str(program)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)
    assert done.returncode == 1
    line = sentence(done.stderr)
    assert re.search(
        r"/var/models/tiny-qwen3-\w+\.new cannot be written \(No space left on device\); free space", line
    )


def test_a_read_only_folder(small_disk: SmallDisk, tmp_path: Path) -> None:
    config, _, _ = site_file(tmp_path)
    config.write_text(config.read_text().replace(str(tmp_path / "var"), str(small_disk.folder / "var")))
    small_disk.read_only()
    code, said = up_once(config)
    assert code == 1
    assert f"{small_disk.folder / 'var'} cannot be written (Read-only file system); its disk is" in sentence(said)


@pytest.mark.parametrize("what", ["", ".lock", "log", "log/engine-chat.log", "key", "appliance.sqlite"])
def test_the_error_for_files_of_root_has_the_command(what: str) -> None:
    """After `sudo make up`, root owns ``what`` in the data folder, or all of it."""
    with shared_folder() as folder:
        config, _, _ = site_file(folder)
        data = folder / "var"
        data.mkdir()
        if what == "appliance.sqlite":
            KeyStore(data).close()
        elif what == "log":
            (data / "log").mkdir()
        elif what:
            (data / what).parent.mkdir(exist_ok=True)
            (data / what).touch(mode=0o600)
        for path in (folder, data, *data.rglob("*")):
            if path == folder or (what and not str(path).startswith(str(data / what))):
                os.chown(path, NOBODY, NOBODY)
        done = run("-m", "appliance", "up", "--config", config, *FAKE, "--once")
        assert done.returncode == 1, done.stdout + done.stderr
        line = sentence(done.stderr)
        place = data / what if what else data
        assert re.search(rf"^error: {place}\S*:? cannot be (written|read|opened) \(", line), line
        assert "ermission denied" in line or "readonly database" in line
        assert line.endswith(
            f"{place} belongs to root, and this runs as {NAME}: `sudo chown -R {NAME} {place}`, or run as root"
        )


def test_site_json_of_root_in_the_users_folder_is_replaced() -> None:
    with shared_folder() as folder:
        config, _, _ = site_file(folder)
        data = folder / "var"
        data.mkdir()
        for path in (folder, data):
            os.chown(path, NOBODY, NOBODY)
        for name in ("site.json", ".site.json.new", "running.json"):
            (data / name).touch(mode=0o600)
        done = run("-m", "appliance", "up", "--config", config, *FAKE, "--once")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("flag", ["--port", "--engine-port"])
@pytest.mark.parametrize("value", ["70000", "65536", "-1", "0", "abc", "", "8_000", " 80", "٨٠", "1e3", "8000.0"])
def test_an_invalid_port_is_one_line(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", *FAKE, f"{flag}={value}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {flag} (")
    assert said.endswith(f"{value!r} is not a port; use a whole number from 1 to 65535\n")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"gateway": {"port": 70000}}, "gateway.port: "),
        ({"gateway": {"port": "abc"}}, "gateway.port: "),
        ({"gateway": []}, "gateway: "),
        ({"engines": []}, "engines: "),
        ({"models": 1}, "models: "),
        ({"gateway": {"data_dir": 1}}, "gateway.data_dir: "),
    ],
)
def test_an_invalid_site_is_rejected_before_anything_is_written(
    tmp_path: Path, edit: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _, _ = site_file(tmp_path)
    config.write_text(json.dumps(json.loads(config.read_text()) | edit))
    assert main(["up", *FAKE, "--config", str(config)]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "var").exists()


def options(**more: object) -> Options:
    values = {"config": Path("x"), "engine": "fake", "model": "auto", "port": None, "once": True}
    return Options(**(values | {"engine_python": Path("p"), "base": Path("b")} | more))  # type: ignore[arg-type]


def test_the_engine_port_places_every_replica() -> None:
    path = ROOT / "examples" / "one-card.toml"
    table, site = parse(path, read(path)), load(path)
    assert on_ports(table, site, options()) == table
    placed = Site.model_validate_json(json.dumps(on_ports(table, site, options(port=8050, engine_port=8051))))
    assert placed.gateway.port == 8050
    ports = [replica.port for replica in replicas(placed)]
    assert sorted(ports) == [*range(8051, 8051 + len(ports))]


def test_a_chosen_engine_port_is_used(start: Callable[..., Up]) -> None:
    port = free_port()
    up = start(*FAKE, "--once", "--engine-port", str(port))
    assert up.process.wait(60) == 0, up.output
    assert f"the fake engine on 127.0.0.1:{port}" in up.output


async def test_an_error_of_the_probe_does_not_count_as_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise LookupError("an error of its own")

    monkeypatch.setattr(module, "probe_token", broken)
    site = load(ROOT / "examples" / "laptop.toml")
    with pytest.raises(LookupError):
        await first_token(site, replicas(site)[0], tmp_path / "log", {})
