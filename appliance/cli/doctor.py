"""The command line of the doctor."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.contract.load import load
from appliance.contract.machine import Machine, load_machine
from appliance.render.terminal import Console

if TYPE_CHECKING:
    from appliance.cli import Commands

DEFAULT_MACHINE = "/etc/appliance/machine.json"

SERVING_UNITS = ("appliance-gateway", "appliance-engine-")

EPILOG = """exit code, by the worst result: 0 all is ok, 3 a warning, 4 something could not be looked at,
1 a failure; 2 a wrong command line or configuration. See docs/doctor.md."""


def add_doctor(commands: Commands, config_option: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add ``doctor`` to the commands."""
    doctor = commands.add_parser(
        "doctor", help="is this host what its configuration says? read-only", epilog=EPILOG
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="make only this check; repeatable"
    )
    doctor.add_argument("--list", action="store_true", help="print the checks, and which concern this host")
    doctor.add_argument("--hashes", action="store_true", help="hash every model file; minutes per 100 GiB")
    default = os.environ.get("APPLIANCE_MACHINE", DEFAULT_MACHINE)
    doctor.add_argument(
        "--machine", type=Path, metavar="FILE", help=f"description of this machine ({default}, where there is one)"
    )
    doctor.add_argument("--host", metavar="NAME", help="which of the site's hosts this is, where nothing tells")
    doctor.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="look for /proc, /sys, /var under DIR (for tests)",
    )
    config_option(doctor)
    doctor.set_defaults(run=_run, default_machine=Path(default), default_config=doctor.get_default("config"))


def _run(args: argparse.Namespace) -> int:
    from appliance.doctor.context import CheckContext  # noqa: PLC0415
    from appliance.doctor.host import HostReader  # noqa: PLC0415
    from appliance.doctor.render import as_json, show, show_list  # noqa: PLC0415
    from appliance.doctor.runner import CHECKS, examine  # noqa: PLC0415

    machine = _machine(args)
    site = load(args.config) if _has_site(args, machine) else None
    context = CheckContext(HostReader(args.root), site, machine, Path.cwd(), time.time(), args.hashes, args.host)
    # Plain text has no width of its own: a long command must not be folded where it is copied from a log.
    console = Console(highlight=False, soft_wrap=False)
    if args.list:
        show_list(((check.name, check.looks, check.why_skipped(context)) for check in CHECKS), console)
        return 0
    report = examine(context, args.only)
    if args.json:
        print(as_json(report))
    else:
        show(report, console)
    return report.exit_code


def _machine(args: argparse.Namespace) -> Machine | None:
    """The machine's description: the file named, or the host's own where the site is the host's own, too."""
    if args.machine is not None:
        return load_machine(args.machine)
    if args.config == args.default_config and args.default_machine.exists():
        return load_machine(args.default_machine)
    return None


def _has_site(args: argparse.Namespace, machine: Machine | None) -> bool:
    """Whether a site has to be there: where one is named, and where a gateway or an engine runs."""
    named = args.config != args.default_config or args.config.exists()
    serves = machine is not None and any(unit.startswith(SERVING_UNITS) for unit in machine.units)
    return machine is None or named or serves
