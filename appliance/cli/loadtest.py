"""``appliance loadtest``: a flag for each number of a scenario, an SLO or a limit of the client."""

from __future__ import annotations

import argparse
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from appliance.cli._args import add_config, add_json_file, add_url, duration
from appliance.contract.model import Slo
from appliance.errors import UsageError
from loadtests.parameters import LoadLimits, Parameters

DESCRIPTION = """\
Loads a gateway (or any server with OpenAI's API) and compares the results with SLOs.
Exit code 0: every SLO is met; 1: one is missed, or the baseline was better; 2: no valid result.
SIGINT, SIGTERM and SIGHUP end it at any time, with a report of the finished requests and exit code 2.
The key is read from APPLIANCE_API_KEY, or keys from --keys; with --url it may be absent."""


def add_loadtest(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance loadtest``."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "scenario",
        nargs="?",
        default="chat",
        metavar="SCENARIO",
        help="scenario of the load (%(default)s); --list shows all",
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios and their sizes")
    target = parser.add_argument_group("target")
    add_url(target)
    target.add_argument(
        "--model", action="append", metavar="NAME",
        help="model or role to test, twice for `swap`; default: the first that the gateway lists",
    )  # fmt: skip
    target.add_argument(
        "--keys", type=Path, metavar="FILE", help="API keys, one per line: each user takes the next one"
    )
    target.add_argument(
        "--engine-url", action="append", metavar="URL",
        help="engine with tokenizer and metrics; default: the engines of --config",
    )  # fmt: skip
    add_config(parser)
    _add_fields(parser.add_argument_group("size of the load (default: the scenario's)"), Parameters, "")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="short form of --output-tokens N")
    _add_fields(parser.add_argument_group("SLOs (default: those of --config)"), Slo, "slo-")
    _add_fields(
        parser.add_argument_group("limits of the load generator, above which the run is invalid"),
        LoadLimits,
        "client-",
    )
    verdict = parser.add_argument_group("verdict and output")
    verdict.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="report of an earlier --json; a result fails only if the 95 %% intervals do not overlap",
    )
    verdict.add_argument(
        "--find-goodput",
        action="store_true",
        help="search for the highest rate (open loop) or number of users that meets the SLOs",
    )
    verdict.add_argument(
        "--max-load", type=float, default=1000.0, metavar="N", help="upper bound of the search (%(default)g)"
    )
    verdict.add_argument(
        "--resolution",
        type=float,
        default=0.1,
        metavar="R",
        help="relative width at which the search ends (%(default)s)",
    )
    add_json_file(verdict)
    verdict.add_argument("--junit", type=Path, metavar="FILE", help="also write JUnit XML, for CI")
    verdict.add_argument(
        "--html", type=Path, metavar="FILE", help="also write one page with plots, which needs no network"
    )
    verdict.add_argument("--samples", type=Path, metavar="FILE", help="also write each request as a line of JSON")
    parser.set_defaults(run=_run, long_run=True)


def _run(args: argparse.Namespace) -> int:
    # Imported late: no other command needs the packages of a load test.
    from loadtests.command import command, list_scenarios  # noqa: PLC0415
    from loadtests.options import LoadTestOptions  # noqa: PLC0415

    if args.list:
        list_scenarios()
        return 0
    parameters = fields(args, Parameters, "")
    if args.max_tokens is not None:
        parameters.setdefault("output_tokens", (args.max_tokens, args.max_tokens))
    options = LoadTestOptions(
        config=args.config,
        scenario=args.scenario,
        url=args.url,
        models=tuple(args.model or ()),
        keys=args.keys,
        engine_urls=tuple(args.engine_url or ()),
        parameters=parameters,
        slo=fields(args, Slo, "slo-"),
        limits=fields(args, LoadLimits, "client-"),
        baseline=args.baseline,
        find_goodput=args.find_goodput,
        max_load=args.max_load,
        resolution=args.resolution,
        outputs={f"--{name}": getattr(args, name) for name in ("json", "junit", "html", "samples")},
    )
    return command(options)


def _flag(name: str, prefix: str) -> str:
    return f"--{prefix}{name.removesuffix('_s').replace('_', '-')}"


def _add_fields(group: argparse._ArgumentGroup, model: type[BaseModel], prefix: str) -> None:
    for name, info in model.model_fields.items():
        kind = _kind(info.annotation)
        text = (info.description or "").replace("%", "%%")
        if kind is bool:
            group.add_argument(
                _flag(name, prefix), action=argparse.BooleanOptionalAction, dest=f"{prefix}{name}", help=text
            )
            continue
        metavar = {"pair": "LOW:HIGH", int: "N", float: "X"}[kind]
        if name.endswith("_s"):
            metavar = "LOW:HIGH" if kind == "pair" else "TIME"
        group.add_argument(_flag(name, prefix), dest=f"{prefix}{name}", metavar=metavar, help=text)


def _kind(annotation: Any) -> Any:
    """Return ``bool``, ``int``, ``float`` or ``"pair"``: the type of ``annotation`` without ``Optional``."""
    origin = typing.get_origin(annotation)
    if origin is tuple:
        return "pair"
    if origin in (types.UnionType, typing.Union):
        return _kind(next(part for part in typing.get_args(annotation) if part is not type(None)))
    return annotation


def number(text: str, option: str, *, time: bool) -> int | float:
    """Return ``text`` as a number, or with ``time`` as a duration in seconds.

    Raises :class:`UsageError` that begins with ``option``.
    """
    if time:
        return duration(text, option)
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option}: {text!r} is not a number") from None


def fields(args: argparse.Namespace, model: type[BaseModel], prefix: str) -> dict[str, Any]:
    """Return the fields of ``model`` that the flags set; raises :class:`UsageError` for an invalid value."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        given = getattr(args, f"{prefix}{name}", None)
        if given is None:
            continue
        kind = _kind(info.annotation)
        if kind is bool:
            found[name] = given
            continue
        texts = str(given).split(":") if kind == "pair" else [str(given)]
        parts = tuple(number(part, _flag(name, prefix), time=name.endswith("_s")) for part in texts)
        if kind == "pair":
            found[name] = parts * 2 if len(parts) == 1 else parts
        else:
            found[name] = parts[0]
    return found
