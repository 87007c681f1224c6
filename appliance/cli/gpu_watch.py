"""``appliance gpu-watch``: the unit's ``serve``, and ``once``, ``status`` and ``fans`` for people."""

from __future__ import annotations

import argparse
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance.cli._args import add_config, add_json
from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.engines.argv import started_replicas
from appliance.errors import StartError, StoreError, UsageError
from appliance.system import files
from appliance.system.bounded_child import BoundedChild
from appliance.system.stopping import listening
from appliance.watch.card_power import power_ranges
from appliance.watch.gpu.agent import GpuWatch, Intervals, WatchStatus
from appliance.watch.gpu.card_reader import TIMEOUT_S, CardReader
from appliance.watch.gpu.drain_link import DrainLink
from appliance.watch.gpu.fan_control import fan_command
from appliance.watch.gpu.kernel_log import KernelLog
from appliance.watch.gpu.memory import WatchPaths
from appliance.watch.gpu.once import forecast
from appliance.watch.gpu.state import Rung, Timing, WatchConfig, WatchedReplica

RUNGS = {
    Rung.NONE: "ok",
    Rung.FANS: "fans raised",
    Rung.WATTS: "power lowered",
    Rung.DRAIN: "drained",
    Rung.RESTART: "engines restarted",
    Rung.REBOOT: "rebooted",
    Rung.COLD_CYCLE: "powered off and on",
    Rung.DEGRADED: "out of service",
}


