"""``appliance power``: the agent of a host with a UPS, its status, and a measurement of the runtime."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import shlex
import sys
import time
from pathlib import Path

from appliance.cli._args import DEFAULT_CONFIG, add_json, duration
from appliance.contract.load import load
from appliance.contract.model import Host, Site
from appliance.errors import UsageError
from appliance.notices.outbox import FOLDER, Outbox
from appliance.notices.pending import PendingNotices
from appliance.system.stopping import listening
from appliance.watch.card_power import FOLDER as WISHES
from appliance.watch.card_power import CardPower, power_ranges
from appliance.watch.power.agent import POWER_OFF, RUN, STATE, PowerAgent, PowerFolders, PowerParts, read_public
from appliance.watch.power.drill import Drill, DrillRow
from appliance.watch.power.engine_units import EngineUnits
from appliance.watch.power.links import Announcements, EngineCanaries, GatewayLink
from appliance.watch.power.policy import PowerTimings
from appliance.watch.power.reading import UpsReading, from_variables
from appliance.watch.power.upsd_client import PORT, UpsdClient

STALE_S = 10.0
"""Age in seconds above which the agent's state is old."""

DRILL = """Measures the runtime of the UPS. Start it while the service is in use, then pull the plug of the UPS.
It prints a line per period, and a summary when mains returns or the charge is --until. Put the plug back then. The
agent works as in any outage: the engines stop, and the load falls; the lines show both."""


