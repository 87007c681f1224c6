"""``appliance fetcher``: reads public web pages for the assistant, on the host of the search engine."""

from __future__ import annotations

import argparse
from ipaddress import ip_address, ip_network
from pathlib import Path

from appliance.errors import UsageError
from appliance.search.address_rule import Network
from appliance.search.serve import FetcherOptions, serve


def add_fetcher(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance fetcher``."""
    parser.add_argument("--listen", metavar="ADDRESS", default="127.0.0.1", help="loopback or tunnel address")
    parser.add_argument("--port", type=int, default=8889, help="port to listen on (default: 8889)")
    parser.add_argument(
        "--deny",
        metavar="NETWORK",
        action="append",
        default=[],
        help="further network whose hosts are never read, such as the public address of your home; repeatable",
    )
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="file with the key that requests must have")
    parser.set_defaults(run=_fetcher)


def _fetcher(args: argparse.Namespace) -> int:
    return serve(
        FetcherOptions(
            host=_listen(args.listen),
            port=args.port,
            denied=[_network(one) for one in args.deny],
            key_file=args.key_file,
        )
    )


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(f"--deny {text}: {error}; write a network such as 203.0.113.7/32") from None


def _listen(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        raise UsageError(f"--listen {text}: write an address such as 127.0.0.1") from None
    if not (address.is_loopback or address.is_private) or address.is_unspecified:
        raise UsageError(f"--listen {text}: is a public address; use loopback or the tunnel's address")
    return str(address)
