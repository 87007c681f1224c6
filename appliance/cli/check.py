"""``appliance check`` and ``appliance schema``: the configuration itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.engines.argv import replicas
from appliance.errors import ConfigError
from appliance.planner.fit import fit


def add_check(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance check``."""
    parser.epilog = "exit code: 0 valid, 2 not valid, with one line per error"
    parser.add_argument("file", type=Path, metavar="FILE", help="configuration of a site, TOML or JSON")
    parser.set_defaults(run=_check)


def add_schema(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance schema``: none."""
    parser.set_defaults(run=_schema)


def _check(args: argparse.Namespace) -> int:
    site = load(args.file)
    if unfit := fit(site):
        raise ConfigError("\n".join(f"{args.file}: {violation}" for violation in unfit))
    count = len(replicas(site))
    print(f"{args.file}: ok; {len(site.models)} models, {count} engine replicas, {len(site.roles)} roles")
    return 0


def _schema(_: argparse.Namespace) -> int:
    print(json.dumps(Site.model_json_schema(), indent=2))
    return 0