def add_power(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance power``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    serve = actions.add_parser("serve", help="run the agent (a unit does)")
    _add_ups(serve)
    serve.add_argument(
        "--config", type=Path, metavar="FILE", help=f"configuration of the site, such as {DEFAULT_CONFIG}"
    )
    serve.add_argument("--host", metavar="NAME", help="name of this host in the site")
    serve.add_argument("--gateway", type=Path, metavar="DIR", help="data folder of the gateway, if it runs here")
    serve.add_argument("--run", dest="folder", type=Path, default=RUN, metavar="DIR", help="state (%(default)s)")
    serve.add_argument(
        "--state", type=Path, default=STATE, metavar="DIR", help="state that survives a reboot (%(default)s)"
    )
    serve.add_argument("--outbox", type=Path, default=FOLDER, metavar="DIR", help="notices (%(default)s)")
    serve.add_argument("--wishes", type=Path, default=WISHES, metavar="DIR", help="limits of cards (%(default)s)")
    serve.add_argument("--metrics", type=Path, metavar="FILE", help="write metrics for node_exporter")
    serve.add_argument("--announce", metavar="URL", help="the dead man's switch that an outage is announced to")
    serve.add_argument(
        "--power-off", default=shlex.join(POWER_OFF), metavar="COMMAND", help="powers off (%(default)s)"
    )
    serve.add_argument("--interval", default="1s", metavar="TIME", help="time between two looks (%(default)s)")
    names = ", ".join(field.name for field in dataclasses.fields(PowerTimings))
    serve.add_argument(
        "--set", action="append", default=[], metavar="NAME=NUMBER", help=f"change a limit; repeatable: {names}"
    )
    serve.set_defaults(run=_serve, long_run=True)

    status = actions.add_parser("status", help="show the UPS and the phase of an outage")
    _add_ups(status)
    status.add_argument("--run", dest="folder", type=Path, default=RUN, metavar="DIR", help="state (%(default)s)")
    add_json(status)
    status.set_defaults(run=_status)

    drill = actions.add_parser(
        "drill", help="measure the runtime while the plug of the UPS is out", description=DRILL
    )
    _add_ups(drill)
    drill.add_argument("--until", type=float, default=0.5, metavar="CHARGE", help="0 to 1 (%(default)s)")
    drill.add_argument("--every", default="10s", metavar="TIME", help="time between two lines (%(default)s)")
    drill.add_argument("--wait", default="10m", metavar="TIME", help="time for pulling the plug (%(default)s)")
    drill.set_defaults(run=_drill, long_run=True)


def _add_ups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ups", default="ups", metavar="NAME", help="name of the UPS in upsd (%(default)s)")
    parser.add_argument("--upsd", default="127.0.0.1", metavar="ADDRESS", help="address of upsd (%(default)s)")
    parser.add_argument("--port", type=int, default=PORT, metavar="PORT", help="port of upsd (%(default)s)")


def _client(args: argparse.Namespace) -> UpsdClient:
    return UpsdClient(args.ups, args.upsd, args.port)


def _serve(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    site = load(args.config) if args.config is not None else None
    name, host = _host(site, args.host)
    cards = None
    minimum: dict[int, int] = {}
    if host is not None and host.gpus:
        ranges = power_ranges(host.gpus)
        cards = CardPower(ranges, args.wishes)
        minimum = {card: allowed.floor for card, allowed in ranges.items()}
    parts = PowerParts(
        units=EngineUnits(args.folder / "engines.json"),
        gateway=GatewayLink(args.gateway) if args.gateway is not None else None,
        canaries=EngineCanaries(site, name) if site is not None else None,
        announcements=Announcements(args.announce) if args.announce else None,
        cards=cards,
        minimum=minimum,
        power_off=shlex.split(args.power_off),
    )
    folders = PowerFolders(args.folder, args.state, args.metrics)
    timings = _timings(args.set, host)
    with listening() as stop:
        agent = PowerAgent(
            _client(args), parts, PendingNotices(Outbox(args.outbox)), folders=folders, timings=timings
        )
        agent.run(stop, duration(args.interval, "--interval"))
    return 0


def _host(site: Site | None, name: str | None) -> tuple[str, Host | None]:
    if site is None:
        return name or "", None
    known = list(site.hosts)
    chosen = name or (known[0] if len(known) == 1 else "")
    if chosen not in site.hosts:
        raise UsageError(f"--host: name one of the site's hosts: {', '.join(known)}")
    return chosen, site.hosts[chosen]


def _timings(changes: list[str], host: Host | None) -> PowerTimings:
    known = {field.name for field in dataclasses.fields(PowerTimings)}
    values = {"reserve_s": float(host.ups.reserve_s)} if host is not None and host.ups is not None else {}
    for change in changes:
        name, _, number = change.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            raise UsageError(f"--set {change[:40]}: write NAME=NUMBER") from None
        if name not in known:
            raise UsageError(
                f"--set {change[:40]}: {name!r} is not a valid limit; the limits: {', '.join(sorted(known))}"
            )
        if not 0 <= values[name] < 1e9:
            raise UsageError(f"--set {change[:40]}: the number must be 0 or more")
    return PowerTimings(**values)


def _status(args: argparse.Namespace) -> int:
    with contextlib.closing(_client(args)) as client:
        variables = client.variables()
    reading, public = from_variables(variables), read_public(args.folder)
    phase = "unknown: the agent does not run" if public is None else public[0].phase.value
    if public is not None and public[1] > STALE_S:
        phase = f"{phase} {public[1]:.0f} s ago; the agent does not run"
    if args.json:
        shown = {
            "status": sorted(reading.status), "charge": reading.charge, "runtime_s": reading.runtime_s,
            "load": reading.load, "supply": reading.supply.value, "phase": phase,
        }  # fmt: skip
        print(json.dumps(shown))
        return 0
    model = " ".join(filter(None, (variables.get("device.mfr", ""), variables.get("device.model", ""))))
    for key, value in (
        ("UPS", model or args.ups),
        ("status", " ".join(sorted(reading.status))),
        ("supply", reading.supply.value),
        ("charge", _percent(reading.charge)),
        ("load", _percent(reading.load)),
        ("runtime", "not reported" if reading.runtime_s is None else f"{reading.runtime_s:.0f} s"),
        ("phase", phase),
    ):
        print(f"{key:8} {value}")
    return 0


def _percent(ratio: float | None) -> str:
    return "not reported" if ratio is None else f"{ratio:.0%}"


def _drill(args: argparse.Namespace) -> int:
    every, wait = duration(args.every, "--every"), duration(args.wait, "--wait")
    drill, began = Drill(until=args.until), time.monotonic()
    print("Pull the plug of the UPS now.", flush=True)
    with contextlib.closing(_client(args)) as client, listening() as stop:
        while not stop.requested:
            reading: UpsReading = from_variables(client.variables())
            row = DrillRow(time.monotonic(), reading)
            if drill.add(row):
                break
            if not drill.rows and row.at - began > wait:
                raise UsageError(f"--wait: the UPS did not report battery operation within {wait:.0f} s")
            if drill.rows:
                print(drill.line(row), flush=True)
            stop.wait(every if drill.rows else min(1.0, every))
    print(drill.summary())
    return 0
