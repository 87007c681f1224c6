"""``appliance chats``: the conversations of users, for the operator.

The commands read and write the database of the assistant directly, so they also work while it does not run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from appliance.assistant.api.conversations import export_object, listed_object
from appliance.assistant.main import open_chats
from appliance.assistant.store.conversations import ConversationStore
from appliance.assistant.store.items import message_text
from appliance.cli._args import add_config, add_json
from appliance.contract.load import load
from appliance.errors import UsageError
from appliance.render.terminal import Console

SHOWN = 2000
"""Characters of one message that `show` prints."""


def add_chats(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance chats``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the conversations of a user, or the users that have any")
    listing.add_argument("--user", metavar="USER", help="USER or USER/END-USER; default: the sums of all users")
    listing.add_argument("--query", metavar="WORDS", default="", help="only conversations with all these words")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="at most N, newest first (%(default)s)")
    listing.set_defaults(run=_list)
    show = actions.add_parser("show", help="print the messages of a conversation")
    show.set_defaults(run=_show)
    export = actions.add_parser("export", help="print a whole conversation as JSON")
    export.add_argument("--output", type=Path, metavar="FILE", help="write it to FILE instead")
    export.set_defaults(run=_export)
    delete = actions.add_parser("delete", help="delete a conversation from chats, search and memory")
    delete.add_argument("--yes", metavar="ID", help="the id again: deletes without a prompt")
    delete.set_defaults(run=_delete)
    for one in (show, export, delete):
        one.add_argument("id", metavar="ID", help="id of the conversation")
        one.add_argument("--user", metavar="USER", required=True, help="its owner: USER or USER/END-USER")
    for one in (listing, show, delete):
        add_json(one)
    for one in (listing, show, export, delete):
        add_config(one)


def _list(args: argparse.Namespace) -> int:
    if args.limit < 1:
        raise UsageError(f"--limit: {args.limit} is less than 1; write a number of conversations")
    if args.user is None and args.query:
        raise UsageError("--query searches the conversations of one user; add --user USER")
    with open_chats(load(args.config), Path.cwd()) as store:
        return _list_users(store, args) if args.user is None else _list_conversations(store, args)


def _list_users(store: ConversationStore, args: argparse.Namespace) -> int:
    rows = store.tenants()[: args.limit]
    if args.json:
        print(
            json.dumps(
                [
                    {"user": row.tenant, "conversations": row.conversations, "updated_at": int(row.updated_at)}
                    for row in rows
                ],
                indent=2,
            )
        )
        return 0
    table = Table("user", "conversations", "last turn")
    for row in rows:
        table.add_row(escape(row.tenant), str(row.conversations), _minute(row.updated_at))
    Console().print(table)
    return 0


def _list_conversations(store: ConversationStore, args: argparse.Namespace) -> int:
    found = store.list(args.user, args.query, limit=args.limit)
    if args.json:
        print(json.dumps([listed_object(one) for one in found.data], indent=2, ensure_ascii=False))
        return 0
    table = Table("id", "title", "created", "last turn", "state")
    for one in found.data:
        state = "open" if one.closed_at is None else "closed"
        title = escape(one.metadata.get("title", ""))
        table.add_row(one.id, title, _minute(one.created_at), _minute(one.updated_at), state)
    Console().print(table)
    if found.has_more:
        print(f"more than {args.limit} conversations; --limit shows more")
    return 0


def _show(args: argparse.Namespace) -> int:
    with open_chats(load(args.config), Path.cwd()) as store:
        found = store.export(args.user, args.id)
    if args.json:
        print(json.dumps(export_object(found), indent=2, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    about = found.conversation
    console.print(f"[bold]{escape(about.metadata.get('title', '') or about.id)}[/]", soft_wrap=True)
    for name, value in sorted(about.metadata.items()):
        if name != "title":
            console.print(f"{escape(name)}: {escape(value)}", soft_wrap=True)
    for item in found.items:
        console.print(f"\n[bold]{escape(str(item.get('role') or item['type']))}[/]")
        console.print(escape(_text(item)), soft_wrap=True)
    return 0


def _text(item: dict[str, Any]) -> str:
    text = message_text(item) or json.dumps(
        {name: value for name, value in item.items() if name not in {"id", "type", "role", "status"}},
        ensure_ascii=False,
    )
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters; `export` prints all)"


def _export(args: argparse.Namespace) -> int:
    with open_chats(load(args.config), Path.cwd()) as store:
        found = export_object(store.export(args.user, args.id))
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if args.output is None:
        print(text)
    else:
        args.output.write_text(f"{text}\n", encoding="utf-8")
    return 0


def _delete(args: argparse.Namespace) -> int:
    site = load(args.config)
    # An unknown id is an error before the prompt.
    with open_chats(site, Path.cwd()) as store:
        title = store.get(args.user, args.id).metadata.get("title", "")
    again = args.yes if args.yes is not None else _typed_id(title, args.id)
    if again != args.id:
        raise UsageError(f"{again[:64]!r} is not the id {args.id}; nothing is deleted")
    with open_chats(site, Path.cwd(), read_only=False) as store:
        sums = store.delete(args.user, args.id)
    removed = {"items": sums.items, "responses": sums.responses, "passages": sums.passages}
    if args.json:
        print(json.dumps({"id": args.id, "deleted": True, **removed}))
    else:
        print(f"{args.id} is deleted: {', '.join(f'{count} {name}' for name, count in removed.items())}")
    return 0


def _typed_id(title: str, identifier: str) -> str:
    print(f"This deletes the conversation {title or identifier!r} for ever. Type its id to confirm:")
    try:
        return input("id: ").strip()
    except EOFError:
        raise UsageError("nothing is deleted without a confirmation; add --yes ID") from None


def _minute(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
