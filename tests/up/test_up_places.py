"""`appliance up` where machines differ: another site on the ports, odd folders and locales, no network, AMX."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from appliance.contract.load import load
from appliance.models.prepare import REVISION, WEIGHTS_SHA256
from appliance.up import on_free_ports
from tests.conftest import ROOT, http, wait_until
from tests.engines.test_cpu_dtype import AMX
from tests.otheruser import NOBODY, run, shared_folder
from tests.ports import free_port
from tests.up_process import Up, site_file, start_up

FAKE = ("--engine", "fake")


def serves(up: Up) -> bool:
    assert up.process.poll() is None, up.output
    return "Ctrl-C stops everything" in up.output


def once(
    config: Path, *options: str, first: tuple[str, ...] = (), variables: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run `appliance up` to its end, after the words ``first``, with ``variables``; return exit code and output."""
    argv = [*first, sys.executable, "-m", "appliance", "up", "--config", str(config), "--once", *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(
        argv, capture_output=True, text=True, encoding="utf-8", check=False, timeout=100, cwd=ROOT,
        env={**kept, "COLUMNS": "120", **(variables or {})},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = start_up(tmp_path_factory.mktemp("neighbour"), *FAKE)
    try:
        wait_until(lambda: serves(up), "it serves", 60)
        yield up
    finally:
        up.process.send_signal(signal.SIGINT)
        up.process.wait(60)


@pytest.fixture
def start() -> Iterator[Callable[[Path], Up]]:
    """Start `appliance up` in a folder; stop it at the end."""
    started: list[Up] = []

    def begin(folder: Path) -> Up:
        folder.mkdir()
        started.append(start_up(folder, *FAKE))
        return started[-1]

    yield begin
    for up in started:
        up.process.send_signal(signal.SIGINT)
        up.process.wait(60)


def beside(neighbour: Up, folder: Path) -> Path:
    """Return a site of another folder with the ports of ``neighbour``."""
    config, _, _ = site_file(folder)
    table = json.loads(config.read_text())
    table["gateway"]["port"], table["engines"]["chat"]["port"] = neighbour.port, neighbour.engine_port
    config.write_text(json.dumps(table))
    return config


def test_two_sites_run_at_once_with_the_ports_that_the_error_names(neighbour: Up, tmp_path: Path) -> None:
    config = beside(neighbour, tmp_path)
    code, said = once(config, *FAKE)
    assert code == 1
    suggested = re.search(r"use `make up PORT=(\d+) ENGINE_PORT=(\d+)`, or another gateway.port in", said)
    assert suggested, said
    code, said = once(config, *FAKE, "--port", suggested[1], "--engine-port", suggested[2])
    assert code == 0, said
    assert f"the fake engine on 127.0.0.1:{suggested[2]}" in said
    assert f"http://127.0.0.1:{suggested[1]}" in said
    assert http(f"{neighbour.url}/v1/models", key=neighbour.key).status == 200


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ({9000}, "PORT=9004"),
        ({9001}, "ENGINE_PORT=9004"),
        ({9003}, "ENGINE_PORT=9004"),
        ({9000, 9002}, "PORT=9004 ENGINE_PORT=9005"),
        ({9000, 9001, 9004, 9008}, "PORT=9005 ENGINE_PORT=9009"),
        ({9000, *range(9004, 10001)}, "PORT=8000"),
    ],
)
def test_a_suggestion_names_taken_ports_only_and_no_port_twice(tmp_path: Path, taken: set[int], words: str) -> None:
    config, _, _ = site_file(tmp_path)
    table = json.loads(config.read_text())
    table["gateway"]["port"], table["engines"]["chat"]["port"] = 9000, 9001
    table["engines"]["chat"]["replicas"] = 3
    config.write_text(json.dumps(table))
    assert on_free_ports(load(config), lambda _, port: port not in taken) == f"make up {words}"


def test_a_privileged_port_of_another_user(tmp_path: Path) -> None:
    with shared_folder() as folder:
        config, _, _ = site_file(folder)
        os.chown(folder, NOBODY, NOBODY)
        floor = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        if int(floor.read_text()) <= 100:
            pytest.skip("NOT CHECKED: every user may listen on every port here")
        done = run("-m", "appliance", "up", "--config", config, *FAKE, "--once", "--port", "99")
    assert done.returncode == 1
    assert re.search(r"error: port 99 on 127.0.0.1 needs root; use `make up PORT=1\d\d\d`", done.stderr), (
        done.stderr
    )


def test_paths_with_spaces_and_other_letters(tmp_path: Path) -> None:
    folder = tmp_path / "Größe und 'Platz' $HOME"
    folder.mkdir()
    config, _, _ = site_file(folder)
    code, said = once(config, *FAKE)
    assert code == 0, said
    assert (folder / "var" / "key").read_text().startswith("sk-")


