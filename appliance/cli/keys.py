"""``appliance keys``, ``usage``, ``admin`` and ``models status|swap``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.markup import escape
from rich.table import Table

from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.contract.rules import suggest
from appliance.errors import UsageError
from appliance.render.terminal import Console
from appliance.store.models import Key

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.store.keys import KeyStore

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse gives it no other name

LIMITS = ("requests_per_minute", "tokens_per_minute", "requests_in_flight")
BY = ("user", "key", "model", "role", "engine", "outcome", "day")


def add_keys(commands: Commands, config: Callable[[argparse.ArgumentParser], None]) -> None:
    """``appliance keys``."""
    keys = commands.add_parser("keys", help="API keys")
    actions = keys.add_subparsers(metavar="action", required=True)
    create = actions.add_parser("create", help="make a key and print it, once")
    create.add_argument("user")
    create.set_defaults(run=_create)
    change = actions.add_parser("change", help="change a key's name or limits; `none` takes one away")
    change.add_argument("id", help="the key's id, the twelve digits after sk-")
    change.set_defaults(run=_change)
    for one in (create, change):
        one.add_argument("--name", help="a label")
        one.add_argument("--models", metavar="A,B", help="models and roles it may ask for; all when absent")
        for limit in LIMITS:
            one.add_argument(f"--{limit.replace('_', '-')}", metavar="N", help="narrows its user's limit")
        one.add_argument("--weight", metavar="W", help="priority weight in the queue; its user's when absent")
        one.add_argument(
            "--end-users",
            action=argparse.BooleanOptionalAction,
            help="each end user that a request names counts as a user, for applications that share one key",
        )
        one.add_argument("--expires-in", metavar="30d", help="lifetime from now: a number and s, m, h or d")
    revoke = actions.add_parser("revoke", help="make a key useless, within a second")
    revoke.add_argument("id", help="the key's id, the twelve digits after sk-")
    revoke.set_defaults(run=_revoke)
    listing = actions.add_parser("list", help="show keys, never their secrets")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_list)
    for one in (create, change, revoke, listing):
        config(one)


def add_usage(commands: Commands, config: Callable[[argparse.ArgumentParser], None]) -> None:
    """``appliance usage`` and ``appliance admin``."""
    usage = commands.add_parser("usage", help="who used what: requests, tokens, waiting, TTFT")
    usage.add_argument("--by", choices=BY, default="user")
    usage.add_argument(
        "--user", metavar="NAME", help="one user with its end users, or one user/end-user; everyone when absent"
    )
    usage.add_argument("--since", default="24h", metavar="24h", help="from how long ago: a number and s, m, h or d")
    usage.add_argument("--until", metavar="1h", help="up to how long ago; now when absent")
    usage.add_argument("--format", choices=("table", "csv", "json"), default="table")
    usage.set_defaults(run=_usage)
    config(usage)
    admin = commands.add_parser("admin", help="run the admin API")
    admin.set_defaults(run=_admin)
    config(admin)


def add_models(actions: Commands, config: Callable[[argparse.ArgumentParser], None]) -> None:
    """``appliance models status`` and ``swap``."""
    status = actions.add_parser("status", help="what the running gateway has loaded, and what waits")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)
    swap = actions.add_parser("swap", help="load a model, or that of a role, now; what runs is finished first")
    swap.add_argument("model", help="a model, or a role of it")
    swap.set_defaults(run=_swap)
    config(status)
    config(swap)


def seconds(text: str) -> float:
    """``30d`` as seconds; raises :class:`UsageError`."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    if unit is None or not text[:-1].isdigit() or len(text) > 7:
        raise UsageError(f"{text!r} is no duration; write a number and s, m, h or d, such as 30d")
    return int(text[:-1]) * unit


def _store(site: Site) -> KeyStore:
    from appliance.store.keys import KeyStore  # noqa: PLC0415 - `appliance check` in a Nix build needs no database

    return KeyStore(site.data_path(Path.cwd()), site.gateway.database_url)


def _limits(args: argparse.Namespace, site: Site) -> dict[str, Any]:
    """What the command line sets; ``none`` takes a limit away."""
    found: dict[str, Any] = {}
    if args.name is not None:
        found["name"] = args.name
    if args.models is not None:
        names = None if args.models == "none" else [name for name in args.models.split(",") if name]
        known = sorted(site.models.keys() | site.roles.keys())
        for name in names or ():
            if name not in known:
                raise UsageError(f"--models: there is no model or role {name!r}; {suggest(name, known)}")
        found["models"] = names
    for limit in LIMITS:
        text = getattr(args, limit)
        if text is not None:
            if text != "none" and not text.isdigit():
                raise UsageError(f"--{limit.replace('_', '-')}: {text!r} is no whole number; write one, or none")
            found[limit] = None if text == "none" else int(text)
    if args.weight is not None:
        try:
            found["weight"] = None if args.weight == "none" else float(args.weight)
        except ValueError:
            raise UsageError(f"--weight: {args.weight!r} is no number; write one, or none") from None
    if args.end_users is not None:
        found["end_users"] = args.end_users
    if args.expires_in is not None:
        found["expires_at"] = None if args.expires_in == "none" else time.time() + seconds(args.expires_in)
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
    table = Table("id", "user", "name", "state", "may use", "limits", "end users", "created", "expires")
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
    from appliance.store.usage import UsageReader, as_csv  # noqa: PLC0415

    site = load(args.config)
    now = time.time()
    since = now - seconds(args.since)
    until = None if args.until is None else now - seconds(args.until)
    if until is not None and until <= since:
        raise UsageError(f"--until {args.until} is before --since {args.since}; nothing lies between")
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
        console.print(
            f"{estimated:,} requests are estimated: they were cut off before the engine told their tokens"
        )
    return 0


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"


def _admin(args: argparse.Namespace) -> int:
    from appliance.admin.serve import serve  # noqa: PLC0415

    return serve(load(args.config), Path.cwd())


def _status(args: argparse.Namespace) -> int:
    from appliance.admin import control_client  # noqa: PLC0415

    found = control_client.status(load(args.config).data_path(Path.cwd()))
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    table = Table("engine", "model", "is", "running", "waiting for it", "why")
    on_demand = found["on_demand"]
    for name, one in found["engines"].items():
        own = on_demand.get(name.partition(".")[0], {})
        state = own.get("state") if one["state"] == "not loaded" else one["state"]
        waiting = found["models"][one["model"]]["waiting"]
        table.add_row(
            name,
            one["model"],
            state or one["state"],
            f"{one['in_flight']} of {one['slots']}",
            str(waiting or ""),
            own.get("error") or one["why"],
        )
    Console().print(table)
    return 0


def _swap(args: argparse.Namespace) -> int:
    from appliance.admin import control_client  # noqa: PLC0415

    accepted = control_client.swap(load(args.config).data_path(Path.cwd()), args.model)
    print(f"{accepted['model']} is asked for; `appliance models status` shows how it gets on")
    return 0
