"""A machine with a gateway's database and configuration, and a restic repository for its backups."""

from __future__ import annotations

import atexit
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from appliance.contract.backup import BackupPlan, RunRecord, load_plan
from appliance.store.database import open_database
from appliance.store.keys import KeyStore
from appliance.store.schema import USAGE
from appliance.system.stopping import Stop
from appliance.watch.backup.restic import RepositoryAccess, Restic, open_access
from appliance.watch.backup.run import back_up
from tests.command_line import run_command
from tests.conftest import a_site
from tests.ports import free_port

PASSWORD = "correct-horse-battery-staple"
AGE_KEY = "AGE-SECRET-KEY-1TESTTESTTESTTESTTESTTESTTESTTESTTESTTESTTESTTESTTESTTEST"


@dataclass
class BackedUpMachine:
    """The machine under ``folder``; ``key`` is an API key of user ``ada`` from before the first backup."""

    folder: Path
    key: str

    @property
    def plan_file(self) -> Path:
        return self.folder / "backup.json"

    @property
    def plan(self) -> BackupPlan:
        return load_plan(self.plan_file)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    def change_plan(self, **repository: Any) -> None:
        """Change fields of the repository ``vps`` in the plan."""
        table = json.loads(self.plan_file.read_text())
        table["repositories"]["vps"] |= repository
        self.plan_file.write_text(json.dumps(table))

    def restic(self) -> Restic:
        return Restic(open_access("vps", self.plan.repositories["vps"]), self.folder / "cache", Stop())

    def back_up(self, *, make_stage: bool = True, **more: Any) -> RunRecord:
        """Run one backup in this process."""
        more.setdefault("stop", Stop())
        return back_up(self.plan, "vps", make_stage=make_stage, cache=self.folder / "cache", **more)

    def argv(self, action: str, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "appliance", "backup", action, *map(str, arguments)]

    def run(self, action: str, *arguments: str | Path, code: int = 0) -> str:
        """Run ``appliance backup`` in this process and return its output."""
        done = run_command("backup", action, *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def snapshots(self) -> list[dict[str, Any]]:
        done = self.restic().run("snapshots", "--no-lock", "--json", timeout_s=60)
        assert done.ok, done.reason
        found: list[dict[str, Any]] = json.loads(done.out)
        return found

    def packs(self) -> list[Path]:
        return sorted(path for path in (self.repository / "data").rglob("*") if path.is_file())

    def damage(self) -> None:
        """Change bytes in the middle of each pack, as a failing disk does."""
        for pack in self.packs():
            pack.chmod(0o600)
            content = bytearray(pack.read_bytes())
            for offset in range(len(content) // 2, len(content) // 2 + 4):
                content[offset] ^= 0xFF
            pack.write_bytes(bytes(content))


@cache
def _template() -> Path:
    """Return a folder with an empty repository: restic takes half a second to make one."""
    folder = Path(tempfile.mkdtemp(prefix="appliance-restic-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    access = RepositoryAccess(str(folder / "repository"), PASSWORD)
    made = Restic(access, folder / "cache", Stop()).run("init", timeout_s=100)
    assert made.ok, made.reason
    return folder


def make_machine(folder: Path, *, initialised: bool = True, **repository: Any) -> BackedUpMachine:
    """Return a machine with two users, 300 usage records and a plan whose repository is a local folder."""
    if shutil.which("restic") is None:
        pytest.skip("NOT CHECKED: restic is missing; apt-get install $(cat tests/nix/apt.txt)")
    folder.mkdir(parents=True, exist_ok=True)
    data, etc = folder / "data", folder / "etc"
    etc.mkdir()
    store = KeyStore(data)
    key = store.create("ada", name="laptop")
    store.create("bob")
    store.close()
    add_usage(data, 300)
    # NixOS's /etc has links into the store.
    (folder / "store").mkdir()
    (folder / "store/site.json").write_text(json.dumps(a_site(free_port(), free_port(), data)))
    (etc / "appliance.json").symlink_to(folder / "store/site.json")
    (folder / "age.txt").write_text(f"# created: today\n{AGE_KEY}\n")
    (folder / "wg0.key").write_text("the private key of the tunnel\n")
    (folder / "password").write_text(f"{PASSWORD}\n")
    plan = {
        "version": 1,
        "host": "gpu",
        "site": str(etc / "appliance.json"),
        "state": str(folder / "state"),
        "drill_state": str(folder / "drill-state"),
        "stage": str(folder / "stage"),
        "copies": [str(etc)],
        "paths": [str(folder / "age.txt"), str(folder / "wg0.key")],
        "age_key_file": str(folder / "age.txt"),
        "drill": "vps",
        "repositories": {
            "vps": {
                "url": str(folder / "repository"),
                "password_file": str(folder / "password"),
                "open_timeout_s": 30,
                "check_parts": 1,
                "check_days": 1000,
                **repository,
            }
        },
    }
    machine = BackedUpMachine(folder, key)
    machine.plan_file.write_text(json.dumps(plan))
    if initialised:
        shutil.copytree(_template() / "repository", machine.repository)
    return machine


def add_usage(data: Path, count: int, url: str | None = None) -> None:
    """Add usage records of the users ada and bob."""
    rows = [
        {
            "started_at": time.time() - number,
            "request_id": f"r{number}",
            "user": ("ada", "bob")[number % 2],
            "key_id": "0" * 12,
            "endpoint": "/v1/chat/completions",
            "name": "fake",
            "model": "fake",
            "role": "",
            "engine": "chat",
            "stream": True,
            "status": 200,
            "outcome": "ok",
            "prompt_tokens": number,
            "cached_tokens": 0,
            "completion_tokens": 2 * number,
            "estimated": False,
            "queue_ms": 1.0,
            "ttft_ms": 20.0,
            "duration_ms": 100.0,
        }
        for number in range(count)
    ]
    engine = open_database(data, url)
    with engine.begin() as connection:
        connection.execute(insert(USAGE), rows)
    engine.dispose()


def end(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send ``number`` and return the exit code and the output."""
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out
