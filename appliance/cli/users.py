"""``appliance users``: users, plans, invites and bills."""

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
from appliance.store.bills import BillReader, bill_csv
from appliance.store.calendar import day_of, moment_of, month_named, month_of
from appliance.store.models import Account
from appliance.store.plans import account_plan, plan_words
from appliance.store.usage import UsageReader
from appliance.store.users import UserStore

MADE_BY = "command line"


def add_users(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance users``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, run: Any, words: str, *, named: bool = True) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=words)
        if named:
            one.add_argument("name", metavar="NAME", help="the user")
        add_config(one)
        one.set_defaults(run=run)
        return one

    create = action("create", _create, "create a user and its first key; the key is not shown again")
    create.add_argument("--plan", help="plan of the user; default: the site's default plan")
    _add_until(create)
    create.add_argument("--note", help="a note, such as a real name")
    create.add_argument("--language", help="language of the user, such as en")
    add_json(action("list", _list, "list users with their plans and used budgets", named=False))
    plan = action("plan", _plan, "give a user a plan; takes effect within a second")
    plan.add_argument("plan", metavar="PLAN", help="a plan of the site, or `default`")
    _add_until(plan)
    action("disable", _disable, "disable a user: its keys are not valid, its running requests end")
    action("enable", _enable, "enable a disabled user")
    invite = action("invite", _invite, "create a code that creates one user; it is not shown again", named=False)
    invite.add_argument("--plan", help="plan of the new user; default: the site's default plan")
    invite.add_argument("--days", type=int, metavar="N", help="length of the plan; default: without an end")
    invite.add_argument("--expires-in", default="30d", metavar="TIME", help="lifetime of the code (%(default)s)")
    redeem = actions.add_parser("redeem", help="create a user by an invite's code, and print its first key")
    redeem.add_argument("code", metavar="CODE", help="the code")
    redeem.add_argument("name", metavar="NAME", help="name of the new user")
    add_config(redeem)
    redeem.set_defaults(run=_redeem)
    bill = action("bill", _bill, "sum the usage of a month by user, model and role", named=False)
    bill.add_argument("--month", metavar="YYYY-MM", help="month in UTC; default: the present one")
    bill.add_argument("--user", metavar="NAME", help="one user; default: all users")
    bill.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="format of the output (%(default)s)"
    )


def _add_until(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--until", metavar="DATE", help="first day without the plan, in UTC; default: the plan has no end"
    )


def _store(site: Site) -> UserStore:
    return UserStore(site.data_path(Path.cwd()), site.gateway.database_url)


def _checked_plan(site: Site, name: str | None) -> str | None:
    """Return the plan ``name``; raises :class:`UsageError` if the site does not have it."""
    if name is not None and name not in site.plans:
        raise UsageError(f"plan {name[:80]!r} does not exist; {suggest(name, list(site.plans))}")
    return name


def _until(args: argparse.Namespace) -> float | None:
    """Return the end of a plan in seconds since the epoch."""
    if args.until is None:
        return None
    found = moment_of(args.until, "--until")
    if found <= time.time():
        raise UsageError(f"--until: {args.until} is not after today; choose a later day")
    return found


def _create(args: argparse.Namespace) -> int:
    site = load(args.config)
    plan, until = _checked_plan(site, args.plan), _until(args)
    print(
        _store(site).create(
            args.name, plan=plan, plan_until=until, note=args.note or "", language=args.language or ""
        )
    )
    return 0


def _plan(args: argparse.Namespace) -> int:
    site = load(args.config)
    plan = None if args.plan == "default" and "default" not in site.plans else _checked_plan(site, args.plan)
    account = _store(site).change(args.name, plan=plan, plan_until=_until(args))
    print(f"{account.name} has {plan_words(site, account, time.time())}")
    return 0


def _disable(args: argparse.Namespace) -> int:
    account = _store(load(args.config)).set_disabled(args.name, disabled=True)
    print(f"{account.name} is disabled")
    return 0


def _enable(args: argparse.Namespace) -> int:
    account = _store(load(args.config)).set_disabled(args.name, disabled=False)
    print(f"{account.name} is enabled")
    return 0


def _invite(args: argparse.Namespace) -> int:
    site = load(args.config)
    plan, expires = _checked_plan(site, args.plan), duration(args.expires_in, "--expires-in")
    print(_store(site).invite(MADE_BY, plan=plan, days=args.days, expires_in_s=expires))
    return 0


def _redeem(args: argparse.Namespace) -> int:
    print(_store(load(args.config)).redeem(args.code, args.name).key)
    return 0


def _list(args: argparse.Namespace) -> int:
    site, now = load(args.config), time.time()
    store = _store(site)
    day = day_of(now)
    month = month_of(day)
    reader = UsageReader(site.data_path(Path.cwd()), site.gateway.database_url)
    today, this_month = reader.tokens(day * 86400, now + 60), reader.tokens(month.since, now + 60)
    accounts = store.all()
    if args.json:
        values = [
            dataclasses.asdict(account)
            | {
                "present_plan": account_plan(site, account, now)[0],
                "tokens_today": today.get(account.name, 0),
                "tokens_this_month": this_month.get(account.name, 0),
            }
            for account in accounts
        ]
        print(json.dumps(values, indent=2))
        return 0
    table = Table("user", "plan", "state", "today", "this month", "note", "created")
    for account in accounts:
        plan = account_plan(site, account, now)[1]
        table.add_row(
            account.name,
            plan_words(site, account, now),
            "active" if account.disabled_at is None else "disabled",
            _used(today.get(account.name, 0), plan.tokens_per_day if plan is not None else None),
            _used(this_month.get(account.name, 0), plan.tokens_per_month if plan is not None else None),
            escape(account.note),
            time.strftime("%Y-%m-%d", time.gmtime(account.created_at)),
        )
    Console().print(table)
    return 0


def _used(tokens: int, limit: int | None) -> str:
    if limit is None:
        return f"{tokens:,}"
    percent = tokens * 100 // limit
    mark = "  used up" if percent >= 100 else "  warning" if percent >= 80 else ""
    return f"{tokens:,} of {limit:,} ({percent} %){mark}"


def _bill(args: argparse.Namespace) -> int:
    site, now = load(args.config), time.time()
    month = month_of(day_of(now)) if args.month is None else month_named(args.month, "--month")
    store = _store(site)
    accounts = {account.name: account for account in store.all()}

    def plan_of(user: str) -> tuple[str, str]:
        name, plan = account_plan(site, accounts.get(user, Account(user)), now)
        return name or "", plan.price if plan is not None else ""

    if args.user is not None and args.user not in accounts:
        raise UsageError(f"user {args.user[:80]!r} does not exist; {suggest(args.user, list(accounts))}")
    lines = BillReader(site.data_path(Path.cwd()), site.gateway.database_url).lines(month, plan_of, args.user)
    if args.format == "csv":
        sys.stdout.write(bill_csv(lines))
        return 0
    if args.format == "json":
        print(json.dumps([dataclasses.asdict(line) for line in lines], indent=2))
        return 0
    table = Table(title=f"Usage of {month.name}", title_justify="left")
    for column in ("user", "plan", "model", "role", "requests", "failed", "prompt", "cached", "completion"):
        table.add_column(column, justify="left" if column in ("user", "plan", "model", "role") else "right")
    for line in lines:
        counts = (line.requests, line.failed, line.prompt_tokens, line.cached_tokens, line.completion_tokens)
        table.add_row(line.user, line.plan, line.model, line.role, *(f"{count:,}" for count in counts))
    Console().print(table)
    return 0
