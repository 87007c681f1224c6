"""``appliance keys`` and ``appliance usage``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from appliance.cli._args import add_config, add_json, duration
from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.contract.violation import suggest
from appliance.errors import UsageError
from appliance.render.terminal import Console
from appliance.store.keys import KeyStore
from appliance.store.models import Key
from appliance.store.usage import BY, UsageReader, as_csv

LIMITS = ("requests_per_minute", "tokens_per_minute", "requests_in_flight")


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance keys``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a key and print it; it is not shown again")
    create.add_argument(
        "user", metavar="USER", help="user: its limits apply, and `appliance usage` counts the requests for it"
    )
    create.set_defaults(run=_create)
    change = actions.add_parser("change", help="change a key's name or limits; `none` removes a limit")
    change.set_defaults(run=_change)
    revoke = actions.add_parser("revoke", help="revoke a key; takes effect within a second")
    revoke.set_defaults(run=_revoke)
    for one in (change, revoke):
        one.add_argument("id", metavar="ID", help="the key's id: the twelve digits after sk-")
    for one in (create, change):
        one.add_argument("--name", help="a label")
        one.add_argument("--models", metavar="A,B", help="models and roles it may use; default: all")
        for limit in LIMITS:
            words = limit.replace("_", " ")
            one.add_argument(f"--{limit.replace('_', '-')}", metavar="N", help=f"{words}, below the user's limit")
        one.add_argument("--weight", metavar="W", help="priority weight in the queue; default: its user's")
        one.add_argument(
            "--end-users",
            action=argparse.BooleanOptionalAction,
            help="count each end user that a request names as a user, for applications that share one key",
        )
        one.add_argument("--expires-in", metavar="TIME", help="lifetime from now, such as 12h or 30d")
    listing = actions.add_parser("list", help="list keys, without their secrets")
    add_json(listing)
    listing.set_defaults(run=_list)
    for one in (create, change, revoke, listing):
        add_config(one)


def add_usage(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance usage``."""
    parser.add_argument("--by", choices=BY, default="user", help="what a row of the result is (%(default)s)")
    parser.add_argument(
        "--user", metavar="NAME", help="one user with its end users, or one user/end-user; default: all users"
    )
    parser.add_argument(
        "--since", default="24h", metavar="TIME", help="start, as time before now such as 90m or 7d (%(default)s)"
    )
    parser.add_argument("--until", metavar="TIME", help="end, as time before now; default: now")
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="format of the output (%(default)s)"
    )
    add_config(parser)
    parser.set_defaults(run=_usage)


def _store(site: Site) -> KeyStore:
    return KeyStore(site.data_path(Path.cwd()), site.gateway.database_url)


def _limits(args: argparse.Namespace, site: Site) -> dict[str, Any]:
    """Return the columns that the command line sets; the word ``none`` removes a limit."""
    found: dict[str, Any] = {}
    if args.name is not None:
        found["name"] = args.name
    if args.models is not None:
        names = None if args.models == "none" else [name for name in args.models.split(",") if name]
        known = sorted(site.models.keys() | site.roles.keys())
        for name in names or ():
            if name not in known:
                raise UsageError(f"--models: model or role {name!r} does not exist; {suggest(name, known)}")
        found["models"] = names
    for limit in LIMITS:
        text = getattr(args, limit)
        if text is not None:
            if text != "none" and not text.isdigit():
                raise UsageError(f"--{limit.replace('_', '-')}: {text!r} is not a whole number; write one, or none")
            found[limit] = None if text == "none" else int(text)
    if args.weight is not None:
        try:
            found["weight"] = None if args.weight == "none" else float(args.weight)
        except ValueError:
            raise UsageError(f"--weight: {args.weight!r} is not a number; write one, or none") from None
    if args.end_users is not None:
        found["end_users"] = args.end_users
    if args.expires_in is not None:
        found["expires_at"] = (
            None if args.expires_in == "none" else time.time() + duration(args.expires_in, "--expires-in")
        )
    return found


def _create(args: argparse.Namespace) -> int:
    site = load(args.config)
    print(_store(site).create(args.user, **_limits(args, site)))
    return 0


def _change(args: argparse.Namespace) -> int:
    site = load(args.config)
    changes = _limits(args, site)
    if not changes:
        raise UsageError(
            "nothing to change; name at least one of --name, --models, a limit, --weight, --end-users, --expires-in"
        )
    key = _store(site).change(args.id, **changes)
    print(f"key {key.id} of {key.user} is changed: {', '.join(sorted(changes))}")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    key = _store(load(args.config)).revoke(args.id)
    print(f"key {key.id} of {key.user} is revoked")
    return 0


def _list(args: argparse.Namespace) -> int:
    now = time.time()
    keys = _store(load(args.config)).all()
    if args.json:
        print(json.dumps([_as_json(key, now) for key in keys], indent=2))
        return 0
    table = Table("id", "user", "name", "state", "models", "limits", "end users", "created", "expires")
    for key in keys:
        table.add_row(
            key.id,
            key.user,
            key.name,
            key.state(now),
            "all" if key.models is None else ", ".join(sorted(key.models)) or "nothing",
            _limit_words(key),
            "each a user" if key.end_users else "",
            _day(key.created_at),
            "" if key.expires_at is None else _day(key.expires_at),
        )
    Console().print(table)
    return 0


def _as_json(key: Key, now: float) -> dict[str, Any]:
    values = dataclasses.asdict(key)
    del values["digest"]
    return values | {"state": key.state(now), "models": None if key.models is None else sorted(key.models)}


def _limit_words(key: Key) -> str:
    words = [
        f"{value:g} {what}"
        for value, what in (
            (key.requests_per_minute, "req/min"),
            (key.tokens_per_minute, "tok/min"),
            (key.requests_in_flight, "in flight"),
            (key.weight, "weight"),
        )
        if value is not None
    ]
    return ", ".join(words)


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def _usage(args: argparse.Namespace) -> int:
    site = load(args.config)
    now = time.time()
    since = now - duration(args.since, "--since")
    until = None if args.until is None else now - duration(args.until, "--until")
    if until is not None and until <= since:
        raise UsageError(f"--until {args.until} is before --since {args.since}; choose an end after the start")
    lines = UsageReader(site.data_path(Path.cwd()), site.gateway.database_url).sums(
        args.by, since, until, args.user
    )
    if args.format == "csv":
        sys.stdout.write(as_csv(lines))
        return 0
    if args.format == "json":
        print(json.dumps([dataclasses.asdict(line) for line in lines], indent=2))
        return 0
    of = "" if args.user is None else f" of {escape(args.user)}"
    table = Table(title=f"Usage{of} by {args.by}, last {args.since}", title_justify="left")
    for column in (args.by, "requests", "failed", "prompt", "cached", "answer", "queued", "TTFT p50", "p95"):
        table.add_column(column, justify="left" if column == args.by else "right")
    for line in lines:
        cached = f"{line.cached_tokens / line.prompt_tokens:.0%}" if line.prompt_tokens else ""
        table.add_row(
            line.name or "-",
            f"{line.requests:,}",
            f"{line.failed:,}" if line.failed else "",
            f"{line.prompt_tokens:,}",
            cached,
            f"{line.completion_tokens:,}",
            _ms(line.queue_ms_mean),
            _ms(line.ttft_ms_p50),
            _ms(line.ttft_ms_p95),
        )
    console = Console()
    console.print(table)
    if estimated := sum(line.estimated for line in lines):
        console.print(f"{estimated:,} requests are estimated: they ended before the engine reported their tokens")
    return 0


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"
