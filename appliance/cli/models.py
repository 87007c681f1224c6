"""``appliance models``: loaded models of a running gateway, and weights on disk."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from appliance.cli._args import add_config, add_json, duration
from appliance.cli._weights import add_weights
from appliance.contract.load import load
from appliance.gateway import control_client
from appliance.render.terminal import Console


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance models``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    status = actions.add_parser("status", help="show what the running gateway has loaded and what waits")
    add_json(status)
    add_config(status)
    status.set_defaults(run=_status)
    swap = actions.add_parser("swap", help="load a model now; running requests finish first")
    swap.add_argument("model", metavar="MODEL", help="model, or a role of it")
    add_config(swap)
    swap.set_defaults(run=_swap)
    drain = actions.add_parser("drain", help="send no new requests to one replica; running ones finish")
    drain.add_argument(
        "--reason",
        default="closed by an operator",
        metavar="TEXT",
        help="clients see it if no other replica serves the model (default: %(default)s)",
    )
    drain.set_defaults(run=_drain)
    undrain = actions.add_parser("undrain", help="send requests to a drained replica again")
    undrain.set_defaults(run=_undrain)
    for one in (drain, undrain):
        one.add_argument("replica", metavar="REPLICA", help="a replica as `appliance models status` names it")
        add_config(one)
    pause = actions.add_parser("pause", help="reject all new requests with a reason; running ones finish")
    pause.add_argument(
        "--reason",
        default="maintenance",
        metavar="TEXT",
        help="the reason that clients get (default: %(default)s)",
    )
    pause.add_argument(
        "--retry-after",
        default="60s",
        metavar="TIME",
        help="when clients may retry, such as 90s or 10m (default: 60s)",
    )
    add_config(pause)
    pause.set_defaults(run=_pause)
    resume = actions.add_parser("resume", help="accept requests again after a pause")
    add_config(resume)
    resume.set_defaults(run=_resume)
    add_weights(actions)


def _status(args: argparse.Namespace) -> int:
    found = control_client.status(load(args.config).data_path(Path.cwd()))
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    table = Table("engine", "model", "state", "running", "waiting for it", "reason")
    on_demand = found["on_demand"]
    for name, one in found["engines"].items():
        own = on_demand.get(name.partition(".")[0], {})
        state = own.get("state") if one["state"] == "not loaded" else one["state"]
        if one["draining"] is not None:
            state = f"{state or one['state']}, draining"
        waiting = found["models"][one["model"]]["waiting"]
        table.add_row(
            name,
            one["model"],
            state or one["state"],
            f"{one['in_flight']} of {one['slots']}",
            str(waiting or ""),
            escape("; ".join(filter(None, (one["draining"], own.get("error") or one["why"])))),
        )
    console = Console()
    console.print(table)
    if found["paused"] is not None:
        line = f"paused: {found['paused']}; {found['in_flight']} requests still run"
        console.print(line, style="bold yellow", markup=False)
    return 0


def _swap(args: argparse.Namespace) -> int:
    accepted = control_client.swap(load(args.config).data_path(Path.cwd()), args.model)
    print(f"the gateway loads {accepted['model']}; `appliance models status` shows the progress")
    return 0


def _drain(args: argparse.Namespace) -> int:
    found = control_client.drain(load(args.config).data_path(Path.cwd()), args.replica, args.reason)
    print(f"{args.replica} gets no new requests; {found['in_flight']} still run")
    if not found["saved"]:
        print("warning: a restart of the gateway ends this drain: its log has the reason", file=sys.stderr)
    return 0


def _undrain(args: argparse.Namespace) -> int:
    found = control_client.undrain(load(args.config).data_path(Path.cwd()), args.replica)
    print(f"{args.replica} gets requests again")
    if not found["saved"]:
        print("warning: a restart of the gateway drains it again: its log has the reason", file=sys.stderr)
    return 0


def _pause(args: argparse.Namespace) -> int:
    retry_after_s = duration(args.retry_after, "--retry-after")
    found = control_client.pause(load(args.config).data_path(Path.cwd()), args.reason, retry_after_s)
    print(f"the gateway rejects new requests; {found['in_flight']} still run")
    return 0


def _resume(args: argparse.Namespace) -> int:
    control_client.resume(load(args.config).data_path(Path.cwd()))
    print("the gateway accepts requests")
    return 0
