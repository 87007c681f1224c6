"""``appliance telegram``: the bot, and the links between persons at Telegram and users.

The commands for links open the bot's database directly, also while the bot runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from appliance.cli._args import add_config, add_json
from appliance.contract.load import load
from appliance.contract.model import Site, Telegram
from appliance.errors import RequestError, StoreError, UsageError
from appliance.render.terminal import Console
from appliance.store.keys import KeyStore
from appliance.telegram.acting import ActingGateway
from appliance.telegram.settings import telegram_of
from appliance.telegram.store.database import BotDatabase
from appliance.telegram.store.links import CODE_LIFE_S, LinkStore, PersonLink
from appliance.telegram.store.payments import PaymentStore


def add_telegram(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance telegram``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    serve = actions.add_parser("serve", help="run the bot; the unit appliance-telegram runs it")
    serve.add_argument("--metrics", type=Path, metavar="FILE", help="file for node_exporter's textfile collector")
    serve.set_defaults(run=_serve)
    link = actions.add_parser("link", help="make a one-time code that links a person at Telegram to a user")
    link.add_argument("user", metavar="USER", help="user of the key, or USER/END-USER of a key with end users")
    link.add_argument(
        "--key", metavar="ID", help="the key in whose name the bot acts; default: the user's only valid key"
    )
    link.set_defaults(run=_link)
    listing = actions.add_parser("list", help="list the links")
    add_json(listing)
    listing.set_defaults(run=_list)
    unlink = actions.add_parser("unlink", help="remove all links of a user")
    unlink.add_argument("user", metavar="USER", help="USER or USER/END-USER")
    unlink.set_defaults(run=_unlink)
    paid = actions.add_parser("payments", help="list the payments with Telegram Stars, newest first")
    add_json(paid)
    paid.set_defaults(run=_payments)
    refund = actions.add_parser("refund", help="return the Stars of a payment; its days leave the plan")
    refund.add_argument("charge", metavar="CHARGE", help="Telegram's id of the payment")
    refund.set_defaults(run=_refund)
    for one in (serve, link, listing, unlink, paid, refund):
        add_config(one)


def _serve(args: argparse.Namespace) -> int:
    # The library of the Bot API takes seconds to load, and only the bot needs it.
    from appliance.telegram.main import serve  # noqa: PLC0415

    return serve(load(args.config), Path.cwd(), args.metrics)


def _link(args: argparse.Namespace) -> int:
    site = load(args.config)
    settings = telegram_of(site)
    key_id = args.key or _only_key(site, args.user)
    asyncio.run(_verify(settings, args.user, key_id))
    database = BotDatabase(settings.data_path(Path.cwd()))
    try:
        links = LinkStore(database)
        code, name = links.make_code(args.user, key_id, time.time()), links.bot_name()
    finally:
        database.close()
    if name:
        print(f"https://t.me/{name}?start={code}")
    print(f"/start {code}")
    print(f"The code is valid for {CODE_LIFE_S / 60:.0f} minutes, for one person; it is not shown again.")
    return 0


def _only_key(site: Site, user: str) -> str:
    """Return the id of the only valid key of ``user``."""
    try:
        store = KeyStore(site.data_path(Path.cwd()), site.gateway.database_url)
    except StoreError:
        raise UsageError(
            "this account cannot read the keys; `appliance-keys list` shows them: add --key ID"
        ) from None
    try:
        account, now = user.partition("/")[0], time.time()
        found = [key.id for key in store.all() if key.user == account and key.state(now) == "active"]
    finally:
        store.close()
    if not found:
        raise UsageError(f"{account} has no valid key; `appliance keys create {account}` makes one")
    if len(found) > 1:
        raise UsageError(f"{account} has several keys: {', '.join(found)}; choose one with --key ID")
    return found[0]


async def _verify(settings: Telegram, user: str, key_id: str) -> None:
    """Raise :class:`UsageError` unless the gateway accepts the key for the user."""
    gateway = ActingGateway(settings.acting_path(Path.cwd()))
    try:
        await gateway.models(PersonLink(0, user, key_id, 0.0))
    except RequestError as error:
        raise UsageError(f"the gateway does not accept key {key_id} for {user}: {error}") from None
    finally:
        await gateway.close()


def _list(args: argparse.Namespace) -> int:
    settings = telegram_of(load(args.config))
    database = BotDatabase(settings.data_path(Path.cwd()))
    try:
        links = LinkStore(database).all()
    finally:
        database.close()
    if args.json:
        fields = ("person", "user", "key_id", "linked_at")
        print(json.dumps([{name: getattr(one, name) for name in fields} for one in links], indent=2))
        return 0
    table = Table("user", "key", "person at Telegram", "linked")
    for one in links:
        linked = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.linked_at))
        table.add_row(escape(one.user), one.key_id, str(one.person), linked)
    Console().print(table)
    return 0


def _unlink(args: argparse.Namespace) -> int:
    settings = telegram_of(load(args.config))
    database = BotDatabase(settings.data_path(Path.cwd()))
    try:
        removed = LinkStore(database).unlink(user=args.user)
    finally:
        database.close()
    print(f"{removed} links of {args.user} are removed")
    return 0


def _payments(args: argparse.Namespace) -> int:
    database = BotDatabase(telegram_of(load(args.config)).data_path(Path.cwd()))
    try:
        found = PaymentStore(database).all()
    finally:
        database.close()
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return 0
    table = Table("charge", "user", "plan", "Stars", "paid", "state")
    for one in found:
        paid = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.paid_at))
        table.add_row(one.charge, escape(one.user or ""), one.plan or "", str(one.stars), paid, one.state)
    Console().print(table)
    return 0


def _refund(args: argparse.Namespace) -> int:
    # As for `serve`: only this needs the library of the Bot API.
    from appliance.telegram.main import run_refund  # noqa: PLC0415

    payment = run_refund(load(args.config), Path.cwd(), args.charge)
    print(f"{payment.stars} Stars of {payment.user or payment.person} are returned")
    return 0
