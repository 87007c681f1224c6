"""``appliance backup``: run, drill, restore, escrow, prune and report, for units and for people."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from rich.table import Table

from appliance.assistant.store.copy import load_copy, write_copy
from appliance.assistant.store.database import Database, assistant_of
from appliance.cli._args import add_config, add_json
from appliance.contract.backup import PLAN, load_plan
from appliance.contract.load import load
from appliance.errors import StoreError, UsageError
from appliance.notices.outbox import FOLDER, Outbox
from appliance.render.terminal import Console
from appliance.system.stopping import listening
from appliance.telegram.settings import telegram_of
from appliance.telegram.store.copy import write_bot_copy
from appliance.watch.backup.drill import drill
from appliance.watch.backup.escrow import make_escrow, read_escrow, render_escrow, write_escrow
from appliance.watch.backup.report import BackupState, read_state, report
from appliance.watch.backup.restic import Restic
from appliance.watch.backup.restore import load_database, restore, verify
from appliance.watch.backup.run import back_up, prune_arguments
from appliance.watch.backup.stage import stage

MEMORY = Path("/var/lib/appliance-backup-report/reported.json")
COPY = "backup"
"""Folder of the copy in the assistant's data folder, which a backup saves."""
LONGEST_S = 12 * 3600.0


def add_backup(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance backup``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=text)
        one.set_defaults(run=run, long_run=name in ("run", "drill", "restore", "prune"))
        return one

    status = _with_plan(action("status", _status, "show the last backup, check and drill"))
    add_json(status)
    run = _with_plan(action("run", _run, "save everything to one repository"))
    run.add_argument("name", metavar="REPOSITORY", help="a repository of the plan")
    run.add_argument("--staged", action="store_true", help="use the copy that `stage` has just made")
    _with_cache(run)
    _with_plan(action("stage", _stage, "make the consistent copy of keys, usage and configuration"))
    one = _with_plan(action("escrow", _escrow, "print the sheet that opens the backups on an empty machine"))
    one.add_argument("--output", type=Path, metavar="FILE", help="write it to a new file that only you may read")
    one = _with_plan(action("drill", _drill, "restore from the escrow sheet and boot a gateway on the data"))
    one.add_argument("--escrow", type=Path, required=True, metavar="FILE", help="the escrow sheet")
    one.add_argument("--work", type=Path, metavar="DIR", help="folder that this empties; default: a new one")
    one = action("restore", _restore, "restore a snapshot into an empty folder and verify it")
    _with_escrow(one)
    one.add_argument("--target", type=Path, required=True, metavar="DIR", help="an empty or a new folder")
    one.add_argument("--snapshot", default="latest", metavar="ID", help="the snapshot (%(default)s)")
    one = action("load", _load, "load keys and usage of a restored folder into an empty database")
    one.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR", help="the restored folder")
    add_config(one)
    one = action("chats", _chats, "copy the assistant's database for a backup, as its own user")
    add_config(one)
    one = action("load-chats", _load_chats, "load chats and memory of a restored copy into an empty database")
    one.add_argument("--from", dest="source", type=Path, required=True, metavar="FILE", help="the restored copy")
    add_config(one)
    one = action("telegram", _telegram, "copy the bot's database for a backup, as its own user")
    add_config(one)
    one = action("prune", _prune, "remove old snapshots, from a machine that may delete them")
    _with_escrow(one)
    one.add_argument(
        "--keep-within", default="90d", metavar="AGE", help="keep these, such as 90d or 1y (%(default)s)"
    )
    one = _with_plan(action("report", _report, "write metrics and notices about backups, drill and pool"))
    one.add_argument("--metrics", type=Path, metavar="FILE", help="file for node_exporter's textfile collector")
    one.add_argument("--outbox", type=Path, default=FOLDER, metavar="DIR", help="outbox of notices (%(default)s)")
    one.add_argument(
        "--memory", type=Path, default=MEMORY, metavar="FILE", help="file of the reported states (%(default)s)"
    )


def _chats(args: argparse.Namespace) -> int:
    settings = assistant_of(load(args.config))
    folder = settings.data_path(Path.cwd())
    database = Database(folder, settings.database_url)
    try:
        rows = write_copy(database, folder / COPY)
    finally:
        database.close()
    _print(f"copied {rows['conversations']} conversations and {rows['passages']} passages to {folder / COPY}")
    return 0


def _load_chats(args: argparse.Namespace) -> int:
    settings = assistant_of(load(args.config))
    database = Database(settings.data_path(Path.cwd()), settings.database_url)
    try:
        rows = load_copy(args.source, database)
    finally:
        database.close()
    _print(f"loaded {rows['conversations']} conversations, {rows['files']} files, {rows['passages']} passages")
    return 0


def _telegram(args: argparse.Namespace) -> int:
    folder = telegram_of(load(args.config)).data_path(Path.cwd())
    links = write_bot_copy(folder)
    _print(f"{folder} has no database of a bot yet" if links is None else f"copied {links} links of the bot")
    return 0


