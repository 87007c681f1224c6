"""``appliance check`` and ``appliance schema``: the configuration itself."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.engines.argv import replicas, started_replicas
from appliance.engines.gguf_examination import require_loadable
from appliance.engines.load_format import weights_store
from appliance.errors import ConfigError, FileAccessError, StartError, StoreError, existing
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
    _examine_weights(site, args.file)
    count = len(replicas(site))
    print(f"{args.file}: ok; {len(site.models)} models, {count} engine replicas, {len(site.roles)} roles")
    return 0


def _examine_weights(site: Site, file: Path) -> None:
    """Examine the GGUF files that this machine has; the engines may be on another one."""
    for replica in started_replicas(site):
        model = site.models[replica.engine.model]
        path = Path.cwd() / Path(model.source).expanduser()
        if model.is_folder and existing(path) != path:
            continue
        try:
            require_loadable(site, replica, Path.cwd(), weights_store())
        except FileAccessError as error:
            print(f"{file}: not examined: {error}", file=sys.stderr)
        except (StartError, StoreError) as error:
            raise ConfigError(f"{file}: {error}") from None


def _schema(_: argparse.Namespace) -> int:
    print(json.dumps(Site.model_json_schema(), indent=2))
    return 0