def test_a_folder_whose_path_is_longer_than_that_of_a_socket(start: Callable[[Path], Up], tmp_path: Path) -> None:
    up = start(folder := tmp_path / ("long-" * 30))
    wait_until(lambda: serves(up), "it serves", 60)
    argv = [sys.executable, "-m", "appliance", "models", "status", "--config", str(folder / "var" / "running.json")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fake" in done.stdout


@pytest.mark.parametrize(
    "variables",
    [{}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LANG": "xx_XX.UTF-8"}],
    ids=["none", "C", "POSIX", "absent"],
)
def test_any_locale(tmp_path: Path, variables: dict[str, str]) -> None:
    config, _, _ = site_file(tmp_path)
    code, said = once(config, *FAKE, variables=variables)
    assert code == 0, said
    assert "PASS: every SLO holds" in said


def test_a_user_without_a_home(tmp_path: Path) -> None:
    with shared_folder() as folder:
        config, _, _ = site_file(folder)
        os.chown(folder, NOBODY, NOBODY)
        done = run("-m", "appliance", "up", "--config", config, *FAKE, "--once")
        assert done.returncode == 0, done.stdout + done.stderr
        assert (folder / "var" / "key").stat().st_uid == NOBODY


ENGINE = """#!{python}
import json, os, sys
if "tiny_qwen3.py" in sys.argv[1]:
    os.makedirs(sys.argv[2])
    open(sys.argv[2] + "/config.json", "w").write("{{}}")
    sys.exit()
json.dump(sys.argv, open("{words}", "w"))
port = sys.argv[sys.argv.index("--port") + 1]
os.execv("{python}", ["{python}", "-m", "appliance.engines.mock", "--port", port, "--model", "tiny-qwen3-random"])
"""
"""A replacement of the engine's Python: it creates an empty model, records its words and runs the mock as vLLM."""


def engine(folder: Path) -> tuple[Path, Path]:
    """Return the program, and the file to which it writes its words."""
    program, words = folder / "python", folder / "words.json"
    program.write_text(ENGINE.format(python=sys.executable, words=words))
    program.chmod(0o755)
    return program, words


def alone(*, loopback: bool = True) -> tuple[str, ...]:
    """Return the words that run a program on a machine whose only interface is ``loopback``. Else skip the test."""
    script = 'ip link set lo up && exec "$@"' if loopback else 'exec "$@"'
    words = ("unshare", "--net", "--mount", "sh", "-c", script, "sh")
    if shutil.which("ip") is None or subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("NOT CHECKED: a machine without a network needs root, unshare and ip")
    return words


@pytest.mark.parametrize(
    ("model", "name", "line"),
    [
        ("tiny", "tiny-qwen3-random", "TINY RANDOM MODEL: the model hub cannot be reached from here"),
        ("real", "Qwen/Qwen3-0.6B", "weights verified"),
    ],
)
def test_no_network_at_the_second_start(tmp_path: Path, model: str, name: str, line: str) -> None:
    program, _ = engine(tmp_path)
    program.write_text(program.read_text().replace("tiny-qwen3-random", name))
    config, _, _ = site_file(tmp_path)
    if model == "real":
        # An earlier start downloaded it.
        real = tmp_path / "var" / "models" / "Qwen3-0.6B"
        real.mkdir(parents=True)
        (real / "config.json").write_text("{}")
        (real / ".verified").write_text(f"{REVISION} {WEIGHTS_SHA256}\n")
    code, said = once(config, "--model", "auto", "--engine-python", str(program), first=alone())
    assert code == 0, said
    assert line in said
    assert "PASS: every SLO holds" in said


def test_a_loopback_interface_that_is_down_is_named(tmp_path: Path) -> None:
    """As in `unshare --net`: servers can listen, and no client reaches them."""
    config, _, _ = site_file(tmp_path)
    code, said = once(config, *FAKE, first=alone(loopback=False))
    assert code == 1
    assert "error: 127.0.0.1 cannot be reached (Network is unreachable); bring the loopback" in said
    assert "`ip link set lo up`" in said


@pytest.mark.parametrize("has_amx", [True, False])
def test_a_processor_with_amx_gets_float32_and_one_line_about_it(tmp_path: Path, has_amx: bool) -> None:
    program, words = engine(tmp_path)
    config, _, _ = site_file(tmp_path)
    (tmp_path / "cpuinfo").write_text(AMX if has_amx else "flags\t: fpu avx2\n")
    code = (
        "import pathlib, sys; from appliance.engines import cpu_dtype; from appliance.cli import main; "
        f"cpu_dtype.CPUINFO = pathlib.Path({str(tmp_path / 'cpuinfo')!r}); sys.exit(main(sys.argv[1:]))"
    )
    argv = ["up", "--config", str(config), "--once", "--model", "tiny", "--engine-python", str(program)]
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, timeout=100, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "AMX" in line]
    started = json.loads(words.read_text())
    assert len(lines) == (1 if has_amx else 0)
    assert ("--dtype" in started) is has_amx
    if has_amx:
        assert started[started.index("--dtype") + 1] == "float32"
        assert "float32" in lines[0]


def test_a_port_that_is_taken_on_every_address(tmp_path: Path) -> None:
    """As Docker and systemd sockets take it."""
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config, _, _ = site_file(tmp_path)
        code, said = once(config, *FAKE, "--port", str(port))
    assert code == 1
    assert f"port {port} on 127.0.0.1 is used by another program" in said
    assert free_port() != port
