"""The two hosts of a site as booted machines, connected by a cable, with every rendered unit of ours."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.booted.machine import SOURCE, BootedMachine, found, python_program
from tests.booted.programs import NVIDIA_SMI, POLKITD, REPLACE_SECRET, scripts
from tests.fakes.bot_api import TOKEN
from tests.network.site import keypair
from tests.nix import rendered
from tests.nix.rendered import RenderedHost
from tests.nix.storepaths import StoreFolder
from tests.nix.unitfile import UnitFile

STORE = "/opt/store"
GPU = "tests/booted/gpu.nix"
"""The GPU host with the mock engine and all units."""
PUBLIC = {"gpu": "203.0.113.50", "vps": "203.0.113.5"}
"""Addresses on the cable. hosts/gpu.nix connects to that of the VPS."""
ACCOUNTS = """u appliance-gateway - - -
u appliance-assistant - - -
u appliance-notify - - -
u nginx - - -
u acme - - -
m acme nginx
"""
"""The accounts of NixOS, for systemd-sysusers."""
OUTBOX = """d /var/lib/appliance-notices 2770 root appliance-notify
d /var/lib/appliance-notices/sending 0770 appliance-notify appliance-notify
d /var/lib/appliance-notices/refused 0770 appliance-notify appliance-notify
"""
"""The folders of modules/notify.nix, for systemd-tmpfiles."""
ACTING = """d /run/appliance-acting 2750 appliance-gateway appliance-assistant
d /run/appliance-assistant-metrics 0755 appliance-assistant appliance-assistant
"""
"""The folders of modules/assistant.nix, for systemd-tmpfiles."""
WEIGHTS = "weights"
MODEL = "Qwen/Qwen3-30B-A3B"
ADMIN_TOKEN = "token-of-the-admin-api"
ALERT = "#!/bin/sh\nexec cat >> /var/lib/appliance/trial/received\n"
"""The site's program for alerts; the sandbox of its unit lets it write there."""
WIREGUARD = """[Unit]
Description=WireGuard in user space, since the kernel of this machine has none
Before=wireguard-wg0.service
[Service]
Type=forking
Environment=WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD=1
ExecStart=/usr/bin/wireguard-go wg0
"""


def own_unit(name: str) -> bool:
    """Return whether a module of ours defines a unit, or enables the module of NixOS that does."""
    starts = ("appliance-", "acme-", "nftables.", "nginx", "nvidia-persistenced.", "polkit", "sshd", "wireguard-")
    return name.startswith(starts)


def nginx_conf(text: str) -> str:
    """Return nginx.conf with the temporary folders that nixpkgs compiles into its nginx."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"{kind}_temp_path /tmp/nginx_{kind};\n" for kind in kinds)
    return text.replace("\nhttp {", f"\nhttp {{\n{own}")


def machine_json(host: RenderedHost) -> str:
    """Return the doctor's description of a host, with the kernel of this machine."""
    description = json.loads(host.etc_text("appliance/machine.json"))
    if "cards" in description:
        description["cards"]["pins"]["kernel"] = ".".join(os.uname().release.split(".")[:2])
        mode = re.search(r"\[(\w+)\]", Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text())
        assert mode
        description["memory"]["transparent_hugepages"] = mode[1]
    return json.dumps(description)


DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.71.05  Release Build\n"
PROC = "[Service]\nBindReadOnlyPaths=/opt/proc/driver:/proc/driver /opt/proc/cmdline:/proc/cmdline\n"
"""Files of /proc that the smoke test reads; the kernel of this machine has others."""


