"""``appliance notify``: the service that sends notices, its state, a message by hand and a test message."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from appliance.cli._args import add_json
from appliance.errors import ConfigError, StartError, UsageError
from appliance.notices.notice import Notice
from appliance.notices.outbox import FOLDER, Outbox
from appliance.system import files
from appliance.watch import notify
from appliance.watch.courier import REFUSED, SENDING
from appliance.watch.delivery import WaitingNotice, compose
from appliance.watch.telegram_bot import API, Sent, TelegramBot, Uncertain, read_token

SETTINGS = Path("/etc/appliance/notify.json")
"""The settings of this machine, which NixOS renders: defaults of the options."""


def add_notify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance notify``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    settings = _machine_settings()

    serve = actions.add_parser("serve", help="send notices until it is stopped; the unit appliance-notify runs it")
    serve.set_defaults(run=_serve, long_run=True)
    _add_outbox(serve, settings)
    _add_bot(serve, settings)
    serve.add_argument("--port", type=int, default=0, metavar="N", help="port of the webhook on 127.0.0.1; 0: none")
    serve.add_argument(
        "--digest-hour", type=int, default=8, metavar="HOUR", help="local hour of the digest (%(default)s)"
    )
    serve.add_argument("--metrics", type=Path, metavar="FILE", help="write metrics for node_exporter")
    serve.add_argument("--status", type=Path, metavar="FILE", help="write the state for the doctor")

    test = actions.add_parser("test", help="send a test message now and print the result")
    test.set_defaults(run=_test)
    _add_bot(test, settings)

    send = actions.add_parser("send", help="put a message into the outbox")
    send.set_defaults(run=_send)
    send.add_argument("text", metavar="TEXT", help="the message")
    send.add_argument(
        "--kind", default="operator", help="its kind, which decides between page and digest (%(default)s)"
    )
    send.add_argument("--subject", default="", help="the part that it concerns, such as `card 1`")
    send.add_argument("--page", action="store_true", help="send it at once, whatever its kind")
    send.add_argument("--ended", action="store_true", help="it reports the end of a state")
    _add_outbox(send, settings)

    status = actions.add_parser("status", help="show the waiting and the refused notices")
    status.set_defaults(run=_status)
    _add_outbox(status, settings)
    status.add_argument(
        "--status", type=Path, default=notify.STATUS, metavar="FILE", help="state of the service (%(default)s)"
    )
    add_json(status)


def _machine_settings() -> dict[str, Any]:
    """Return the settings of this machine, empty if there are none."""
    raw = files.read(SETTINGS) if os.access(SETTINGS, os.R_OK) else None
    try:
        found = json.loads(raw) if raw else {}
    except ValueError as error:
        raise ConfigError(f"{SETTINGS}: is not JSON ({error}); `nixos-rebuild switch` renders it anew") from None
    return found if isinstance(found, dict) else {}


def _add_outbox(parser: argparse.ArgumentParser, settings: dict[str, Any]) -> None:
    parser.add_argument(
        "--outbox",
        type=Path,
        default=Path(settings.get("outbox", FOLDER)),
        metavar="DIR",
        help="folder of the notices (%(default)s)",
    )


def _add_bot(parser: argparse.ArgumentParser, settings: dict[str, Any]) -> None:
    for name, text in (
        ("token_file", "file with the bot's token"),
        ("chat", "id of the chat"),
        ("host", "name of this machine in each message"),
    ):
        value = settings.get(name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", default=value, required=value is None, metavar="VALUE", help=text
        )
    parser.add_argument(
        "--api", default=settings.get("api", API), metavar="URL", help="address of the Bot API (%(default)s)"
    )


def _serve(args: argparse.Namespace) -> int:
    if not 0 <= args.digest_hour <= 23:
        raise UsageError(f"--digest-hour {args.digest_hour}: is not an hour; use 0 to 23")
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port {args.port}: is not a port; use 1 to 65535, or 0 for no webhook")
    settings = notify.NotifySettings(
        outbox=args.outbox,
        token_file=Path(args.token_file),
        chat=args.chat,
        host=args.host,
        api=args.api,
        port=args.port,
        digest_hour=args.digest_hour,
        metrics=args.metrics,
        status=args.status,
    )
    return notify.serve(settings, read_token(settings.token_file))


def _test(args: argparse.Namespace) -> int:
    bot = TelegramBot(read_token(Path(args.token_file)), args.chat, api=args.api)
    notice = Notice(kind="test", subject="", text="This is a test message: the notices arrive.", at=time.time())
    outcome = bot.send(compose([WaitingNotice("", notice)], host=args.host).text)
    if isinstance(outcome, Sent):
        print("the test message was accepted; look into the chat")
        return 0
    uncertain = ", it may have arrived" if isinstance(outcome, Uncertain) else ""
    raise StartError(f"the test message was not accepted{uncertain}: {outcome.reason}")


def _send(args: argparse.Namespace) -> int:
    notice = Notice(
        kind=args.kind, subject=args.subject, text=args.text, at=time.time(), ended=args.ended, page=args.page
    )
    Outbox(args.outbox).put(notice)
    print(f"it {'is sent at once' if notice.pages else 'waits for the daily digest'}")
    return 0


def _status(args: argparse.Namespace) -> int:
    waiting = _notices(args.outbox)
    sending = _notices(args.outbox / SENDING)
    refused = _notices(args.outbox / REFUSED)
    raw = files.read(args.status)
    state = msgspec.json.decode(raw) if raw else None
    if args.json:
        shown = {"service": state, "waiting": waiting, "sending": sending, "refused": refused}
        print(json.dumps(shown, indent=2))
        return 0
    problem = (state or {}).get("problem") or "none"
    print(f"service: {'stopped' if state is None else f'runs; last problem: {problem}'}")
    for title, found in (("waiting", waiting), ("uncertain", sending), ("refused", refused)):
        print(f"{title}: {len(found)}")
        for one in found:
            page = "page" if one.get("pages") else "digest"
            reason = f" ({one['reason']})" if "reason" in one else ""
            print(f"  {one['kind']}, {one['subject'] or '-'}, {page}: {one['text']!r}{reason}")
    return 0


def _notices(folder: Path) -> list[dict[str, Any]]:
    """Return the notices in ``folder`` for people, oldest first."""
    found = []
    for file in Outbox(folder).waiting():
        raw = files.read(file)
        if raw is None:
            continue
        reason = files.read(file.with_suffix(".reason"))
        try:
            notice = msgspec.json.decode(raw, type=Notice)
        except msgspec.DecodeError as error:
            notice = Notice(kind="not-a-notice", subject=file.name, text=str(error), at=0.0)
        entry = msgspec.to_builtins(notice) | {"pages": notice.pages}
        found.append(entry | ({"reason": reason.decode().strip()} if reason else {}))
    return found
