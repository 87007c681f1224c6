"""``appliance memory``: the stores of the memory, and their vectors after a change of the embedder."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from functools import partial
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from appliance.assistant.main import open_context
from appliance.assistant.memory.reindex import StoreSummary, read_summaries, reindex
from appliance.assistant.store.ended_chats import count_waiting
from appliance.cli._args import add_config, add_json
from appliance.contract.load import load
from appliance.errors import UsageError
from appliance.render.terminal import Console


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance memory``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    status = actions.add_parser("status", help="list the stores with their passages and embedders")
    add_json(status)
    status.set_defaults(run=_status)
    again = actions.add_parser("reindex", help="embed stores again, after a change of the embedder; resumable")
    again.add_argument("store", metavar="STORE", nargs="?", help="id of a store; default: all")
    again.set_defaults(run=_reindex)
    for one in (status, again):
        add_config(one)


def _status(args: argparse.Namespace) -> int:
    context = open_context(load(args.config), Path.cwd())
    try:
        with context.database.reading() as connection:
            stores = read_summaries(connection)
            waiting = count_waiting(connection, time.time(), context.settings.idle_s)
    finally:
        context.database.close()
    if args.json:
        print(json.dumps({"stores": [dataclasses.asdict(one) for one in stores], "waiting_conversations": waiting}))
        return 0
    table = Table("store", "user", "kind", "name", "passages", "embedder")
    for one in stores:
        model = "words only" if one.fingerprint is None else json.loads(one.fingerprint)["model"]
        table.add_row(*map(escape, (one.id, one.tenant, one.kind, one.name, str(one.passages), model)))
    Console().print(table)
    print(f"{waiting} ended conversations wait for the memory")
    return 0


def _reindex(args: argparse.Namespace) -> int:
    return asyncio.run(_reindex_stores(args))


async def _reindex_stores(args: argparse.Namespace) -> int:
    context = await asyncio.to_thread(open_context, load(args.config), Path.cwd())
    try:
        with context.database.reading() as connection:
            stores = read_summaries(connection)
        chosen = [one for one in stores if args.store in (None, one.id)]
        if not chosen and args.store is not None:
            raise UsageError(f"there is no store {args.store!r}; `appliance memory status` lists them")
        for one in chosen:
            done = await reindex(context, one, progress=partial(_progress, one))
            print(f"{one.id}: {done} passages embedded")
    finally:
        await context.inference.close()
        context.database.close()
    return 0


def _progress(store: StoreSummary, done: int, total: int) -> None:
    print(f"{store.id}: {done} of {total}", file=sys.stderr, flush=True)
