"""``appliance bench``: tables of throughput, latency, energy, swaps and cold starts of this host."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from appliance.cli._args import add_config, api_key, duration
from appliance.errors import UsageError

DESCRIPTION = """\
Measures a serving host: a grid of batches, prompts and power limits, latencies by context, swaps, a cold start.
It measures while users send nothing, and stops itself for them, for a hot card and on battery. The same command
continues a run that ended early. The results of a folder are appended to results.jsonl; bench.md, bench.csv (for
`appliance plan --measured`), starts.csv and bench.html are written at each end.
Exit code 0: every cell has a result; 1: some are left; 2: invalid input.
The key is read from APPLIANCE_API_KEY."""

MAX_RUN_S = 3600.0


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance bench``."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_config(parser)
    parser.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help="results (%(default)s)")
    parser.add_argument("--model", default="", metavar="NAME", help="model or role; default: the first of the site")
    parser.add_argument("--render", action="store_true", help="measure nothing; write the reports of --out again")
    grid = parser.add_argument_group("grid")
    grid.add_argument("--batch", default="1,4,16,64,max", metavar="N,…", help="users at once (%(default)s)")
    grid.add_argument("--input", default="512,8192,32768", metavar="N,…", help="tokens of a prompt (%(default)s)")
    grid.add_argument(
        "--power", default="", metavar="W,…", help="power limits in watts; default: the limit of the site"
    )
    grid.add_argument(
        "--context", default="1024,4096,16384,65536", metavar="N,…",
        help="prompts of one user, for the latency by context (%(default)s)",
    )  # fmt: skip
    grid.add_argument("--output", type=int, default=128, metavar="N", help="tokens of a response (%(default)s)")
    grid.add_argument("--swap", action="store_true", help="also load each on-demand model in turn")
    grid.add_argument(
        "--cold-start", action="store_true",
        help="also restart the engine of --model while users are quiet, and time its start by stages",
    )  # fmt: skip
    safe = parser.add_argument_group("a serving machine")
    safe.add_argument(
        "--share", type=float, metavar="S",
        help="use this share of the engine's sequences, and let users have the rest; default: users must be quiet",
    )  # fmt: skip
    safe.add_argument(
        "--window", metavar="HH:MM-HH:MM", help="measure in this local time only, such as 02:00-05:00"
    )
    safe.add_argument("--quiet", default="10s", metavar="TIME", help="calm before each cell (%(default)s)")
    safe.add_argument("--wait", default="10m", metavar="TIME", help="longest wait for calm (%(default)s)")
    safe.add_argument("--hot", type=float, default=83.0, metavar="C", help="°C that stops a cell (%(default)g)")
    safe.add_argument(
        "--limit", default="1h", metavar="TIME", help="time of the run, an hour at most (%(default)s)"
    )
    safe.add_argument("--cell", default="3m", metavar="TIME", help="longest time of a cell (%(default)s)")
    safe.add_argument(
        "--client-lag", type=float, default=100.0, metavar="MS",
        help="lag of this client in ms above which a cell is invalid (%(default)g)",
    )  # fmt: skip
    safe.add_argument("--wishes", type=Path, metavar="DIR", help="power limits of the agents; default: the host's")
    safe.add_argument("--power-run", type=Path, metavar="DIR", help="state of the power agent; default: the host's")
    parser.set_defaults(run=_run, long_run=True)


def _run(args: argparse.Namespace) -> int:
    # Imported late: no other command needs the packages of a load test.
    from appliance.bench.command import BenchOptions, run_bench, write_reports  # noqa: PLC0415
    from appliance.bench.grid import MAX_BATCH, MAX_INPUT, BenchGrid, numbers  # noqa: PLC0415
    from appliance.bench.guard import GuardRules  # noqa: PLC0415
    from appliance.bench.run import BenchLimits  # noqa: PLC0415
    from appliance.contract.load import load  # noqa: PLC0415
    from appliance.watch.card_power import FOLDER  # noqa: PLC0415
    from appliance.watch.power.agent import RUN  # noqa: PLC0415
    from loadtests.parameters import LoadLimits  # noqa: PLC0415

    site = load(args.config)
    if args.render:
        write_reports(args.out, site)
        return 0
    key = api_key()
    if not key:
        raise UsageError("APPLIANCE_API_KEY is not set; create a key with `appliance keys create bench`")
    if args.share is not None and not 0 < args.share <= 1:
        raise UsageError(f"--share {args.share:g}: use a number above 0, and 1 at most")
    if not 1 <= args.output <= MAX_INPUT:
        raise UsageError(f"--output {args.output}: use 1 to {MAX_INPUT} tokens")
    if not 40 <= args.hot <= 100:
        raise UsageError(f"--hot {args.hot:g}: use 40 to 100 °C")
    swaps = tuple(dict.fromkeys(one.model for one in site.engines.values() if one.residency == "on-demand"))
    if args.swap and len(swaps) < 2:
        raise UsageError('--swap: the site needs two models with residency = "on-demand"')
    grid = BenchGrid(
        batches=numbers(args.batch, "--batch", most=MAX_BATCH, words=("max",)),
        inputs=numbers(args.input, "--input", most=MAX_INPUT),
        powers=numbers(args.power, "--power", most=5000),
        contexts=numbers(args.context, "--context", most=MAX_INPUT),
        output=args.output,
        swaps=swaps if args.swap else (),
    )
    run_s = duration(args.limit, "--limit")
    if not 0 < run_s <= MAX_RUN_S:
        raise UsageError(f"--limit {args.limit}: a run takes an hour at most, and the same command continues it")
    options = BenchOptions(
        site=site,
        data=site.data_path(Path.cwd()),
        out=args.out,
        model=args.model,
        cold_start=args.cold_start,
        key=key,
        grid=grid,
        share=1.0 if args.share is None else args.share,
        rules=GuardRules(hot_c=args.hot, cool_c=args.hot - 13.0, window=_window(args.window)),
        limits=BenchLimits(
            run_s=run_s,
            cell_s=duration(args.cell, "--cell"),
            wait_s=duration(args.wait, "--wait"),
            quiet_s=duration(args.quiet, "--quiet"),
        ),
        wishes=args.wishes or FOLDER,
        power_run=args.power_run or RUN,
        client=LoadLimits(lag_ms=args.client_lag),
    )
    return run_bench(options)


def _window(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text)
    if match is None:
        raise UsageError(f"--window {text[:20]!r}: write begin and end, such as 02:00-05:00")
    hours = [int(one) for one in match.groups()]
    window = (60 * hours[0] + hours[1], 60 * hours[2] + hours[3])
    if window[0] == window[1]:
        raise UsageError(f"--window {text}: begin and end are equal")
    return window
