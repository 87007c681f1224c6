"""A real PostgreSQL server for tests of both databases."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import free_port

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)


@dataclass
class Cluster:
    """A PostgreSQL server that this test starts and stops."""

    folder: Path
    port: int
    prefix: list[str]

    def run(self, *argv: str) -> None:
        assert POSTGRES is not None
        command = [*self.prefix, str(POSTGRES / argv[0]), *argv[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        # It would visit each of the hundreds of databases in every minute.
        options += " -c autovacuum=off"
        self.run("pg_ctl", "start", "-w", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-o", options)

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-m", "immediate", "-D", f"{self.folder}/data")

    def database(self, name: str, template: str = "template1") -> str:
        """Create the database ``name`` as a copy of ``template`` and return its URL."""
        self.run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "appliance", "-T", template, name)
        return f"postgresql://appliance@127.0.0.1:{self.port}/{name}"


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a server and stop it at the end of the block; a machine without PostgreSQL skips the test."""
    if POSTGRES is None:
        pytest.skip("NOT CHECKED: there is no PostgreSQL; apt-get install postgresql")
    prefix: list[str] = []
    port = free_port()
    # Outside pytest's folder, which only root can enter. One process may have two servers.
    folder = Path(f"/tmp/appliance-postgres-{os.getpid()}-{port}")
    folder.mkdir(mode=0o755)
    if os.geteuid() == 0:
        # initdb does not run as root.
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        prefix = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    made = Cluster(folder, port, prefix)
    try:
        made.run("initdb", "-D", f"{folder}/data", "-U", "appliance", "-A", "trust", "-E", "UTF8", "--no-sync")
        made.start()
        yield made
        made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
