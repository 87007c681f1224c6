"""A host made of files and small programs: everything that this machine does not have."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from appliance.configfile import validate
from appliance.machine import Machine
from appliance.ops.doctor.catalogue import examine
from appliance.ops.doctor.host import Host
from appliance.ops.doctor.result import Result
from appliance.ops.doctor.scene import Scene
from appliance.store.keys import KeyStore
from tests.conftest import free_port

KEYS = {
    "gpu": "Hh5pYxr2pDsHMRbmvMhTTsQqFwnYdIQKDCvKoLTkyG4=",
    "vps": "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
    "stranger": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
}
PRIVATE = "aSecretThatMustNeverBeSeenInAnyOutput000000="

CARD = {
    "index": "0", "name": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "pci.bus_id": "00000000:41:00.0",
    "memory.total": "97887", "power.limit": "450.00", "power.default_limit": "600.00", "temperature.gpu": "54",
    "persistence_mode": "Enabled", "pcie.link.width.current": "16", "pcie.link.width.max": "16",
    "clocks_event_reasons.active": "0x0000000000000004", "driver_version": "595.71.05",
}  # fmt: skip

SMI = """#!/bin/sh
case "$*" in
  *gpu_recovery_action*) cat "$FAKE/recovery" ;;
  *--query-gpu*) cat "$FAKE/cards"; exit "$(cat "$FAKE/smi.code")" ;;
esac
"""
PRINT = """#!/bin/sh
code=$(cat "$FAKE/{name}.code")
if [ "$code" = 0 ]; then cat "$FAKE/{name}"; else cat "$FAKE/{name}" >&2; fi
exit "$code"
"""


def hex_address(address: str, port: int) -> str:
    """``127.0.0.1:80`` as /proc/net/tcp has it."""
    parts = [int(part) for part in address.split(".")]
    return f"{''.join(f'{part:02X}' for part in reversed(parts))}:{port:04X}"


@dataclass
class FakeHost:
    """A healthy GPU host or VPS under a folder; tests break one thing and look."""

    root: Path
    site: dict[str, Any]
    machine: dict[str, Any]
    sockets: list[tuple[str, str, int, int]] = field(default_factory=list)
    """Protocol, address, port, process."""
    card: dict[str, str] = field(default_factory=lambda: dict(CARD))
    now: float = field(default_factory=time.time)

    @property
    def fake(self) -> Path:
        return self.root.parent / "fake"

    def write(self, name: str, text: str) -> Path:
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def says(self, name: str, text: str, code: int = 0) -> None:
        """What a program prints, and its exit code."""
        (self.fake / name).write_text(text)
        (self.fake / f"{name}.code").write_text(str(code))

    def units(self, **states: str) -> None:
        """systemd's answers: every unit active, but for those named (dashes as underscores)."""
        blocks = []
        for unit in [*self.machine["units"], "appliance-models-verify.service"]:
            state = states.get(unit.removesuffix(".service").replace("-", "_"), "active")
            result = "exit-code" if state == "failed" else "success"
            load = "not-found" if state == "not-found" else "loaded"
            blocks.append(
                f"Type=simple\nRemainAfterExit=no\nResult={result}\nExecMainExitTimestamp=\nId={unit}\n"
                f"LoadState={load}\nConditionResult=yes\n"
                f"ActiveState={'inactive' if load == 'not-found' else state}\n"
            )
        self.says("systemctl", "\n".join(blocks))

    def lay_out(self) -> None:
        """Write the sockets and cards as they are now."""
        rows: dict[str, list[str]] = {"tcp": [], "udp": []}
        for inode, (protocol, address, port, pid) in enumerate(self.sockets, 1000):
            state = "0A" if protocol == "tcp" else "07"
            rows[protocol].append(
                f"   0: {hex_address(address, port)} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 "
                f"    0        0 {inode} 1 0000000000000000 100 0 0 10 0"
            )
            handle = self.root / f"proc/{pid}/fd/{inode}"
            handle.parent.mkdir(parents=True, exist_ok=True)
            handle.unlink(missing_ok=True)
            handle.symlink_to(f"socket:[{inode}]")
        for protocol, lines in rows.items():
            self.write(f"/proc/net/{protocol}", "\n".join(["  sl  local_address …", *lines]) + "\n")
        row = ", ".join(self.card.values())
        (self.fake / "cards").write_text(row + "\n" if self.card else "")

    def process(self, pid: int, name: str, unit: str, program: str = "") -> None:
        self.write(f"/proc/{pid}/comm", name + "\n")
        self.write(f"/proc/{pid}/cgroup", f"0::/system.slice/{unit}\n")
        self.write(
            f"/proc/{pid}/limits", "Max locked memory         unlimited            unlimited            bytes\n"
        )
        self.write(f"/proc/{pid}/status", f"Name:\t{name}\nCpus_allowed_list:\t0-7\n")
        if program:
            (self.root / f"proc/{pid}/exe").symlink_to(program)

    def scene(self, *, hashes: bool = False) -> Scene:
        self.lay_out()
        site = validate("site", self.site) if self.site else None
        machine = Machine.model_validate_json(json.dumps(self.machine))
        return Scene(Host(self.root, timeout_s=5), site, machine, self.root, self.now, hashes)

    def look(self, *only: str, hashes: bool = False) -> list[Result]:
        """Make the checks ``only``, or all."""
        return list(examine(self.scene(hashes=hashes), only).results)

    def one(self, check: str, subject: str = "") -> Result:
        """The result of ``check`` about ``subject``."""
        found = [one for one in self.look(check) if one.subject == subject]
        assert len(found) == 1, [(one.subject, one.seen) for one in self.look(check)]
        return found[0]

    def levels(self, check: str) -> set[str]:
        return {one.level for one in self.look(check)}


