"""A healthy GPU host and a healthy VPS, each under a folder."""

from __future__ import annotations

import os
import shlex
import shutil
import ssl
import stat
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.doctor.checks import clock, disk
from appliance.store.keys import KeyStore
from tests.conftest import wait_until
from tests.doctor.fakehost import (
    KEYS,
    PRINT,
    PRIVATE,
    SENDER,
    SMI,
    FakeHost,
    accepts,
    dump,
    nft_json,
    sender_state,
)
from tests.doctor.network import ADDRESSES, Node, node
from tests.doctor.servers import Authority, openssl, serving_bot, serving_ready, serving_state, start_server
from tests.nix import checker, rendered
from tests.ports import free_port


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Give the tests' hosts a good clock and disk, whatever this machine's are."""
    read = clock.read_clock
    monkeypatch.setattr(
        clock, "read_clock", lambda host: clock.ClockFacts(synchronised=True, error_s=0.004, stamp=read(host).stamp)
    )
    free = 0.02 if "full" in request.node.name else 0.5
    monkeypatch.setattr(
        disk,
        "read_disk",
        lambda folder: disk.DiskSpace(folder=str(folder), total_gib=100.0, free=free, free_inodes=0.9, device=1),
    )


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    checker.require("openssl")
    folder = tmp_path_factory.mktemp("authority")
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650",
             "-subj", "/CN=Authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
             "-keyout", folder / "ca.key", "-out", folder / "ca.pem")  # fmt: skip
    return Authority(folder)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gateway's data folder with one key, to be copied: the migrations of a new one take longer than a check."""
    folder = tmp_path_factory.mktemp("keys") / "appliance-gateway"
    store = KeyStore(folder)
    store.create("ada")
    store.close()
    return folder


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scripts in place of programs: each prints a file in the same folder."""
    bin_folder, fake = tmp_path / "bin", tmp_path / "fake"
    bin_folder.mkdir()
    fake.mkdir()
    texts = {"nvidia-smi": SMI} | {
        name: PRINT.format(name=name) for name in ("journalctl", "systemctl", "nft", "wg", "upsc", "nginx-1.30.7")
    }
    for name, text in texts.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(fake))
    return bin_folder


def _common(host: FakeHost, own: str, other: str) -> None:
    root = host.root
    host.set_output("wg", dump(KEYS[own], {KEYS[other]: 41}))
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


UPSC = "battery.charge: 100\nbattery.runtime: 900\nups.load: 40\nups.status: OL CHRG\n"
"""Output of upsc for a healthy UPS."""


@pytest.fixture
def gpu(tmp_path: Path, programs: Path, keys: Path) -> Iterator[FakeHost]:
    """A healthy GPU host with one card and one engine."""
    with (
        serving_ready({"chat": "ready"}) as port,
        serving_bot("appliance_bot") as bot_port,
        serving_bot("", 401) as rejecting,
    ):
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
            "assistant": {
                "data_dir": "/var/lib/appliance-assistant",
                "socket": "/run/appliance-assistant/assistant.sock",
                "acting_socket": "/run/appliance-acting/acting.sock",
            },
            "telegram": {
                "token_file": "/run/credentials/appliance-telegram.service/token",
                "acting_socket": "/run/appliance-telegram-acting/acting.sock",
                "api": f"http://127.0.0.1:{bot_port}",
            },
        }  # fmt: skip
        machine = {
            "version": 1,
            "host": "gpu",
            "units": ["appliance-gateway.service", "nftables.service", "wireguard-wg0.service"],
            "kernel_parameters": ["transparent_hugepage=madvise", "pcie_aspm=off"],
            "cards": {
                "pins": {
                    "kernel": "6.18", "driver": "595.71.05", "cuda": "13.0", "python": "3.13", "torch": "2.14.0",
                    "vllm": "0.33.0",
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
            "ups": {"name": "ups", "driver": "usbhid-ups"},
            "weights": {"store": "/var/lib/appliance-models", "lock": lock},
            "notices": {"status": SENDER},
        }  # fmt: skip
        root = tmp_path / "root"
        host = FakeHost(root, site, machine, rejecting_bot_api=rejecting)
        host.backup()
        host.drill()
        host.write("/proc/spl/kstat/zfs/tank/state", "ONLINE\n")
        host.write(
            "/proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.71.05  Release Build  (builder@host)\n",
        )
        host.set_output("smi", "")
        host.set_output("upsc", UPSC)
        host.watch()
        host.set_output("compute", "700, 00000000:41:00.0\n")
        host.set_output("recovery", "0, None\n")
        host.set_output("journalctl", "Linux version 6.18.53\nnvidia: loading out-of-tree module taints kernel.\n")
        host.set_output("nft", nft_json(accepts("tcp", port), accepts("tcp", 22), accepts("udp", 546)))
        host.write("/proc/sys/kernel/osrelease", "6.18.53\n")
        packages = f"{env}/lib/python3.13/site-packages"
        for name in ("vllm-0.33.0", "torch-2.14.0+cu130", "nvidia_cuda_runtime-13.0.96"):
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
        shutil.copytree(keys, root / "var/lib/appliance-gateway")
        host.process(700, "VLLM::EngineCore", "appliance-engine-chat.service")
        host.process(800, "appliance", "appliance-gateway.service")
        host.sockets += [("tcp", "127.0.0.1", engine_port, 700), ("tcp", "127.0.0.1", port, 800)]
        host.write(SENDER, sender_state(host.now))
        host.write("/run/credentials/appliance-telegram.service/token", "1:token-of-the-doctor")
        _common(host, "gpu", "vps")
        with (
            serving_state(root / "run/appliance-assistant/assistant.sock", host.assistant),
            serving_state(root / "run/appliance-acting/acting.sock", {}),
            serving_state(root / "run/appliance-telegram-acting/acting.sock", {}),
        ):
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
    front = start_server(b"{}", 401, context)
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
            host.set_output("nft", nft_json(accepts("udp", 51820), accepts("tcp", port, 22)))
            (root / "var/lib/acme/llm.example.org").mkdir(parents=True)
            shutil.copy(cert, root / "var/lib/acme/llm.example.org/fullchain.pem")
            host.set_output("nginx-1.30.7", "nginx version: nginx/1.30.7\n")
            host.process(600, "nginx", "nginx.service", str(programs / "nginx-1.30.7"))
            host.sockets += [("tcp", "0.0.0.0", port, 600), ("udp", "0.0.0.0", 51820, 1)]
            _common(host, "vps", "gpu")
            yield host
    finally:
        front.shutdown()
        front.server_close()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Node]]:
    for program in ("ip", "nft", "wg", "wireguard-go", "nsenter", "unshare", "setpriv"):
        checker.require(program)
    rendered.require()
    tag = f"dr{uuid.uuid4().hex[:6]}"
    names = {name: f"{tag}-{name}" for name in ADDRESSES}
    folder = tmp_path_factory.mktemp("nodes")
    done = checker.run_process(["ip", "netns", "add", names["gpu"]])
    if done.returncode:
        pytest.skip(f"NOT CHECKED: no network namespace here ({done.stderr.strip()}); run as root")
    try:
        checker.output_of(["ip", "netns", "add", names["vps"]])
        checker.output_of(["ip", "-n", names["gpu"], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0",
                     "netns", names["vps"]])  # fmt: skip
        for name, address in ADDRESSES.items():
            inside = ["ip", "-n", names[name]]
            checker.output_of([*inside, "link", "set", "lo", "up"])
            checker.output_of([*inside, "address", "add", f"{address}/24", "dev", "eth0"])
            checker.output_of([*inside, "link", "set", "eth0", "up"])
        with node("gpu", names["gpu"], folder / "gpu") as gpu, node("vps", names["vps"], folder / "vps") as vps:
            for one, other in ((gpu, vps), (vps, gpu)):
                next(iter(one.machine["tunnel"]["peers"].values()))["public_key"] = other.public
                for line in (*one.lines("ip address"), *one.lines("ip link set")):
                    one.do(*shlex.split(line))
            yield {"gpu": gpu, "vps": vps}
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def pair(nodes: dict[str, Node]) -> tuple[Node, Node]:
    """Reset firewall and tunnel of both hosts, and wait for a handshake."""
    gpu, vps = nodes["gpu"], nodes["vps"]
    for one, other in ((vps, gpu), (gpu, vps)):
        one.key_file.write_text(one.private + "\n")
        one.key_file.chmod(0o600)
        one.load_firewall()
        one.configure(peer=other.public)
    # The keepalive of hosts/gpu.nix starts the handshake.
    wait_until(lambda: all(all(one.handshakes()) for one in (gpu, vps)), "a handshake", 30)
    return gpu, vps
