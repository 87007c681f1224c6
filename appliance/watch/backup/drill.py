"""The restore drill: from the escrow sheet alone to a gateway that accepts a key of the backup.

1. The sheet opens the repository, and the newest snapshot restores.
2. Files have their hashes, the database's pages are whole, and the sums of usage agree.
3. The sheet holds the machine's age key, and the saved configuration is valid.
4. A gateway starts on the restored database. It accepts a key of the backup and rejects a changed one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.contract.backup import BackupPlan, DrillRecord, drill_record_file, read_drill_record, write_record
from appliance.contract.load import load
from appliance.errors import ApplianceError, StartError, StoreError
from appliance.store.copies import copy_sqlite
from appliance.store.revision import FILE
from appliance.system import files, text_file
from appliance.system.http_request import NO_RESPONSE, HttpResponse, send_request
from appliance.system.stopping import Stop
from appliance.watch.backup.escrow import Escrow, age_secret
from appliance.watch.backup.restic import Restic
from appliance.watch.backup.restore import RestoredCopy, restore, verify
from appliance.watch.backup.stage import DRILL_MODEL

START_S, REQUEST_S, END_S = 120.0, 60.0, 30.0
"""Limits of the start of the gateway, of a request, and of the end of a process, in seconds."""

MAX_AGE_S = 48 * 3600.0
"""Age of the newest snapshot above which the drill fails: an old snapshot restores well and is of little use."""


def drill(
    plan: BackupPlan,
    escrow: Escrow,
    work: Path,
    *,
    stop: Stop,
    timeout_s: float,
    clock: Callable[[], float] = time.time,
    report: Callable[[str], None] = print,
) -> DrillRecord:
    """Run the drill in the folder ``work``, which this empties before and after; return its record.

    Raises :class:`StoreError` if the record cannot be written.
    """
    file = drill_record_file(plan)
    try:
        before = read_drill_record(file)
    except StoreError as error:
        report(f"warning: {error}")
        before = DrillRecord()
    record = before.model_copy(update={"started_at": clock(), "ended_at": None})
    write_record(file, record)
    failed: str | None = None
    try:
        _empty(work)
        _drill(plan, escrow, work, stop=stop, timeout_s=timeout_s, clock=clock, report=report)
    except ApplianceError as error:
        failed = str(error)
        report(f"error: {failed}")
    finally:
        with contextlib.suppress(StoreError):
            _empty(work)
    ended = clock()
    update = {"ended_at": ended, "failed": failed} | ({} if failed else {"last_success": ended})
    record = record.model_copy(update=update)
    write_record(file, record)
    return record


def _drill(
    plan: BackupPlan,
    escrow: Escrow,
    work: Path,
    *,
    stop: Stop,
    timeout_s: float,
    clock: Callable[[], float],
    report: Callable[[str], None],
) -> None:
    name, access = escrow.access(plan.drill)
    target, data = work / "restored", work / "data"
    restore(Restic(access, work / "cache", stop), target, host=escrow.host, timeout_s=timeout_s)
    copy = verify(target, data)
    report(f"restored from {name}: {len(copy.manifest.files)} files, {copy.manifest.keys} keys")
    age_s = clock() - copy.manifest.made_at
    if age_s > MAX_AGE_S:
        raise StoreError(
            f"the newest snapshot has a copy of {age_s / 3600:.0f} h ago; see `appliance backup status`"
        )
    _compare_age_key(plan, escrow, target)
    if copy.manifest.drill_key is None:
        report("this machine has no gateway: nothing to boot")
        return
    _check_site(plan, copy)
    boot_gateway(copy, work, stop=stop)
    report("a gateway on the restored data accepts the key of the backup")


def _compare_age_key(plan: BackupPlan, escrow: Escrow, target: Path) -> None:
    if plan.age_key_file is None:
        return
    restored = target / plan.age_key_file.lstrip("/")
    if escrow.age_key is None or age_secret(text_file.read(restored)) != escrow.age_key:
        raise StoreError("the escrow sheet does not hold the age key of the backup; write a new sheet")


def _check_site(plan: BackupPlan, copy: RestoredCopy) -> None:
    """Validate the restored configuration, if the plan saves it."""
    if plan.site is not None and any(plan.site.startswith(f"{path.rstrip('/')}/") for path in plan.copies):
        load(copy.folder / "files" / plan.site.lstrip("/"))


def boot_gateway(copy: RestoredCopy, work: Path, *, stop: Stop) -> None:
    """Start a gateway with a mock engine on the restored database, and check that it distinguishes keys.

    Raises :class:`StartError` if it does not start, and :class:`StoreError` if it does not.
    """
    data = work / "gateway"
    files.make_folder(data)
    copy_sqlite(copy.folder / FILE, data / FILE)
    port, engine_port = _free_ports(2)
    site = {
        "version": 1,
        "hosts": {"drill": {"memory_gib": 1}},
        "models": {DRILL_MODEL: {"source": "./none"}},
        "engines": {
            "drill": {
                "kind": "mock",
                "host": "drill",
                "model": DRILL_MODEL,
                "device": "cpu",
                "context": 4096,
                "concurrency": 4,
                "port": engine_port,
            }
        },
        "gateway": {"host": "127.0.0.1", "port": port, "data_dir": str(data)},
    }
    config = work / "site.json"
    files.replace(config, json.dumps(site))
    engine = ["-m", "appliance.engines.mock", "--port", str(engine_port), "--model", DRILL_MODEL]
    gateway = ["-m", "appliance", "gateway", "--config", str(config)]
    url, key = f"http://127.0.0.1:{port}", copy.manifest.drill_key or ""
    with _child(engine, work / "engine.log"), _child(gateway, work / "gateway.log") as process:
        _wait_ready(url, process, work / "gateway.log", stop)
        accepted = _ask(url, key)
        if accepted.status != 200:
            raise StoreError(f"the restored gateway rejects the key of the backup with {accepted.status}")
        changed = key[:-1] + ("A" if key[-1] != "A" else "B")
        rejected = _ask(url, changed)
        if rejected.status != 401:
            raise StoreError(f"the restored gateway returns {rejected.status} for a key that it never issued")


def _ask(url: str, key: str) -> HttpResponse:
    body = json.dumps({"model": DRILL_MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "drill"}]})
    try:
        return send_request(
            url,
            "/v1/chat/completions",
            method="POST",
            body=body.encode(),
            key=key,
            direct=True,
            timeout_s=REQUEST_S,
        )
    except NO_RESPONSE as error:
        raise StartError(f"the restored gateway does not respond ({type(error).__name__})") from None


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path, stop: Stop) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(*NO_RESPONSE):
            if send_request(url, "/ready", direct=True, timeout_s=5).status == 200:
                return
        if process.poll() is not None:
            break
        if stop.wait(0.1):
            raise StartError(f"interrupted by {stop.reason}")
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()] or ["no output"]
    raise StartError(f"no gateway starts on the restored data: {lines[-1][:300]}")


@contextlib.contextmanager
def _child(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    # A Nix package adds its modules to sys.path after the start of a Python that does not have them.
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError as error:
            raise StartError(f"{sys.executable} cannot be run ({error.strerror})") from None
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
                break


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _empty(folder: Path) -> None:
    """Make ``folder``, and remove all that it contains; raises :class:`StoreError`."""
    files.make_folder(folder)
    try:
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                # A restored folder may be read-only for its owner.
                for inner in (entry, *(one for one in entry.rglob("*") if one.is_dir() and not one.is_symlink())):
                    inner.chmod(0o700)
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise StoreError.unwritable(folder, error) from None