def dump(own: str | None, peers: dict[str, int | None], *, private: str = PRIVATE) -> str:
    """What ``wg show wg0 dump`` prints: peers by key, each with the age of its handshake in seconds."""
    lines = [f"{private if own else '(none)'}\t{own or '(none)'}\t51820\toff"]
    for key, age in peers.items():
        stamp = 0 if age is None else int(time.time()) - age
        lines.append(
            f"{key}\t{PRIVATE}\t203.0.113.5:51820\t10.77.0.2/32\t{stamp}\t{0 if age is None else 920}\t148\t25"
        )
    return "\n".join(lines) + "\n"


def nft_json(*rules: list[dict[str, Any]], policy: str = "drop", table: str = "appliance") -> str:
    """A ruleset as ``nft --json list ruleset`` prints it."""
    at = {"family": "inet", "table": table}
    things: list[dict[str, Any]] = [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": table}},
    ]
    things += [
        {"chain": {**at, "name": hook, "type": "filter", "hook": hook, "prio": 0, "policy": policy}}
        for hook in ("input", "forward")
    ]
    things += [{"rule": {**at, "chain": "input", "expr": rule}} for rule in rules]
    return json.dumps({"nftables": things})


def accepts(protocol: str, *ports: int) -> list[dict[str, Any]]:
    """A rule that lets in ``ports``."""
    right: Any = ports[0] if len(ports) == 1 else {"set": list(ports)}
    payload = {"payload": {"protocol": protocol, "field": "dport"}}
    return [{"match": {"op": "==", "left": payload, "right": right}}, {"accept": None}]


def answering(body: bytes, status: int, context: ssl.SSLContext | None = None) -> ThreadingHTTPServer:
    """A server that says one thing."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


@contextmanager
def serving_ready(words: dict[str, str], status: int = 200) -> Iterator[int]:
    """Something that answers ``/ready``; its port."""
    server = answering(json.dumps({"engines": words}).encode(), status)
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the tests' own."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, domain: str, days: int, folder: Path, *, begins: str = "") -> tuple[Path, Path]:
        """A certificate for ``domain`` and its key; ``begins`` is a time that faketime understands."""
        folder.mkdir(parents=True, exist_ok=True)
        key, request, cert = folder / "key.pem", folder / "request.pem", folder / "fullchain.pem"
        extension = folder / "extension"
        extension.write_text(f"subjectAltName=DNS:{domain}\n")
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={domain}",
                 "-keyout", key, "-out", request)  # fmt: skip
        _openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self.folder / "ca.key", "-days", days,
                 "-extfile", extension, "-out", cert, begins=begins)  # fmt: skip
        return cert, key


def _openssl(*words: object, begins: str = "") -> None:
    argv = [*(("faketime", "-f", begins) if begins else ()), "openssl", *map(str, words)]
    subprocess.run(argv, check=True, capture_output=True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650",
             "-subj", "/CN=Authority", "-keyout", folder / "ca.key", "-out", folder / "ca.pem")  # fmt: skip
    return Authority(folder)


Make = Callable[[], FakeHost]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for programs that say what a file beside them holds."""
    bin_folder, fake = tmp_path / "bin", tmp_path / "fake"
    bin_folder.mkdir()
    fake.mkdir()
    texts = {"nvidia-smi": SMI} | {
        name: PRINT.format(name=name) for name in ("journalctl", "systemctl", "nft", "wg", "nginx-1.30.7")
    }
    for name, text in texts.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(fake))
    return bin_folder


