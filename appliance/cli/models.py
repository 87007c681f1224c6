"""``appliance models``: loaded models of a running gateway, and weights on disk."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.table import Table

from appliance.cli._args import add_config, add_json
from appliance.contract.load import load
from appliance.gateway import control_client
from appliance.models import lock
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
    verify = actions.add_parser(
        "verify",
        help="compare weights on disk with models.lock",
        epilog="exit code: 0 all files match, 1 some do not, with one line per file",
    )
    verify.add_argument("--lock", type=Path, required=True, metavar="FILE", help="models.lock")
    verify.set_defaults(run=_verify)
    make = actions.add_parser("lock", help="print the lock of the weights on disk")
    make.set_defaults(run=_lock)
    for one in (verify, make):
        one.add_argument(
            "--store", type=Path, required=True, metavar="DIR", help="cache folder of the model hub (HF_HOME)"
        )


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
    accepted = control_client.swap(load(args.config).data_path(Path.cwd()), args.model)
    print(f"the gateway loads {accepted['model']}; `appliance models status` shows the progress")
    return 0


def _verify(args: argparse.Namespace) -> int:
    entries = lock.read(args.lock)
    faults = list(lock.verify(entries, args.store))
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        print(f"{len(entries)} files of {args.lock} are whole in {args.store}")
    return 1 if faults else 0


def _lock(args: argparse.Namespace) -> int:
    print(lock.HEADER + "\n".join(str(entry) for entry in lock.make(args.store)))
    return 0
