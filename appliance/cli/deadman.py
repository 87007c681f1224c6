"""``appliance deadman``: the dead man's switch on the VPS, and announcements to it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from appliance.cli._args import duration
from appliance.errors import UsageError
from appliance.system import text_file
from appliance.watch.announce import AnnouncedKind, announce
from appliance.watch.deadman.policy import SwitchLimits
from appliance.watch.deadman.serve import LOOK_S, PING_S, SwitchOptions, serve

FOLDER = Path("/var/lib/appliance-deadman")
PORT = 9097
_DEFAULTS = SwitchLimits()

_TIMES = {
    "interval": (_DEFAULTS.interval_s, "time between two looks"),
    "silent": (_DEFAULTS.silent_s, "time without a response or a beat until the alarm"),
    "not-ready": (_DEFAULTS.not_ready_s, "time for which the gateway may be not ready"),
    "boot": (_DEFAULTS.boot_s, "time of a boot, added to an announced absence"),
    "quiet": (_DEFAULTS.quiet_s, "longest silence after on-battery and reboot"),
    "off": (_DEFAULTS.off_s, "longest silence after going-down"),
    "leave": (_DEFAULTS.leave_s, "time within which a host that announced going-down is off"),
}
"""Options of the limits: the default and the help."""


def add_deadman(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance deadman``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    one = actions.add_parser("serve", help="watch the host at home from the VPS")
    one.set_defaults(run=_serve, long_run=True)
    one.add_argument("--home", required=True, metavar="NAME", help="name of the host at home, for messages")
    one.add_argument("--address", required=True, metavar="IP", help="address of the host inside the tunnel")
    one.add_argument("--gateway-port", type=int, default=8000, metavar="N", help="its gateway's port (%(default)s)")
    one.add_argument("--interface", default="wg0", metavar="NAME", help="WireGuard interface (%(default)s)")
    one.add_argument("--peer", default="", metavar="KEY", help="public key of the host; without it no handshakes")
    one.add_argument("--listen", required=True, metavar="IP", help="own address inside the tunnel")
    one.add_argument("--port", type=int, default=PORT, metavar="N", help="own port (%(default)s)")
    one.add_argument(
        "--folder", type=Path, default=FOLDER, metavar="DIR", help="folder of state and notices (%(default)s)"
    )
    one.add_argument("--no-beat", action="store_true", help="expect no beats of the host's monitoring")
    one.add_argument(
        "--ping-url-file", type=Path, metavar="FILE", help="file with a URL to request while all is well"
    )
    one.add_argument("--ping-every", default=f"{PING_S:.0f}s", metavar="TIME", help="its interval (%(default)s)")
    one.add_argument("--timeout", default=f"{LOOK_S:.0f}s", metavar="TIME", help="limit of a look (%(default)s)")
    for name, (seconds, text) in _TIMES.items():
        one.add_argument(f"--{name}", default=f"{seconds:.0f}s", metavar="TIME", help=f"{text} (%(default)s)")
    one = actions.add_parser("announce", help="announce an absence of this host to the switch")
    one.set_defaults(run=_announce)
    one.add_argument("kind", metavar="KIND", choices=[*AnnouncedKind], help=", ".join(AnnouncedKind))
    one.add_argument("--url", required=True, metavar="URL", help="the switch, such as http://10.77.0.2:9097")
    one.add_argument(
        "--planned-s", type=float, default=0.0, metavar="N", help="planned length in seconds; 0 if unknown"
    )


def _serve(args: argparse.Namespace) -> int:
    limits = SwitchLimits(
        interval_s=_positive(args, "interval"),
        silent_s=_positive(args, "silent"),
        not_ready_s=_positive(args, "not-ready"),
        boot_s=_positive(args, "boot"),
        quiet_s=_positive(args, "quiet"),
        off_s=_positive(args, "off"),
        leave_s=_positive(args, "leave"),
        beat=not args.no_beat,
    )
    if limits.silent_s < limits.misses * limits.interval_s:
        raise UsageError(f"--silent must be {limits.misses} times --interval or more: an alarm needs so many looks")
    url = ""
    if args.ping_url_file is not None:
        url = text_file.read(args.ping_url_file, missing="No such file; put the URL into it").strip()
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{args.ping_url_file}: the URL must begin with http:// or https://")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return serve(
        SwitchOptions(
            home=args.home,
            address=args.address,
            gateway_port=args.gateway_port,
            interface=args.interface,
            peer=args.peer,
            listen=args.listen,
            port=args.port,
            folder=args.folder,
            limits=limits,
            look_s=min(_positive(args, "timeout"), LOOK_S),
            ping_url=url,
            ping_s=_positive(args, "ping-every"),
        )
    )


def _positive(args: argparse.Namespace, name: str) -> float:
    seconds = duration(getattr(args, name.replace("-", "_")), f"--{name}")
    if seconds <= 0:
        raise UsageError(f"--{name}: the time must be longer than 0")
    return seconds


def _announce(args: argparse.Namespace) -> int:
    announce(args.url, args.kind, planned_s=args.planned_s)
    print(f"announced {args.kind} to {args.url}")
    return 0
