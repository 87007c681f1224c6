"""Defects of a host by the check that has to find them: name, change, level, and a part of the finding."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.doctor.checks import clock
from tests.doctor.fakehost import KEYS, SENDER, FakeHost, accepts, dump, nft_json, sender_state

Defect = Callable[[FakeHost], object]


def _text(file: str, text: str) -> Defect:
    return lambda host: host.write(file, text)


def _card(field: str, value: str) -> Defect:
    return lambda host: host.card.update({field: value})


def _remove(path: str) -> Defect:
    def remove(host: FakeHost) -> None:
        target = host.root / path.lstrip("/")
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return remove


def _output(program: str, text: str, code: int = 0) -> Defect:
    return lambda host: host.set_output(program, text, code)


def _wg(own: str | None, peers: dict[str, int | None]) -> Defect:
    return lambda host: host.set_output("wg", dump(own, peers))


def _database(host: FakeHost) -> None:
    (host.root / "var/lib/appliance-gateway/appliance.sqlite").write_bytes(b"not a database" * 100)


def _no_gateway(host: FakeHost) -> None:
    host.site["gateway"]["port"] = 1


def _too_large(host: FakeHost) -> None:
    host.site["engines"]["chat"]["gpu_memory_utilization"] = 0.5
    host.site["models"]["qwen"] = {"source": "Qwen/Qwen3-30B-A3B", "revision": "a" * 40}


def _mode(path: str, mode: int) -> Defect:
    return lambda host: (host.root / path.lstrip("/")).chmod(mode)


def _reports(**state: Any) -> Defect:
    return lambda host: host.assistant.update(state)


def _no_bot_api(host: FakeHost) -> None:
    host.site["telegram"]["api"] = "http://127.0.0.1:1"


def _rejected_token(host: FakeHost) -> None:
    host.site["telegram"]["api"] = f"http://127.0.0.1:{host.rejecting_bot_api}"


def _exposed(host: FakeHost) -> None:
    host.sockets = [(p, "0.0.0.0" if pid == 700 else a, n, pid) for p, a, n, pid in host.sockets]


def _no_nginx(host: FakeHost) -> None:
    host.machine["edge"]["https_port"] = 1


def _no_gateways(host: FakeHost) -> None:
    host.machine["edge"]["gateways"] = ["127.0.0.1:1"]


def _rename(host: FakeHost, old: str, new: str) -> None:
    folder = host.root / "nix/store/e-engine/lib/python3.13/site-packages"
    (folder / f"{old}.dist-info").rename(folder / f"{new}.dist-info")


def _smi(text: str) -> Defect:
    return lambda host: _smi_fails(host, text)


def _smi_fails(host: FakeHost, text: str) -> None:
    (host.fake.parent / "bin" / "nvidia-smi").write_text(f'#!/bin/sh\necho "{text}"\nexit 18\n')


def _second_card(host: FakeHost) -> None:
    host.card["driver_version"] += "\n" + ", ".join({**host.card, "index": "1"}.values())


def _rules(host: FakeHost, more: int) -> None:
    ports = [opening["port"] for opening in host.machine["firewall"]["openings"]]
    host.set_output("nft", nft_json(accepts("tcp", *ports, more)))


def _stamp(host: FakeHost, at: float) -> None:
    path = host.write(clock.STAMP, "")
    os.utime(path, (at, at))


def _sender(**changes: Any) -> Defect:
    """Change the state of the sender; times are relative to that of the check."""

    def write(host: FakeHost) -> None:
        fields: dict[str, Any] = {"at": host.now, **changes}
        for name in {"at", "due_since"} & changes.keys():
            fields[name] = host.now + changes[name]
        host.write(SENDER, sender_state(**fields))

    return write


def _weights(host: FakeHost) -> Path:
    return next(host.root.glob("var/lib/appliance-models/hub/*/*/*/*"))


def _gateway_on_all_addresses(host: FakeHost) -> None:
    host.sockets[1] = ("tcp", "0.0.0.0", host.sockets[1][2], 800)


def _engine_stopped(host: FakeHost) -> None:
    host.sockets[0] = host.sockets[1]


def _no_node(host: FakeHost) -> None:
    del host.site["hosts"]["gpu"]["gpus"][0]["numa_node"]


def _new_kernel(host: FakeHost) -> None:
    link = host.root / "run/current-system/kernel"
    link.unlink()
    link.symlink_to("/nix/store/other/bzImage")


DEFECTS: dict[str, list[tuple[str, Defect, str, str]]] = {
    "pins": [
        (
            "another driver",
            _text("/proc/driver/nvidia/version", "Open Kernel Module  580.1.2"),
            "fail",
            "595.71.05",
        ),
        ("another kernel", _text("/proc/sys/kernel/osrelease", "6.12.1\n"), "fail", "pinned is 6.18"),
        ("another vLLM", lambda h: _rename(h, "vllm-0.33.0", "vllm-0.19.0"), "fail", "0.19.0; pinned is 0.33.0"),
        (
            "another CUDA",
            lambda h: _rename(h, "nvidia_cuda_runtime-13.0.96", "nvidia_cuda_runtime-12.8.1"),
            "fail",
            "12.8.1",
        ),
        (
            "no torch",
            _remove("/nix/store/e-engine/lib/python3.13/site-packages/torch-2.14.0+cu130.dist-info"),
            "unknown",
            "is not found",
        ),
        ("a kernel that waits", _new_kernel, "warn", "newer kernel"),
    ],
    "driver": [
        ("no module", _remove("/proc/driver/nvidia/version"), "fail", "not loaded"),
        (
            "an old one",
            _text("/proc/driver/nvidia/version", "Open Kernel Module  570.211.01  Release"),
            "fail",
            "580 or newer",
        ),
        (
            "the closed one",
            _text("/proc/driver/nvidia/version", "NVIDIA UNIX x86_64 Kernel Module  595.71.05  Release"),
            "fail",
            "closed",
        ),
        (
            "a mismatch",
            _smi("Failed to initialize NVML: Driver/library version mismatch"),
            "fail",
            "version mismatch",
        ),
        (
            "no communication",
            _smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
            "fail",
            "couldn't communicate",
        ),
        (
            "programs of another version",
            _card("driver_version", "595.60.01"),
            "fail",
            "nvidia-smi has version 595.60.01",
        ),
    ],
    "cards": [
        ("missing", lambda h: h.card.clear(), "fail", "nvidia-smi shows 0 of 1"),
        (
            "another model",
            _card("name", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
            "fail",
            "the site has RTX PRO 6000",
        ),
        ("less memory", _card("memory.total", "95000"), "fail", "the site has 97887"),
        ("a narrow link", _card("pcie.link.width.current", "8"), "warn", "x8 of x16"),
        ("no persistence", _card("persistence_mode", "Disabled"), "warn", "persistence mode is off"),
        ("one too many", _second_card, "warn", "is not in the site"),
        ("garbage", lambda h: h.card.update({"index": "none"}), "unknown", "output of nvidia-smi is not a row"),
    ],
    "power": [
        ("too high", _card("power.limit", "600.00"), "warn", "600 W; the site has 450 W"),
        ("too low", _card("power.limit", "300.00"), "warn", "300 W"),
        ("no figure", _card("power.limit", "[N/A]"), "unknown", "does not report its power limit"),
    ],
    "throttle": [
        (
            "hardware heat",
            _card("clocks_event_reasons.active", "0x0000000000000048"),
            "fail",
            "hardware thermal slowdown",
        ),
        ("power brake", _card("clocks_event_reasons.active", "0x0000000000000080"), "fail", "power brake"),
        ("software heat", _card("clocks_event_reasons.active", "0x0000000000000020"), "warn", "because of heat"),
    ],
    "cooling": [
        ("no margin", lambda h: h.watch(margin_c=2.0), "fail", "2 K below its thermal limit, fans at 41%"),
        ("a low margin", lambda h: h.watch(margin_c=10.0), "warn", "10 K below its thermal limit"),
        ("full fans", lambda h: h.watch(fan_ratio=0.97), "warn", "fans at 97%, 38 K below"),
        (
            "no figures",
            lambda h: h.watch(margin_c=None, fan_ratio=None),
            "ok",
            "no margin reported, no fan reported",
        ),
        ("garbage", _text("/run/appliance-gpu-watch/status.json", "{"), "unknown", "is not valid"),
    ],
    "xid": [
        (
            "off the bus",
            _output("journalctl", "x\nNVRM: Xid (PCI:0000:41:00): 79, pid=1, GPU has fallen off the bus.\n"),
            "fail",
            "XID 79, 1 times",
        ),
        (
            "an unusual one",
            _output("journalctl", "NVRM: Xid (PCI:0000:41:00): 38, pid=1, firmware\n"),
            "warn",
            "XID 38",
        ),
        (
            "its memory",
            _output("journalctl", "x\nNVRM: Xid (PCI:0000:41:00): 95, pid=1, Uncontained ECC error.\n"),
            "fail",
            "XID 95, 1 times",
        ),
        ("recovery", _output("recovery", "0, Drain and Reset\n"), "fail", "Drain and Reset"),
        ("a withheld log", _output("journalctl", ""), "unknown", "log of this boot is empty"),
        (
            "no permission",
            _output("journalctl", "No journal files were opened due to insufficient permissions.\n", 1),
            "unknown",
            "insufficient permissions",
        ),
    ],
    "kernel": [
        (
            "started without",
            _text("/proc/cmdline", "loglevel=4 transparent_hugepage=madvise\n"),
            "fail",
            "started without pcie_aspm=off",
        ),
        ("with HMM", _text("/sys/module/nvidia_uvm/parameters/uvm_disable_hmm", "N\n"), "fail", "HMM"),
    ],
    "hugepages": [
        ("80 % of RAM", _text("/proc/sys/vm/nr_hugepages", "52428\n"), "fail", "102 GiB of 128 GiB"),
        ("a few that are not required", _text("/proc/sys/vm/nr_hugepages", "100\n"), "warn", "100 pages"),
        (
            "always",
            _text("/sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
            "warn",
            "always",
        ),
        ("few mappings", _text("/proc/sys/vm/max_map_count", "65530\n"), "warn", "65530"),
        ("no kernel", _remove("/proc/meminfo"), "unknown", "does not report it"),
    ],
    "memlock": [
        (
            "64 KiB",
            _text(
                "/proc/700/limits", "Max locked memory         65536                65536                bytes\n"
            ),
            "fail",
            "64 KiB",
        ),
        ("not running", _engine_stopped, "unknown", "does not run"),
    ],
    "numa": [
        (
            "another node",
            _text("/sys/bus/pci/devices/0000:41:00.0/numa_node", "1\n"),
            "warn",
            "node 1; the site has 0",
        ),
        ("no node", _text("/sys/bus/pci/devices/0000:41:00.0/numa_node", "-1\n"), "warn", "its slot has no node"),
        (
            "an engine on another node",
            _text("/proc/700/status", "Cpus_allowed_list:\t0-15\n"),
            "warn",
            "outside node 0",
        ),
        ("not in the site", _no_node, "warn", "the site has none"),
    ],
    "clock": [("set back", lambda h: _stamp(h, h.now + 3600), "fail", "60 min behind")],
    "disk": [("full", lambda _: None, "fail", "2% of 100 GiB free")],
    "models": [
        ("a file too short", lambda h: _weights(h).write_text("x"), "fail", "1 bytes, the lock has 7"),
        ("a file is missing", lambda h: _weights(h).unlink(), "fail", "No such file"),
        (
            "the verification at boot failed",
            lambda h: h.units(appliance_models_verify="failed"),
            "fail",
            "at boot failed",
        ),
        ("not verified", lambda h: h.units(appliance_models_verify="inactive"), "warn", "not verified since boot"),
        ("no lock file", _remove("/etc/appliance/models.lock"), "fail", "cannot be read"),
        ("no lock at all", lambda h: h.machine["weights"].pop("lock"), "warn", "no models.lock"),
        ("no folder", _remove("/models/qwen"), "fail", "does not exist"),
        ("an empty folder", _remove("/models/qwen/config.json"), "fail", "neither config.json"),
    ],
    "database": [
        ("garbage", _database, "fail", "not a database"),
        ("none yet", _remove("/var/lib/appliance-gateway"), "warn", "does not exist yet"),
    ],
    "firewall": [
        ("not loaded", _output("nft", '{"nftables": [{"metainfo": {}}]}'), "fail", "nftables is not loaded"),
        ("another table", _output("nft", nft_json(table="filter")), "fail", "loaded are: inet filter"),
        ("policy accept", _output("nft", nft_json(policy="accept")), "fail", "has policy accept"),
        (
            "a rule for everything",
            _output("nft", nft_json([{"accept": None}])),
            "fail",
            "1 rules accept every port",
        ),
        ("a port too many", lambda h: _rules(h, 8001), "fail", "accepts 8001/tcp"),
        ("a port too few", _output("nft", nft_json(accepts("tcp", 22))), "fail", "does not accept"),
        ("no permission", _output("nft", "", 1), "unknown", "nft:"),
        ("garbage", _output("nft", "[]"), "unknown", "not a ruleset"),
    ],
    "tunnel": [
        ("key missing", _remove("/var/lib/wireguard/wg0.key"), "fail", "the WireGuard key is missing"),
        ("key empty", _text("/var/lib/wireguard/wg0.key", ""), "fail", "is empty"),
        ("key not loaded", _wg(None, {KEYS["vps"]: 4}), "fail", "wg0 has no private key"),
        (
            "key for all",
            lambda h: (h.root / "var/lib/wireguard/wg0.key").chmod(0o644),
            "fail",
            "can be read by others",
        ),
        ("no interface", _remove("/sys/class/net/wg0"), "fail", "the interface wg0 does not exist"),
        ("another peer", _wg(KEYS["gpu"], {KEYS["stranger"]: 4}), "fail", "does not have vps's key"),
        (
            "an additional peer",
            _wg(KEYS["gpu"], {KEYS["vps"]: 4, KEYS["stranger"]: 4}),
            "fail",
            "which the machine's description does not name",
        ),
        (
            "never",
            _wg(KEYS["gpu"], {KEYS["vps"]: None}),
            "fail",
            "no handshake, ever (148 bytes sent, none received)",
        ),
        ("stale", _wg(KEYS["gpu"], {KEYS["vps"]: 200}), "fail", "last handshake 20"),
        ("days", _wg(KEYS["gpu"], {KEYS["vps"]: 200_000}), "fail", "56 h ago"),
        ("future", _wg(KEYS["gpu"], {KEYS["vps"]: -900}), "warn", "in the future"),
        ("MTU", _text("/sys/class/net/wg0/mtu", "1280\n"), "warn", "MTU 1280"),
        (
            "no permission",
            _output("wg", "Unable to access interface wg0: Operation not permitted\n", 1),
            "unknown",
            "Operation not permitted",
        ),
        ("garbage", _output("wg", f"{KEYS['gpu']}\n"), "unknown", "not a dump"),
    ],
    "ports": [
        ("an engine beyond loopback", _exposed, "fail", "listens on 0.0.0.0"),
        (
            "a worker beyond loopback",
            lambda h: h.sockets.append(("tcp", "0.0.0.0", 29500, 700)),
            "warn",
            "29500/tcp of VLLM",
        ),
        ("no gateway", lambda h: h.sockets.pop(1), "fail", "no process listens on 127.0.0.1"),
        ("the gateway on all addresses", _gateway_on_all_addresses, "fail", "the site has 127.0.0.1"),
        ("no SSH", lambda h: h.sockets.pop(2), "fail", "no process listens on 22/tcp"),
        ("another process", lambda h: h.sockets.append(("tcp", "0.0.0.0", 5432, 950)), "warn", "0.0.0.0:5432/tcp"),
    ],
    "units": [
        ("failed", lambda h: h.units(nftables="failed"), "fail", "failed (exit-code)"),
        ("stopped", lambda h: h.units(appliance_gateway="inactive"), "fail", "inactive"),
        ("starting", lambda h: h.units(appliance_gateway="activating"), "warn", "activating"),
        ("unknown to systemd", lambda h: h.units(nftables="not-found"), "fail", "does not exist"),
        (
            "no systemd",
            _output("systemctl", "System has not been booted with systemd\n", 1),
            "unknown",
            "not been booted",
        ),
    ],
    "notices": [
        ("stopped at once", _remove(SENDER), "fail", "the sender does not run"),
        ("stopped or hangs", _sender(at=-600.0), "fail", "the sender does not run since 10 min"),
        ("another version", _text(SENDER, '{"at": 1}'), "fail", "the sender does not run"),
        (
            "token",
            _sender(waiting=2, misconfigured=True, problem="Telegram does not accept the token (401)"),
            "fail",
            "2 waiting, none can be sent: Telegram does not accept the token (401)",
        ),
        (
            "no line",
            _sender(waiting=1, due_since=-3600.0, problem="no connection"),
            "warn",
            "1 waiting, the oldest for 60 min: no connection",
        ),
        ("refused", _sender(refused=3), "warn", "3 were refused"),
        ("a short outage", _sender(waiting=1, due_since=-60.0), "ok", "1 waiting"),
    ],
    "ups": [
        ("upsd is down", _output("upsc", "", 1), "fail", "cannot be read"),
        ("on battery", _output("upsc", "ups.status: OB DISCHRG\n"), "warn", "runs on battery"),
        ("an old battery", _output("upsc", "ups.status: OL RB\n"), "warn", "new battery"),
        ("a false low battery", _output("upsc", "battery.charge: 100\nups.status: OL LB\n"), "warn", "at 100 %"),
        ("not charged", _output("upsc", "battery.charge: 30\nups.status: OL\n"), "warn", "battery at 30 %"),
        ("too much load", _output("upsc", "ups.load: 90\nups.status: OL\n"), "warn", "load 90 %"),
    ],
    "fit": [("too large", _too_large, "fail", "GiB")],
    "gateway": [("down", _no_gateway, "fail", "does not respond on 127.0.0.1:1")],
    "engines": [("no gateway", _no_gateway, "unknown", "unknown without the gateway")],
    "gateways": [("down", _no_gateways, "fail", "does not respond")],
    "assistant": [
        ("no socket", _remove("/run/appliance-assistant/assistant.sock"), "fail", "is not a socket"),
        ("no acting socket", _remove("/run/appliance-acting/acting.sock"), "fail", "acting.sock is not a socket"),
        ("open to all", _mode("/run/appliance-acting/acting.sock", 0o666), "fail", "has the permissions 666"),
        ("its database", lambda h: h.assistant.update(status=503), "fail", "does not respond (status 503)"),
        (
            "another embedder",
            _reports(stores_of_another_embedder=2),
            "warn",
            "2 of 3 stores have vectors of another",
        ),
        ("no embedder yet", _reports(stores_of_another_embedder=None), "unknown", "has not responded yet"),
        (
            "stuck files",
            _reports(files_waiting=7, oldest_file_s=9000.0),
            "warn",
            "7 files wait, the oldest since 2.5",
        ),
        ("many chats", _reports(chats_waiting=400), "warn", "400 ended chats wait"),
        (
            "Qdrant is down",
            _reports(qdrant={"error": "Qdrant cannot be reached (ConnectError)"}),
            "fail",
            "reached",
        ),
        ("Qdrant is open", _reports(qdrant={"open": True}), "fail", "accepts requests without a key"),
        ("Qdrant is building", _reports(qdrant={"incomplete": 1}), "warn", "1 large stores are not complete"),
    ],
    "telegram": [
        ("no socket", _remove("/run/appliance-telegram-acting/acting.sock"), "fail", "is not a socket"),
        ("open to all", _mode("/run/appliance-telegram-acting/acting.sock", 0o666), "fail", "the permissions 666"),
        ("no token", _remove("/run/credentials/appliance-telegram.service/token"), "unknown", "does not exist"),
        ("a rejected token", _rejected_token, "fail", "does not accept the token (401)"),
        ("no Bot API", _no_bot_api, "warn", "does not respond (ConnectError)"),
    ],
    "certificate": [
        ("no file", _remove("/var/lib/acme/llm.example.org/fullchain.pem"), "fail", "is missing"),
        (
            "no certificate",
            _text("/var/lib/acme/llm.example.org/fullchain.pem", "x"),
            "unknown",
            "is not a certificate",
        ),
        ("about to expire", lambda h: setattr(h, "now", h.now + 65 * 86400), "warn", "14 days left"),
        ("almost expired", lambda h: setattr(h, "now", h.now + 77 * 86400), "fail", "2 days left"),
        ("expired", lambda h: setattr(h, "now", h.now + 90 * 86400), "fail", "expired 10.0 days ago"),
        ("not begun", lambda h: setattr(h, "now", h.now - 86400), "fail", "is valid only in 1.0 days"),
        (
            "another name",
            lambda h: h.machine["edge"].update(domain="chat.example.org"),
            "fail",
            "not for chat.example.org",
        ),
        ("not served", _no_nginx, "fail", "serves none on port 1"),
        ("not trusted", lambda _: None, "fail", "clients reject it"),
    ],
    "edge": [("down", _no_nginx, "fail", "ConnectionRefusedError")],
    "backup": [
        ("old", lambda h: h.backup(last_success=h.now - 27 * 3600), "fail", "is 27 h old"),
        ("none yet", lambda h: h.backup(last_success=None), "fail", "no backup has succeeded"),
        ("failed check", lambda h: h.backup(failed={"check": "damaged"}), "fail", "the step check failed: damaged"),
        ("failed drill", lambda h: h.drill(failed="the sums differ"), "fail", "drill failed: the sums differ"),
        ("old drill", lambda h: h.drill(last_success=h.now - 9 * 86400), "fail", "9 days old"),
        ("damaged record", _text("/var/lib/appliance-backup/vps.record.json", "{"), "unknown", "is not a record"),
        ("damaged plan", _text("/etc/appliance/backup.json", "{}"), "unknown", "backup.json"),
    ],
    "pool": [
        ("degraded", _text("/proc/spl/kstat/zfs/tank/state", "DEGRADED\n"), "fail", "is DEGRADED"),
        ("absent", _remove("/proc/spl/kstat/zfs/tank"), "fail", "is not imported"),
    ],
}

CASES = [(name, *case) for name, cases in DEFECTS.items() for case in cases]
"""Every defect: check, name, change, level, and a part of the finding."""

ON_VPS = {"gateways", "certificate", "edge"}
"""Checks of a VPS; the others run on a GPU host."""


def host_of(check: str, request: pytest.FixtureRequest) -> FakeHost:
    host: FakeHost = request.getfixturevalue("vps" if check in ON_VPS else "gpu")
    return host


def defective_host(check: str, name: str, defect: Defect, request: pytest.FixtureRequest) -> FakeHost:
    """Return a healthy host of the check's kind with one ``defect``."""
    host = host_of(check, request)
    if name == "not trusted":
        # Not a part of the host, but of the environment of the doctor.
        request.getfixturevalue("monkeypatch").setenv("SSL_CERT_FILE", "/dev/null")
    else:
        defect(host)
    return host