def add_gpu_watch(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance gpu-watch``."""
    parser.epilog = "Exit code of once: 0 if no card needs anything, 3 otherwise."
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=text)
        add_config(one)
        one.add_argument(
            "--host", metavar="NAME", help="name of this host in the site; default: the machine's own name"
        )
        one.add_argument(
            "--root", type=Path, default=Path("/"), metavar="DIR", help="read and write below DIR (for tests)"
        )
        one.set_defaults(run=run)
        return one

    action("once", _once, "look at the cards once, and print what the watchdog would do; changes nothing")
    serve = action("serve", _serve, "watch until a signal: the unit runs this")
    serve.set_defaults(long_run=True)
    serve.add_argument(
        "--act", action="store_true", help="act on cards, engines and the machine; default: report only"
    )
    serve.add_argument("--fans", action="store_true", help="control the fans of hot cards")
    serve.add_argument("--cold-cycle", action="store_true", help="power off and on if reboots did not help")
    serve.add_argument(
        "--interval", type=float, default=3.0, metavar="S", help="seconds between looks (%(default)s)"
    )
    serve.add_argument("--query-timeout", type=float, default=TIMEOUT_S, metavar="S", help=argparse.SUPPRESS)
    serve.add_argument("--pace", type=float, default=1.0, metavar="X", help=argparse.SUPPRESS)
    serve.add_argument("--any-facility", action="store_true", help=argparse.SUPPRESS)
    add_json(action("status", _status, "print the state of the running watchdog"))
    fans = action("fans", _fans, "set the fans of a card by hand, or return them to the driver")
    fans.add_argument("card", type=int, metavar="CARD", help="index of the card")
    fans.add_argument("speed", metavar="PERCENT", help="30 to 100, or auto for the driver's own control")


def watch_config(
    site: Site, host: str, *, act: bool, fans: bool, cold_cycle: bool, pace: float = 1.0
) -> WatchConfig:
    """Return the configuration for ``host``; ``pace`` divides all durations, for tests.

    Raises :class:`UsageError` if the site has no such host.
    """
    if host not in site.hosts:
        raise UsageError(f"the site has no host {host!r}: name one of {', '.join(site.hosts)} with --host")
    gpus = site.hosts[host].gpus
    own = {
        replica.name: WatchedReplica(
            replica.engine.cards(replica.index) if replica.engine.device == "cuda" else (),
            replica.engine.start_timeout_s / pace,
        )
        for replica in started_replicas(site)
        if replica.engine.host == host
    }
    # Units of further ranks: with Ray, the nodes of its cluster are units of the operator.
    own |= {
        f"{name}.rank{rank}": WatchedReplica(
            engine.rank_cards(rank) if engine.device == "cuda" else (), engine.start_timeout_s / pace, is_rank=True
        )
        for name, engine in site.engines.items()
        for rank, node in enumerate(engine.nodes)
        if rank > 0 and node == host and engine.distributed == "native"
    }
    defaults = Timing()
    timing = Timing(**{name: getattr(defaults, name) / pace for name in Timing.__dataclass_fields__})
    return WatchConfig(
        act=act,
        fans=fans,
        cold_cycle=cold_cycle,
        cards=frozenset(gpu.index for gpu in gpus),
        ranges=power_ranges(gpus),
        replicas=own,
        timing=timing,
    )


def _site(args: argparse.Namespace) -> tuple[Site, str]:
    return load(args.config), args.host or socket.gethostname()


def _serve(args: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    site, host = _site(args)
    config = watch_config(site, host, act=args.act, fans=args.fans, cold_cycle=args.cold_cycle, pace=args.pace)
    step_s = min(1.0, args.interval)
    with listening() as stop:
        GpuWatch(
            config,
            paths=WatchPaths(args.root),
            gateway=Path(site.gateway.data_dir),
            intervals=Intervals(step_s=step_s, look_s=args.interval, query_timeout_s=args.query_timeout),
            any_facility=args.any_facility,
        ).run(stop)
    return 0


def _once(args: argparse.Namespace) -> int:
    site, host = _site(args)
    config = watch_config(site, host, act=False, fans=False, cold_cycle=False)
    paths = WatchPaths(args.root)
    look = CardReader().wait(2 * TIMEOUT_S)
    try:
        log = KernelLog(paths.kmsg)
        xids = log.read()
        log.close()
    except StoreError as error:
        xids = []
        print(f"the kernel's log: {error}")
    views = DrainLink(Path(site.gateway.data_dir)).look()
    result = forecast(config, look, xids, views)
    for line in result.lines:
        print(line)
    return 0 if result.quiet else 3


def _status(args: argparse.Namespace) -> int:
    path = WatchPaths(args.root).runtime / "status.json"
    content = files.read(path)
    if content is None:
        raise StartError(f"{path} does not exist; is appliance-gpu-watch.service running?")
    if args.json:
        print(content.decode())
        return 0
    status = msgspec.json.decode(content, type=WatchStatus)
    mode = "acts" if status.act else "reports only"
    print(f"The watchdog {mode}; reboots in the last day: {status.reboots_today}.")
    if status.driver_hangs:
        print("The driver hangs: the figures are old.")
    for card in status.cards:
        parts = [f"card {card.index}: {RUNGS[Rung(card.rung)]}"]
        parts += [f"({card.cause})"] if card.cause else []
        figures = {
            "°C": card.temperature_c, "K margin": card.margin_c, "W": card.power_w, "W limit": card.limit_w,
            "% fans": None if card.fan_ratio is None else card.fan_ratio * 100,
        }  # fmt: skip
        parts += [f"{value:.0f} {name}" for name, value in figures.items() if value is not None]
        print(" ".join(parts[:2]) + (", " + ", ".join(parts[2:]) if parts[2:] else ""))
    for name, reason in status.drains.items():
        print(f"{name} gets no new requests: {reason}")
    return 0


def _fans(args: argparse.Namespace) -> int:
    speed = None
    if args.speed != "auto":
        if not args.speed.isdecimal() or not 30 <= int(args.speed) <= 100:
            raise UsageError(f"{args.speed!r} is not a speed: write 30 to 100 percent, or auto")
        speed = int(args.speed)
    child = BoundedChild()
    child.start(fan_command(args.card, speed), timeout_s=TIMEOUT_S)
    result = child.wait(2 * TIMEOUT_S)
    if result is None or not result.ok:
        reason = "the driver hangs" if result is None or result.timed_out else result.output.strip()
        raise StartError(f"card {args.card}: the fans cannot be set: {reason}")
    print(f"card {args.card}: {result.output.strip()} {'by the driver' if speed is None else f'at {speed} %'}")
    return 0