def _with_plan(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--plan", type=Path, default=PLAN, metavar="FILE", help="the plan (%(default)s)")
    return parser


def _with_cache(parser: argparse.ArgumentParser) -> None:
    cache = Path(os.environ.get("CACHE_DIRECTORY", Path.home() / ".cache/appliance-backup"))
    parser.add_argument("--cache", type=Path, default=cache, metavar="DIR", help="restic's cache (%(default)s)")


def _with_escrow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--escrow", type=Path, required=True, metavar="FILE", help="the escrow sheet")
    parser.add_argument("--repository", metavar="NAME", help="a repository of the sheet; default: its first")
    _with_cache(parser)


def _print(text: str) -> None:
    print(text, flush=True)


def _run(args: argparse.Namespace) -> int:
    plan = load_plan(args.plan)
    if args.name not in plan.repositories:
        raise UsageError(f"the plan has no repository {args.name!r}; it has {', '.join(plan.repositories)}")
    with listening() as stop:
        record = back_up(plan, args.name, stop=stop, make_stage=not args.staged, cache=args.cache, report=_print)
    return 1 if record.failed else 0


def _stage(args: argparse.Namespace) -> int:
    plan = load_plan(args.plan)
    manifest = stage(plan, now=time.time())
    if manifest is None:
        _print("a backup reads the present copy; it stays")
    else:
        _print(f"copied {manifest.keys} keys and {len(manifest.files)} files to {plan.stage}")
    return 0


def _escrow(args: argparse.Namespace) -> int:
    escrow = make_escrow(load_plan(args.plan))
    if args.output is not None:
        write_escrow(escrow, args.output)
        _print(f"wrote {args.output}; move it off this machine, and delete it here")
    elif sys.stdout.isatty():
        sys.stdout.write(render_escrow(escrow))
    else:
        raise UsageError("the escrow sheet holds secrets, and this is not a terminal; name a file with --output")
    return 0


def _drill(args: argparse.Namespace) -> int:
    plan, escrow = load_plan(args.plan), read_escrow(args.escrow)
    with listening() as stop:
        if args.work is not None:
            record = drill(plan, escrow, args.work, stop=stop, timeout_s=LONGEST_S, report=_print)
        else:
            with tempfile.TemporaryDirectory(prefix="appliance-drill-") as folder:
                record = drill(plan, escrow, Path(folder), stop=stop, timeout_s=LONGEST_S, report=_print)
    return 1 if record.failed else 0


def _restore(args: argparse.Namespace) -> int:
    escrow = read_escrow(args.escrow)
    name, access = escrow.access(args.repository)
    with listening() as stop, tempfile.TemporaryDirectory() as work:
        restic = Restic(access, args.cache, stop)
        restore(restic, args.target, host=escrow.host, snapshot=args.snapshot, timeout_s=LONGEST_S)
        copy = verify(args.target, Path(work))
    made = datetime.fromtimestamp(copy.manifest.made_at).astimezone().isoformat(timespec="minutes")
    _print(f"restored {escrow.host} from {name} into {args.target}: the copy of {made}, verified")
    _print(f"next: appliance-gateway backup load --from {args.target}, with the gateway stopped")
    return 0


def _load(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as work:
        load_database(args.source, load(args.config), Path.cwd(), Path(work), _print)
    return 0


def _prune(args: argparse.Namespace) -> int:
    escrow = read_escrow(args.escrow)
    _, access = escrow.access(args.repository)
    with listening() as stop:
        restic = Restic(access, args.cache, stop)
        restic.run("unlock", timeout_s=LONGEST_S)
        arguments = prune_arguments(args.keep_within, host=escrow.host)
        done = restic.run(*arguments, *restic.retry_lock(), timeout_s=LONGEST_S)
    if not done.ok:
        raise StoreError(f"the repository was not pruned: {done.reason}")
    _print(done.out.strip())
    return 0


def _report(args: argparse.Namespace) -> int:
    report(
        load_plan(args.plan),
        memory=args.memory,
        metrics=args.metrics,
        outbox=Outbox(args.outbox),
        now=time.time(),
        write=_print,
    )
    return 0


def _status(args: argparse.Namespace) -> int:
    plan = load_plan(args.plan)
    state = read_state(plan, since=time.time())
    if args.json:
        print(json.dumps(_as_json(state), indent=2))
        return 0
    table = Table("repository", "last success", "last try", "size", "failed")
    for name, record in state.runs.items():
        size = "" if record.size_bytes is None else f"{record.size_bytes / 2**20:,.0f} MiB"
        failed = "; ".join(f"{step}: {reason}" for step, reason in record.failed.items())
        table.add_row(name, _moment(record.last_success), _moment(record.started_at or None), size, failed)
    console = Console()
    console.print(table)
    if state.drill is not None:
        result = f"failed: {state.drill.failed}" if state.drill.failed else "passed" if state.drill.ended_at else ""
        console.print(f"restore drill: last success {_moment(state.drill.last_success)} {result}", markup=False)
    if state.pool is not None:
        console.print(f"pool {state.pool}: {state.pool_state}", markup=False)
    return 0


def _as_json(state: BackupState) -> dict[str, object]:
    return {
        "repositories": {name: record.model_dump() for name, record in state.runs.items()},
        "drill": None if state.drill is None else state.drill.model_dump(),
        "pool": None if state.pool is None else {"name": state.pool, "state": state.pool_state},
    }


def _moment(seconds: float | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
