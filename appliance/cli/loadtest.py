"""The flags of ``appliance loadtest``: every number of a scenario, an SLO or a limit of the client is one."""

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
Loads a gateway (or anything that speaks OpenAI's API) and judges what came against SLOs.
Exit code 0: every SLO holds; 1: one is missed, or the baseline was better; 2: the run proves nothing.
SIGINT, SIGTERM and SIGHUP end it at any moment, with a report of what was measured and exit code 2.
The key is read from APPLIANCE_API_KEY, or keys from --keys; with --url it may be absent."""


def add_loadtest(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance loadtest``."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "scenario", nargs="?", default="chat", metavar="SCENARIO", help="which load (chat); --list shows all"
    )
    parser.add_argument("--list", action="store_true", help="show the scenarios and their sizes, and end")
    where = parser.add_argument_group("where")
    add_url(where)
    where.add_argument(
        "--model", action="append", metavar="NAME",
        help="model or role to ask for, twice for `swap`; the first that is offered when absent",
    )  # fmt: skip
    where.add_argument(
        "--keys", type=Path, metavar="FILE", help="API keys, one a line: each user takes the next one"
    )
    where.add_argument(
        "--engine-url", action="append", metavar="URL",
        help="an engine itself, for its tokenizer and metrics; from the configuration when absent",
    )  # fmt: skip
    add_config(parser)
    _add_fields(parser.add_argument_group("size of the load, each with the scenario's own default"), Parameters, "")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="short for --output-tokens N")
    _add_fields(parser.add_argument_group("SLOs, from the configuration when absent"), Slo, "slo-")
    _add_fields(
        parser.add_argument_group("from when on the client is too slow and the run invalid"), LoadLimits, "client-"
    )
    verdict = parser.add_argument_group("verdict and output")
    verdict.add_argument(
        "--baseline", type=Path, metavar="FILE", help="an earlier --json; fails only where 95 %% intervals separate"
    )
    verdict.add_argument(
        "--find-goodput",
        action="store_true",
        help="search the highest rate (open loop) or number of users that holds",
    )
    verdict.add_argument(
        "--max-load", type=float, default=1000.0, metavar="N", help="never try more than that (1000)"
    )
    verdict.add_argument(
        "--resolution",
        type=float,
        default=0.1,
        metavar="R",
        help="end when the ends are that near, as a share (0.1)",
    )
    add_json_file(verdict)
    verdict.add_argument("--junit", type=Path, metavar="FILE", help="JUnit XML for CI")
    verdict.add_argument(
        "--html", type=Path, metavar="FILE", help="one page with plots that opens without a network"
    )
    verdict.add_argument("--samples", type=Path, metavar="FILE", help="every single request, a JSON line each")
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
    """``bool``, ``int``, ``float`` or ``"pair"``, looking through ``Optional`` and ``Annotated``."""
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
    """What the flags say of ``model``'s fields. Raises :class:`UsageError`."""
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
