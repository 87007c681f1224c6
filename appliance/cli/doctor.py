"""The command line of the doctor."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from appliance.cli._args import add_config, add_json
from appliance.cli.gpu_watch import watch_config
from appliance.contract.load import load
from appliance.contract.machine import Machine, load_machine
from appliance.contract.model import Site
from appliance.doctor.checklist import as_report, run_checklist
from appliance.doctor.context import CheckContext
from appliance.doctor.host import HostReader
from appliance.doctor.render import as_json, checklist_table, show, show_checklist, show_list
from appliance.doctor.runner import CHECKS, examine
from appliance.errors import UsageError
from appliance.render.terminal import Console
from appliance.watch.gpu.heat_drill import run_heat_drill

DEFAULT_MACHINE = "/etc/appliance/machine.json"

SERVING_UNITS = ("appliance-gateway", "appliance-engine-")

EPILOG = """exit code, by the worst result: 0 ok, 3 a warning, 4 a check that could not run, 1 a failure.
Exit code 2: the command line or the configuration is not valid. See docs/doctor.md."""


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance doctor``."""
    parser.epilog = EPILOG
    add_json(parser)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="run only this check; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="list the checks, and which apply to this host")
    parser.add_argument(
        "--checklist", action="store_true", help="print the operator's ten points, each ok or with its fix"
    )
    parser.add_argument("--hashes", action="store_true", help="hash every model file; minutes per 100 GiB")
    default = os.environ.get("APPLIANCE_MACHINE", DEFAULT_MACHINE)
    parser.add_argument(
        "--machine", type=Path, metavar="FILE", help=f"description of this machine ({default} if it exists)"
    )
    parser.add_argument(
        "--host", metavar="NAME", help="name of this host in the site; default: the machine's own name"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="read /proc, /sys and /var under DIR (for tests)",
    )
    add_config(parser)
    parser.set_defaults(run=_run, default_machine=Path(default), default_config=parser.get_default("config"))


def _run(args: argparse.Namespace) -> int:
    machine = _machine(args)
    site = load(args.config) if _has_site(args, machine) else None
    context = CheckContext(HostReader(args.root), site, machine, Path.cwd(), time.time(), args.hashes, args.host)
    # A long command must stay on one line, because people copy it from a log.
    console = Console(highlight=False, soft_wrap=False)
    if args.list:
        show_list(((check.name, check.looks, check.why_skipped(context)) for check in CHECKS), console)
        return 0
    if args.checklist:
        return _checklist(context, args, console)
    report = examine(context, args.only)
    if args.json:
        print(as_json(report))
    else:
        show(report, console)
    return report.exit_code


def _checklist(context: CheckContext, args: argparse.Namespace, console: Console) -> int:
    if args.only:
        raise UsageError("--checklist prints all ten points: leave --only out")
    points = run_checklist(context, _drill)
    if args.json:
        print(json.dumps(checklist_table(context.name, points), indent=2, ensure_ascii=False))
    else:
        show_checklist(context.name, points, console)
    return as_report(context.name, points).exit_code


def _drill(site: Site, host: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    # Fans are an option of the unit, not of the site: the drill requires power limits and drained replicas.
    drill = run_heat_drill(watch_config(site, host, act=False, fans=False, cold_cycle=False))
    return drill.failed, drill.steps


def _machine(args: argparse.Namespace) -> Machine | None:
    """Return the machine of ``--machine``, or the host's own if ``--config`` is the host's own as well."""
    if args.machine is not None:
        return load_machine(args.machine)
    if args.config == args.default_config and args.default_machine.exists():
        return load_machine(args.default_machine)
    return None


def _has_site(args: argparse.Namespace, machine: Machine | None) -> bool:
    """Return whether a site must exist: the user names one, or the machine runs a gateway or an engine."""
    named = args.config != args.default_config or args.config.exists()
    serves = machine is not None and any(unit.startswith(SERVING_UNITS) for unit in machine.units)
    return machine is None or named or serves
