"""The firewall rules of two hosts with an engine over both, as NixOS renders them."""

from __future__ import annotations

import json
from typing import Any

from tests.nix import rendered
from tests.nodes.site_of_two import ADDRESSES, INTERFACE

CARDS = [{"index": index, "model": "RTX PRO 6000 Blackwell Workstation", "memory_mib": 97887} for index in (0, 1)]


def changes(host: str, **engine: object) -> dict[str, Any]:
    """Return the options of ``host``, which replace those of hosts/gpu.nix; ``engine`` has keys of its engine."""
    hosts = {
        name: {"memory_gib": 128, "gpus": CARDS, "link": {"address": ADDRESSES[name], "interface": INTERFACE}}
        for name in ("gpu", "gpu2")
    }
    over = {
        "nodes": ["gpu", "gpu2"], "replicas": 1, "tensor_parallel": 2, "pipeline_parallel": 2, "gpus": [0, 1, 0, 1],
        **engine,
    }  # fmt: skip
    own: dict[str, Any] = {
        "host": host,
        "gpu": {"peerToPeer": "off"},
        "settings": {"hosts": hosts, "engines": {"agents": over}},
    }
    if host == "gpu2":
        own |= {name: {"enable": False} for name in ("gateway", "smoke", "observe", "assistant")}
    return {"appliance": own}


def rules_of(host: str, **engine: object) -> str:
    """Return the nftables rules of ``host``; skip the test unless a whole nixpkgs is set up.

    ``engine`` has keys of its engine. Without the file of earlier tables to delete: a new namespace has none.
    """
    text = rendered.host("gpu", changes=json.dumps(changes(host, **engine))).text("nftables-rules").text
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("include "))
