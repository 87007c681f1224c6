"""`make up` with a Telegram bot: a token in the data folder starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, StartedProcess, start, wait_until
from tests.fakes.telegram_api import BOT_NAME, CHAT_TOKEN
from tests.ports import free_port
from tests.process_tree import descendants
from tests.up_process import site_file

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def person(tmp_path: Path) -> Iterator[StartedProcess]:
    """A Bot API and a person at it."""
    port = free_port()
    made = start([sys.executable, "-m", "tests.fakes.telegram_person", str(port)], port, tmp_path / "person.log")
    yield made
    made.stop()


def site_with_assistant(folder: Path, api: str | None) -> Path:
    """Write the site of `make up` without an embedder, with a Bot API at ``api``; return its file."""
    path, _, _ = site_file(folder)
    table = json.loads(path.read_text()) | {"assistant": {}}
    if api is not None:
        table["telegram"] = {"api": api}
    path.write_text(json.dumps(table))
    return path


def write_token(folder: Path, token: str) -> Path:
    """Write the token into the data folder and return the file."""
    path = folder / "var" / "telegram-token"
    path.parent.mkdir(exist_ok=True)
    path.write_text(token + "\n")
    path.chmod(0o600)
    return path


@contextmanager
def service(config: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run `appliance up` until the block ends; yield its process and its output."""
    log = config.parent / "up.log"
    argv = ["env", "--default-signal=INT,TERM,HUP", sys.executable, "-m", "appliance", "up"]
    argv += ["--engine", "fake", "--config", str(config), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdout=output, stderr=output, cwd=ROOT, env={**os.environ, "COLUMNS": "200"}
        )
    try:
        yield process, log
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_a_token_starts_the_bot_and_a_link_reaches_a_chat(tmp_path: Path, person: StartedProcess) -> None:
    config = site_with_assistant(tmp_path, person.url)
    write_token(tmp_path, CHAT_TOKEN)
    with service(config) as (process, log):
        wait_until(lambda: "Ctrl-C stops everything" in log.read_text(), "it serves", 200)
        shown = log.read_text()
        assert f"Telegram: {BOT_NAME} receives messages" in shown
        arguments = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(process.pid)]
        assert not any(CHAT_TOKEN.encode() in one for one in arguments)
        linking = re.search(r"appliance (telegram link me --config \S+)`", shown)
        assert linking, shown
        done = subprocess.run(
            [sys.executable, "-m", "appliance", *linking.group(1).split()],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        code = done.stdout.split(f"t.me/{BOT_NAME}?start=")[1].split()[0]
        for words, expected in ((f"/start {code}", "Linked to me."), ("Hello. fake: tokens=3", "the quick brown")):
            httpx.post(f"{person.url}/person", content=words).raise_for_status()
            wait_until(
                lambda text=expected: any(text in one for one in httpx.get(f"{person.url}/person").json()),  # type: ignore[misc]
                f"the bot shows {expected!r}", 120,
            )  # fmt: skip
    everything = [log.read_text(), *(path.read_text() for path in (tmp_path / "var" / "log").iterdir())]
    assert not any(CHAT_TOKEN in one or "fake-token" in one for one in everything)


def test_a_text_that_is_not_a_token_ends_the_start(tmp_path: Path, person: StartedProcess) -> None:
    config = site_with_assistant(tmp_path, person.url)
    write_token(tmp_path, "not a token")
    with service(config) as (process, log):
        assert process.wait(200) == 1
    shown = " ".join(log.read_text().split())
    assert "the Telegram bot ended with code 2" in shown
    assert "does not hold the token of a bot" in shown
    assert "not a token" not in shown
