"""``appliance smoke``: the smoke test of a service, or of a whole host."""

from __future__ import annotations

import argparse
from pathlib import Path

from appliance.cli._args import KEY_VARIABLE, add_config, add_json_file, add_url, api_key
from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.errors import UsageError
from appliance.render.terminal import long_run_console
from appliance.smoketest import report, run
from appliance.smoketest.load import command
from appliance.system.stopping import Stop, listening


def add_smoke(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance smoke``."""
    parser.epilog = f"exit code: 0 passed, 1 failed, 2 no result. The API key is read from {KEY_VARIABLE}."
    add_url(parser)
    parser.add_argument("--model", help="model or role to test; default: the first model that generates text")
    add_json_file(parser)
    add_config(parser)
    parser.add_argument(
        "--reports",
        type=Path,
        metavar="DIR",
        help="test every part of this host, and keep the report of its generation in DIR",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="skip the test if this generation has passed it after an earlier boot",
    )
    parser.set_defaults(run=_smoke, long_run=True)


def _smoke(args: argparse.Namespace) -> int:
    site = load(args.config)
    key = api_key()
    if not key:
        raise UsageError(f"{KEY_VARIABLE} is not set; make a key with `appliance keys create smoke`")
    with listening() as stop:
        if args.reports is not None:
            return _test_host(site, args, key, stop)
        return command(site, args, key, stop)


def _test_host(site: Site, args: argparse.Namespace, key: str, stop: Stop) -> int:
    show = long_run_console()
    system = run.system_under_test()
    if args.once and (earlier := run.passed_before(args.reports, system)):
        show.print(f"{earlier.line} (on {earlier.began}; not again at each boot)", markup=False, soft_wrap=True)
        return 0
    folder = report.folder_of(args.reports, system.running.generation)

    def print_step(step: report.SmokeStep) -> None:
        line = f"{step.level:4} {step.sentence}{f'; {step.fix}' if step.fix else ''}"
        show.print(line, markup=False, soft_wrap=True)

    made = run.run_smoke_test(
        site, Path.cwd(), key=key, folder=folder, system=system, on_step=print_step, stop=stop
    )
    show.print(made.line, markup=False, soft_wrap=True)
    # A test that was stopped shows neither that the host works nor that it fails.
    return 0 if made.passed else 2 if stop.requested else 1