@dataclass
class BootedHost:
    """A host: its rendered texts, and the machine that runs them."""

    rendered: RenderedHost
    machine: BootedMachine

    def __post_init__(self) -> None:
        made = self.machine
        self.store = StoreFolder(
            self.rendered,
            made.root / STORE.lstrip("/"),
            prefix=STORE,
            scripts=scripts(),
            replaced={"/run/current-system/systemd/bin/": "/usr/bin/"},
            found=found,
            adapted={"nginx.conf": nginx_conf},
        )
        made.write("usr/local/lib/nvidia-smi.py", NVIDIA_SMI)
        made.write("usr/local/lib/replace-secret.py", REPLACE_SECRET)
        made.write("usr/local/bin/polkitd", POLKITD, executable=True)
        made.write("etc/sysusers.d/appliance.conf", ACCOUNTS)
        made.write("etc/tmpfiles.d/notices.conf", OUTBOX + ACTING)
        made.write("etc/sysctl.d/60-nixos.conf", self._sysctl())
        made.write("etc/appliance/machine.json", machine_json(self.rendered))
        if "appliance/appliance.json" in self.rendered.etc:
            made.write("etc/appliance/appliance.json", self.rendered.etc_text("appliance/appliance.json"))

    def _sysctl(self) -> str:
        """Return the settings of a network, which each machine has of its own."""
        # NixOS has the first line of systemd's own sysctl.d/50-default.conf.
        lines = ["net.ipv4.ping_group_range=0 2147483647"]
        for line in self.rendered.etc_text("sysctl.d/60-nixos.conf").splitlines():
            lines += [line] if line.startswith("net.") else []
        return "\n".join([*lines, ""])

    def text(self, name: str) -> str:
        """Return the text of a rendered unit, with the programs of the machine."""
        return self.store.unit_text(self.rendered.unit(name))

    def install(self, names: list[str]) -> None:
        """Write units, and the links that start them."""
        for name in names:
            self.machine.install(self.rendered.unit(name), self.text(name))


def rendered_hosts(folder: Path) -> Mapping[str, RenderedHost]:
    """Return both hosts with keys of the tunnel; ``folder`` gets the private keys."""
    public = {name: keypair(folder, name) for name in PUBLIC}

    def changes(peer: str) -> str:
        return json.dumps({"appliance": {"network": {"wireguard": {"peers": {peer: {"publicKey": public[peer]}}}}}})

    gpu, vps = rendered.host("gpu", GPU, changes=changes("vps")), rendered.host("vps", changes=changes("gpu"))
    return {"gpu": gpu, "vps": vps}


def connect(machines: Mapping[str, BootedMachine]) -> None:
    """Connect the booted hosts by a cable."""
    one, other = (str(machines[name].leader()) for name in PUBLIC)
    # Each end is made in its namespace at once: none remains on this machine.
    ends = ["eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", other]
    subprocess.run(["ip", "link", "add", *ends], check=True)
    for name, address in PUBLIC.items():
        machines[name].run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        machines[name].run("ip", "link", "set", "eth0", "up")


def prepare(host: BootedHost, folder: Path) -> None:
    """Write what a host has before its first boot: keys, secrets, weights."""
    made, name = host.machine, host.rendered.name
    made.write("etc/ssh/sshd_config", "UsePAM no\nPasswordAuthentication no\n")
    for kind in ("rsa", "ed25519"):
        made.hide(f"etc/ssh/ssh_host_{kind}_key")
    made.write("var/lib/wireguard/wg0.key", (folder / f"{name}.key").read_text())
    made.install(UnitFile("wireguard-go.service", WIREGUARD, required_by=("wireguard-wg0.service",)), WIREGUARD)
    if name == "gpu":
        made.write("usr/local/bin/alert", ALERT, executable=True)
        made.write("opt/proc/driver/nvidia/version", DRIVER)
        made.write("opt/proc/cmdline", " ".join(host.rendered.kernel_parameters) + "\n")
        made.write("etc/systemd/system/appliance-smoke.service.d/proc.conf", PROC)
        made.write("run-secrets/admin-token", ADMIN_TOKEN)
        made.write("run-secrets/telegram-token", TOKEN)
        bot_api = python_program(f"{SOURCE}/tests/fakes/bot_api.py", SOURCE)
        made.write("usr/local/bin/bot-api", bot_api, executable=True)
        system = str(rendered.source("sops-nix"))
        lines = ["C /run/secrets - - - - /run-secrets"]
        lines += [f"L /run/{name}-system - - - - {system}" for name in ("booted", "current")]
        made.write("etc/tmpfiles.d/nixos.conf", "\n".join([*lines, ""]))
        made.link("nix/var/nix/profiles/system-1-link", system)
        revision = json.loads(host.rendered.etc_text("appliance/appliance.json"))["models"]["qwen3-30b"]["revision"]
        snapshot = f"hub/models--{MODEL.replace('/', '--')}/snapshots/{revision}"
        made.write(f"var/lib/appliance-models/{snapshot}/model.safetensors", WEIGHTS)
        digest = hashlib.sha256(WEIGHTS.encode()).hexdigest()
        line = f"{digest}  {len(WEIGHTS)}  {MODEL}@{revision}  model.safetensors\n"
        made.write("etc/appliance/models.lock", line)
        polkit = host.rendered.etc_text("polkit-1/rules.d/10-nixos.rules")
        made.write("etc/polkit-1/rules.d/10-nixos.rules", polkit)
