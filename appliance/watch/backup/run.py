"""One backup: the steps for one repository, each with a limit and a reason of its failure in the record.

NixOS's own module for restic is one script without limits. A stale lock makes its `forget` fail for weeks, and a
snapshot with an unreadable file ends it before the check. It leaves no record for an alert. Therefore the steps are
here, and systemd only starts them:

1. stage: make the copy, or require one of at most six hours. If it fails, the rest is still saved.
2. open: remove locks of holders that have ended, and no others; make the repository before the first success. If
   it fails, the run ends.
3. backup: save the copy and the paths. A partial snapshot is kept and is not a success.
4. check: read one part of the data every week. It stays failed until that part passes.
5. prune: forget old snapshots if the plan has `keep_within`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.contract.backup import (
    BackupPlan,
    Repository,
    RunRecord,
    read_run_record,
    run_record_file,
    write_record,
)
from appliance.errors import ApplianceError, StoreError
from appliance.system import files, lock_file
from appliance.system.stopping import Stop
from appliance.watch.backup.restic import PARTIAL, Restic, ResticResult, open_access
from appliance.watch.backup.stage import CURRENT, LOCK, read_manifest, stage

FRESH_S = 6 * 3600.0
"""Age up to which a copy that another run made is still used."""

LOCK_WAIT_S = 6 * 3600.0
"""Limit of the wait for another backup: two at once would share one line."""

STATS_S = 600.0


def back_up(
    plan: BackupPlan,
    name: str,
    *,
    stop: Stop,
    make_stage: bool,
    cache: Path,
    clock: Callable[[], float] = time.time,
    report: Callable[[str], None] = print,
) -> RunRecord:
    """Run all steps for the repository ``name`` and return the record, which is also on disk.

    Raises :class:`StoreError` if the record cannot be written, or if another backup holds the lock for too long.
    """
    state = Path(plan.state)
    files.make_folder(state)
    lock = _take(state / "lock", stop, report)
    try:
        file = run_record_file(plan, name)
        try:
            before = read_run_record(file)
        except StoreError as error:
            report(f"warning: {error}")
            before = RunRecord()
        started = before.model_copy(update={"started_at": clock(), "ended_at": None})
        write_record(file, started)
        steps = _Steps(plan, name, started, stop, cache, clock, report)
        record = steps.run(make_stage=make_stage)
        write_record(file, record)
        return record
    finally:
        lock.release()


def _take(path: Path, stop: Stop, report: Callable[[str], None]) -> lock_file.Lock:
    deadline = time.monotonic() + LOCK_WAIT_S
    waiting = False
    while True:
        try:
            return lock_file.take(path)
        except lock_file.HeldError:
            if not waiting:
                report("another backup runs; waiting for its end")
            waiting = True
        if stop.wait(1.0) or time.monotonic() >= deadline:
            raise StoreError(f"{path}: another backup still runs; `systemctl list-units 'appliance-backup-*'`")


class _Steps:
    """The steps of one run. ``_failed`` has the failed ones, ``_facts`` the new values of the record."""

    def __init__(
        self,
        plan: BackupPlan,
        name: str,
        record: RunRecord,
        stop: Stop,
        cache: Path,
        clock: Callable[[], float],
        report: Callable[[str], None],
    ) -> None:
        self._plan, self._name, self._before = plan, name, record
        self._repository: Repository = plan.repositories[name]
        self._stop, self._cache, self._clock, self._report = stop, cache, clock, report
        self._failed: dict[str, str] = {}
        self._facts: dict[str, object] = {}

    def run(self, *, make_stage: bool) -> RunRecord:
        """Run the steps and return the new record."""
        if "check" in self._before.failed:
            self._failed["check"] = self._before.failed["check"]
        self._stage(make=make_stage)
        try:
            restic = self._open()
            if restic is not None:
                self._with_repository(restic)
        except ApplianceError as error:
            self._fail("open", str(error))
        return self._before.model_copy(
            update={**self._facts, "failed": self._failed, "ended_at": self._clock()},
        )

    def _stage(self, *, make: bool) -> None:
        try:
            if make and stage(self._plan, now=self._clock()) is None:
                self._report("the copy is in use by another backup; using the present one")
            age_s = self._clock() - read_manifest(Path(self._plan.stage) / CURRENT).made_at
            if age_s > FRESH_S:
                self._fail("stage", f"the copy is {age_s / 3600:.0f} h old; `journalctl -u appliance-backup-stage`")
        except ApplianceError as error:
            self._fail("stage", str(error))

    def _open(self) -> Restic | None:
        """Return restic for a repository that can be read; makes it unless a backup has succeeded before."""
        restic = Restic(open_access(self._name, self._repository), self._cache, self._stop)
        limit_s = self._repository.open_timeout_s
        found = restic.run("unlock", timeout_s=limit_s)
        if found.no_repository and self._before.last_success is None:
            self._report(f"{self._name}: making the repository")
            found = restic.run("init", timeout_s=limit_s)
        elif found.no_repository:
            # A new repository in its place would hide the loss of all snapshots.
            reason = f"the repository has vanished, with all snapshots; delete the record in {self._plan.state} "
            self._fail("open", f"{reason}to start a new one: {found.reason}")
            return None
        return restic if self._require("open", found) else None

    def _with_repository(self, restic: Restic) -> None:
        wait = restic.retry_lock()
        with self._stage_in_use():
            self._back_up(restic, wait)
        if not self._stop.requested:
            self._check(restic, wait)
        if self._repository.keep_within is not None and not self._stop.requested:
            self._prune(restic, wait, self._repository.keep_within)

    def _back_up(self, restic: Restic, wait: tuple[str, ...]) -> None:
        limit = self._repository.limit_upload_kib
        arguments = ["backup", "--json", "--host", self._plan.host, "--tag", "appliance", *wait]
        if limit is not None:
            arguments += ["--limit-upload", str(limit)]
        current = Path(self._plan.stage) / CURRENT
        # A missing path is an error of its own, so that the others are still saved.
        paths = [path for path in (str(current), *self._plan.paths) if Path(path).exists()]
        missing = sorted({str(current), *self._plan.paths} - set(paths))
        if not paths:
            self._fail("backup", f"nothing to save: {', '.join(missing)} do not exist")
            return
        done = restic.run(*arguments, "--", *paths, timeout_s=self._repository.timeout_s)
        if missing:
            self._fail("backup", f"{', '.join(missing)} does not exist; correct appliance.backup.paths")
        if done.code not in (0, PARTIAL):
            self._fail("backup", done.reason)
            return
        if done.code == PARTIAL:
            self._fail("backup", f"the snapshot is partial, some files cannot be read: {done.reason}")
        summary = next((one for one in done.messages() if one.get("message_type") == "summary"), {})
        self._facts["snapshot"] = str(summary.get("snapshot_id", ""))[:8] or None
        if "backup" not in self._failed and "stage" not in self._failed:
            self._facts["last_success"] = self._clock()
            added = int(summary.get("data_added", 0)) / 2**20
            self._report(f"{self._name}: snapshot {self._facts['snapshot']}, {added:.1f} MiB new")

    def _check(self, restic: Restic, wait: tuple[str, ...]) -> None:
        last, parts = self._before.last_check, self._repository.check_parts
        if last is not None and 0 <= self._clock() - last < self._repository.check_days * 86400:
            return
        part = self._before.checked_parts % parts + 1
        subset = f"--read-data-subset={part}/{parts}"
        done = restic.run("check", subset, *wait, timeout_s=self._repository.timeout_s)
        self._failed.pop("check", None)
        if self._require("check", done):
            self._facts["last_check"] = self._clock()
            self._facts["checked_parts"] = self._before.checked_parts + 1
            stats = restic.run("stats", "--no-lock", "--mode", "raw-data", "--json", timeout_s=STATS_S)
            size = next((message.get("total_size") for message in stats.messages()), None)
            if isinstance(size, int):
                self._facts["size_bytes"] = size

    def _prune(self, restic: Restic, wait: tuple[str, ...], keep: str) -> None:
        arguments = prune_arguments(keep, host=self._plan.host)
        self._require("prune", restic.run(*arguments, *wait, timeout_s=self._repository.timeout_s))

    def _require(self, step: str, done: ResticResult) -> bool:
        if not done.ok:
            self._fail(step, done.reason)
        return done.ok

    def _fail(self, step: str, reason: str) -> None:
        self._failed[step] = (
            f"{self._failed[step]}; {reason}" if self._failed.get(step, reason) != reason else reason
        )
        self._report(f"error: {self._name}: {step}: {reason}")

    @contextlib.contextmanager
    def _stage_in_use(self) -> Iterator[None]:
        """Hold the lock of the stage for reading: its next copy waits for this backup."""
        try:
            number = os.open(Path(self._plan.stage) / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # The first copy failed, and its step has reported the failure.
            yield
            return
        try:
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                if self._stop.wait(0.2):
                    break
            yield
        finally:
            os.close(number)


def prune_arguments(keep_within: str, *, host: str) -> list[str]:
    """Return restic's arguments that remove the snapshots of ``host`` older than ``keep_within``.

    Only an age counts. A stolen client of an append-only server can add snapshots with any date, and a rule by
    number would let them displace the true ones.
    """
    return ["forget", "--host", host, "--tag", "appliance", "--group-by", "host,tags", "--keep-within", keep_within,
            "--prune"]  # fmt: skip