def _common(host: FakeHost, own: str, other: str) -> None:
    root = host.root
    host.says("wg", dump(KEYS[own], {KEYS[other]: 41}))
    host.write("/sys/class/net/wg0/mtu", "1420\n")
    key = host.write("/var/lib/wireguard/wg0.key", PRIVATE + "\n")
    key.chmod(stat.S_IRUSR | stat.S_IWUSR)
    for system in ("booted", "current"):
        (root / f"run/{system}-system").mkdir(parents=True)
        (root / f"run/{system}-system/kernel").symlink_to("/nix/store/k-linux-6.18.53/bzImage")
    host.write("/proc/cmdline", "init=/nix/store/x/init transparent_hugepage=madvise pcie_aspm=off loglevel=4\n")
    host.process(900, "sshd", "sshd.service")
    host.sockets += [("tcp", "0.0.0.0", 22, 900), ("tcp", "127.0.0.1", 631, 900)]
    host.units()


@pytest.fixture
def gpu(tmp_path: Path, programs: Path) -> Iterator[FakeHost]:
    """A healthy GPU host with one card and one engine."""
    with serving_ready({"chat": "ready"}) as port:
        engine_port = free_port()
        env = "/nix/store/e-engine"
        lock = "/etc/appliance/models.lock"
        site = {
            "version": 1,
            "hosts": {
                "gpu": {
                    "memory_gib": 128,
                    "gpus": [
                        {
                            "index": 0,
                            "model": "RTX PRO 6000 Blackwell Workstation",
                            "memory_mib": 97887,
                            "power_limit_w": 450,
                            "numa_node": 0,
                        }
                    ],
                }
            },
            "models": {"qwen": {"source": "/models/qwen", "weights_gib": 8.0}},
            "engines": {
                "chat": {
                    "host": "gpu", "model": "qwen", "gpus": [0], "context": 8192, "concurrency": 16,
                    "port": engine_port, "command": f"{env}/bin/python",
                }
            },
            "gateway": {"port": port, "data_dir": "/var/lib/appliance-gateway"},
        }  # fmt: skip
        machine = {
            "version": 1,
            "host": "gpu",
            "units": ["appliance-gateway.service", "nftables.service", "wireguard-wg0.service"],
            "kernel_parameters": ["transparent_hugepage=madvise", "pcie_aspm=off"],
            "cards": {
                "pins": {
                    "kernel": "6.18", "driver": "595.71.05", "cuda": "13.0", "python": "3.13", "torch": "2.13.0",
                    "vllm": "0.32.0",
                },
                "numa_pinned": True,
                "peer_to_peer": "iommu-off",
            },
            "memory": {"hugepages": 0, "transparent_hugepages": "madvise", "max_map_count": 1048576},
            "tunnel": {
                "interface": "wg0", "address": "10.77.0.1", "mtu": 1420,
                "private_key_file": "/var/lib/wireguard/wg0.key",
                "peers": {
                    "vps": {"public_key": KEYS["vps"], "address": "10.77.0.2", "endpoint": "203.0.113.5:51820"},
                },
            },
            "firewall": {
                "openings": [
                    {"protocol": "tcp", "port": port, "by": "gateway"},
                    {"protocol": "tcp", "port": 22, "by": "ssh"},
                ]
            },
            "weights": {"store": "/var/lib/appliance-models", "lock": lock},
        }  # fmt: skip
        root = tmp_path / "root"
        host = FakeHost(root, site, machine)
        host.write(
            "/proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.71.05  Release Build  (builder@host)\n",
        )
        host.says("smi", "")
        host.says("recovery", "0, None\n")
        host.says("journalctl", "Linux version 6.18.53\nnvidia: loading out-of-tree module taints kernel.\n")
        host.says("nft", nft_json(accepts("tcp", port), accepts("tcp", 22), accepts("udp", 546)))
        host.write("/proc/sys/kernel/osrelease", "6.18.53\n")
        packages = f"{env}/lib/python3.13/site-packages"
        for name in ("vllm-0.32.0", "torch-2.13.0+cu130", "nvidia_cuda_runtime-13.0.96"):
            (root / packages.lstrip("/") / f"{name}.dist-info").mkdir(parents=True)
        host.write("/proc/meminfo", f"MemTotal:       {128 * 2**20} kB\n")
        host.write("/proc/sys/vm/nr_hugepages", "0\n")
        host.write("/proc/sys/vm/max_map_count", "1048576\n")
        host.write("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
        host.write("/sys/module/nvidia_uvm/parameters/uvm_disable_hmm", "Y\n")
        host.write("/sys/bus/pci/devices/0000:41:00.0/numa_node", "0\n")
        host.write("/sys/devices/system/node/node0/cpulist", "0-7\n")
        host.write("/sys/devices/system/node/node1/cpulist", "8-15\n")
        host.write("/models/qwen/config.json", "{}")
        weights = "/var/lib/appliance-models/hub/models--Qwen--Q/snapshots/" + "a" * 40 + "/model.safetensors"
        host.write(weights, "weights")
        digest = subprocess.run(
            ["sha256sum", root / weights.lstrip("/")], capture_output=True, text=True, check=True
        ).stdout.split()[0]
        host.write(lock, f"{digest}  7  Qwen/Q@{'a' * 40}  model.safetensors\n")
        store = KeyStore(root / "var/lib/appliance-gateway")
        store.create("ada")
        store.close()
        host.process(700, "VLLM::EngineCore", "appliance-engine-chat.service")
        host.process(800, "appliance", "appliance-gateway.service")
        host.sockets += [("tcp", "127.0.0.1", engine_port, 700), ("tcp", "127.0.0.1", port, 800)]
        _common(host, "gpu", "vps")
        yield host


@pytest.fixture
def vps(
    tmp_path: Path, programs: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHost]:
    """A healthy VPS: TLS on a port, a gateway behind it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    root = tmp_path / "root"
    cert, key = authority.issue("llm.example.org", 80, tmp_path / "issued")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    front = answering(b"{}", 401, context)
    port = int(front.server_address[1])
    try:
        with serving_ready({"chat": "ready"}) as gateway:
            machine = {
                "version": 1,
                "host": "vps",
                "units": ["nftables.service", "wireguard-wg0.service", "nginx.service"],
                "kernel_parameters": ["transparent_hugepage=madvise"],
                "tunnel": {
                    "interface": "wg0", "address": "10.77.0.2", "mtu": 1420, "listen_port": 51820,
                    "private_key_file": "/var/lib/wireguard/wg0.key",
                    "peers": {"gpu": {"public_key": KEYS["gpu"], "address": "10.77.0.1"}},
                },
                "firewall": {
                    "openings": [
                        {"protocol": "udp", "port": 51820, "by": "tunnel"},
                        {"protocol": "tcp", "port": port, "by": "edge"},
                        {"protocol": "tcp", "port": 22, "by": "ssh"},
                    ]
                },
                "edge": {
                    "domain": "llm.example.org", "https_port": port, "nginx": "1.30.7", "http2": True,
                    "certificate": "/var/lib/acme/llm.example.org/fullchain.pem",
                    "gateways": [f"127.0.0.1:{gateway}"],
                },
            }  # fmt: skip
            host = FakeHost(root, {}, machine)
            host.says("nft", nft_json(accepts("udp", 51820), accepts("tcp", port, 22)))
            (root / "var/lib/acme/llm.example.org").mkdir(parents=True)
            shutil.copy(cert, root / "var/lib/acme/llm.example.org/fullchain.pem")
            host.says("nginx-1.30.7", "nginx version: nginx/1.30.7\n")
            host.process(600, "nginx", "nginx.service", str(programs / "nginx-1.30.7"))
            host.sockets += [("tcp", "0.0.0.0", port, 600), ("udp", "0.0.0.0", 51820, 1)]
            _common(host, "vps", "gpu")
            yield host
    finally:
        front.shutdown()
        front.server_close()
