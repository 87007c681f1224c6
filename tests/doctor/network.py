"""Two hosts in network namespaces, each with a WireGuard device and the files that NixOS renders for it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, wait_until
from tests.nix import checker, rendered
from tests.nix.storepaths import StoreFolder

ADDRESSES = {"gpu": "203.0.113.9", "vps": "203.0.113.5"}
"""Address of each host; that of the VPS is the endpoint in hosts/gpu.nix."""


@dataclass
class Node:
    """One host: a network namespace, a WireGuard device, and the machine's description that NixOS renders."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    machine: dict[str, Any]
    private: str
    public: str

    @property
    def enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.process.pid), "--mount", "--net"]

    def do(self, *words: object, stdin: str | None = None) -> str:
        done = subprocess.run(
            [*self.enter, *map(str, words)], input=stdin, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    @property
    def key_file(self) -> Path:
        return self.folder / "wg0.key"

    def load_firewall(self) -> None:
        """Load the rules as the unit nftables does."""
        self.do("nft", "flush", "ruleset")
        store = StoreFolder(
            rendered.host(self.name), self.folder / "store", replaced={"/var/lib/nftables/": f"{self.folder}/"}
        )
        unit = rendered.host(self.name).unit("nftables.service")
        for command in unit.commands("ExecStart"):
            self.do(*(store.relocate(word, unit.name) for word in command.argv))

    def lines(self, start: str) -> list[str]:
        """Return the lines of the tunnel's scripts that begin with ``start``."""
        texts = rendered.host(self.name).texts.values()
        scripts = [text.text for text in texts if re.fullmatch(r"unit-script-wireguard-wg0-.*start", text.name)]
        return [line for text in scripts for line in text.splitlines() if line.startswith(start)]

    def configure(self, *, private: str | None = None, peer: str) -> None:
        """Give the device a key and its one peer, as the units of the tunnel do on a new host."""
        key = self.folder / "wg.key"
        key.write_text(private or self.private)
        for known in self.do("wg", "show", "wg0", "peers").split():
            self.do("wg", "set", "wg0", "peer", known, "remove")
        # First the line with the private key, then that of the peer.
        for line in sorted(self.lines("wg set"), key=lambda line: " peer " in line):
            words = shlex.split(line)
            for option, value in (("private-key", str(key)), ("peer", peer)):
                if option in words:
                    words[words.index(option) + 1] = value
            self.do(*words)

    def handshakes(self) -> list[int]:
        return [int(line.split()[1]) for line in self.do("wg", "show", "wg0", "latest-handshakes").splitlines()]

    def doctor(self, *only: str, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
        """Run the command in the namespace and return its report."""
        machine = self.folder / "machine.json"
        machine.write_text(json.dumps(self.machine))
        argv = [
            *self.enter,
            *prefix,
            sys.executable,
            "-m",
            "appliance",
            "doctor",
            "--json",
            "--machine",
            str(machine),
        ]
        if self.name == "gpu":
            argv += ["--config", str(self.folder / "appliance.json")]
        for name in only:
            argv += ["--only", name]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
        assert done.stdout, done.stderr
        assert self.private not in done.stdout + done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == report["exit_code"]
        return report

    def codes(self, *only: str) -> list[str]:
        return [cause["code"] for cause in self.doctor(*only)["causes"]]


@contextmanager
def node(name: str, namespace: str, folder: Path) -> Iterator[Node]:
    folder.mkdir()
    host = rendered.host(name)
    machine = json.loads(host.etc_text("appliance/machine.json"))
    machine["tunnel"]["private_key_file"] = str(folder / "wg0.key")
    if name == "gpu":
        (folder / "appliance.json").write_text(host.etc_text("appliance/appliance.json"))
    private = checker.output_of(["wg", "genkey"]).strip()
    public = subprocess.run(
        ["wg", "pubkey"], input=private, capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / "wg0.key").touch(mode=0o600)
    (folder / "wg0.key").write_text(private + "\n")
    # A mount namespace of its own: the socket of the device is a file, which is named wg0 on both hosts.
    inside = "mkdir -p /run/wireguard && mount -t tmpfs wg /run/wireguard && exec wireguard-go -f wg0"
    log = (folder / "wireguard.log").open("wb")
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, "unshare", "--mount", "sh", "-c", inside],
        env={**os.environ, "WG_PROCESS_FOREGROUND": "1"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )  # fmt: skip
    made = Node(name=name, folder=folder, process=process, machine=machine, private=private, public=public)
    try:

        def up() -> bool:
            if process.poll() is not None:
                pytest.skip(f"NOT CHECKED: wireguard-go: {(folder / 'wireguard.log').read_text()[-200:]}")
            done = subprocess.run([*made.enter, "wg", "show", "wg0"], capture_output=True, check=False)
            return done.returncode == 0

        wait_until(up, "the WireGuard device", 20)
        yield made
    finally:
        process.terminate()
        process.wait(timeout=10)
        log.close()
