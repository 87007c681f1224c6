"""A real Ray cluster over two hosts in namespaces, and an engine of ours in it.

As root: ``python -m tests.nodes.ray_cluster --python FILE``. FILE is the Python of an environment with Ray and with
vLLM for the CPU. The locked one does not contain Ray. vLLM for the CPU joins the cluster and refuses to compute in
it, so the engine ends there. Two tasks of Ray compute one sum over both hosts in its place. Both hosts have the
firewall of the rendered NixOS hosts.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
from pathlib import Path
from typing import Any

from appliance.engines.ranks import RAY_PORT
from tests.conftest import ROOT, wait_until
from tests.network.machine import NetworkMachine
from tests.nodes.failures import RankFailureTable, connects, listening
from tests.nodes.rules import rules_of
from tests.nodes.site_of_two import ADDRESSES, HostOfTwo, machines, site_of_two

WORKER_PORTS = ("--min-worker-port", "40000", "--max-worker-port", "40999")
"""Workers listen outside the kernel's range by default."""
JOIN_S = 300
PORT = 8101

SUM = """
import os, sys, ray
ray.init(log_to_driver=False)
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

@ray.remote(num_cpus=1)
def one(rank, leader):
    import socket, torch, torch.distributed as dist
    os.environ["GLOO_SOCKET_IFNAME"] = "lan0"
    dist.init_process_group("gloo", init_method=f"tcp://{leader}:33000", rank=rank, world_size=2)
    value = torch.tensor([float(rank + 1)])
    dist.all_reduce(value)
    return socket.gethostname(), value.item()

group = placement_group([{"CPU": 1, "node:" + address: 0.01} for address in sys.argv[1:]], strategy="STRICT_SPREAD")
ray.get(group.ready(), timeout=120)
tasks = [
    one.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)).remote(index, sys.argv[1])
    for index in (0, 1)
]
print("SUM", sorted(ray.get(tasks, timeout=200)))
"""

NODES = "import ray; ray.init(log_to_driver=False); print('NODES', sum(one['Alive'] for one in ray.nodes()))"


class RayHost:
    """One host with a node of the cluster."""

    def __init__(self, machine: NetworkMachine, python: Path, token: str) -> None:
        self.machine = machine
        self.python = python
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": machine.write("/run/ray-token", token),
            "RAY_ADDRESS": f"{ADDRESSES['gpu']}:{RAY_PORT}",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.folder = machine.logs / f"ray-{machine.name}"
        self.node: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start the node. Each host has its own folder, because both share the disk of this machine."""
        own = ADDRESSES[self.machine.name]
        argv = [str(self.python.parent / "ray"), "start", *options, "--node-ip-address", own, "--num-cpus", "1"]
        argv += [*WORKER_PORTS, "--object-store-memory", "100000000", "--disable-usage-stats", "--block"]
        environment = dict(self.environment)
        if "--head" in options:
            del environment["RAY_ADDRESS"]
            argv += ["--temp-dir", str(self.folder)]
        self.node = self.machine.start("ray", argv, environment)

    def run(self, program: str, *words: str, timeout: float = 300, **environment: str) -> str:
        """Return what a driver on this host prints."""
        given = [f"{key}={value}" for key, value in {**self.environment, **environment}.items()]
        done = self.machine.try_run(
            "env", *given, str(self.python), "-c", program, *words, timeout=timeout
        )  # fmt: skip
        return done.stdout + done.stderr

    def text(self) -> str:
        """Return what the node has printed."""
        return self.machine.log("ray").read_text(errors="replace")


def site_of_ray(python: Path, model: Path, token_path: str) -> dict[str, Any]:
    """Return the site of the engine in the cluster."""
    site = site_of_two(python, model, PORT, distributed="ray")
    site["engines"]["big"]["environment"]["RAY_AUTH_TOKEN_PATH"] = token_path
    return site


def run(folder: Path, python: Path, table: RankFailureTable) -> None:
    """Make the cluster and record what is seen."""
    model = folder / "model"
    maker = str(ROOT / "appliance/models/tiny_qwen3.py")
    subprocess.run([str(python), maker, str(model)], check=True, capture_output=True)
    token = secrets.token_hex(32)
    with machines(folder, "gpu", "gpu2", "stranger") as made:
        over = {"distributed": "ray", "command": "/opt/vllm-ray/bin/python"}
        for name in ("gpu", "gpu2"):
            made[name].run("nft", "-f", made[name].write("/run/rules.nft", rules_of(name, **over)))
        head, other = (RayHost(made[name], python, token) for name in ("gpu", "gpu2"))
        thief = RayHost(made["stranger"], python, secrets.token_hex(32))
        head.start("--head", "--port", str(RAY_PORT), "--include-dashboard", "false")
        wait_until(lambda: "runtime started" in head.text(), "the head runs", JOIN_S)

        other.start("--address", other.environment["RAY_ADDRESS"])
        wait_until(lambda: "runtime started" in other.text(), "the node runs", JOIN_S)
        wait_until(lambda: "NODES 2" in head.run(NODES), "both nodes are alive", JOIN_S)
        table.row("both hosts form a cluster", "two nodes through the firewall of the hosts", "2 nodes", True)

        seen = head.run(SUM, ADDRESSES["gpu"], ADDRESSES["gpu2"])
        summed = seen.rpartition("SUM ")[2].strip() if "SUM " in seen else seen[-300:]
        table.row("a sum over both hosts", "each host has the sum 3", summed,
                  "[('gpu', 3.0), ('gpu2', 3.0)]" in seen)  # fmt: skip

        site = folder / "site.json"
        site.write_text(json.dumps(site_of_ray(python, model, head.environment["RAY_AUTH_TOKEN_PATH"])))
        leader = HostOfTwo(made["gpu"], 0, site)
        leader.start()
        refused = "current platform cpu does not support ray"
        try:
            wait_until(lambda: refused in leader.text(), "vLLM refuses Ray on processors", JOIN_S)
            joined = "Connected to Ray cluster" in leader.text()
        finally:
            leader.stop()
        table.row("the engine's command", "vLLM joins the cluster; its CPU build then refuses Ray",
                  f"joined: {joined}; \"{refused}\"", joined)  # fmt: skip

        ports = listening(leader)
        third = [port for port in ports if connects(made["stranger"], ADDRESSES["gpu"], port)]
        table.row("a third host tries the ports of the head", "no port opens",
                  f"{len(ports)} ports beyond loopback: it reaches {len(third)}",
                  RAY_PORT in ports and not third)  # fmt: skip
        for machine in (made["gpu"], made["gpu2"]):
            machine.run("nft", "flush", "ruleset")
        third = [port for port in ports if connects(made["stranger"], ADDRESSES["gpu"], port)]
        table.row("the same without the firewall (control)", "it reaches the port of the head",
                  f"it reaches {len(third)} ports", RAY_PORT in third)  # fmt: skip
        seen = thief.run(NODES, timeout=400)
        denied = "NODES" not in seen and "token" in seen.lower()
        line = next((one.strip() for one in seen.splitlines() if "token" in one.lower()), seen[-200:])
        table.row("a third host with another token, without the firewall", "Ray refuses it", line, denied)


def main() -> int:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, metavar="FILE", help="a Python with vLLM and Ray")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the table to FILE")
    args = parser.parse_args()
    table = RankFailureTable()
    return table.run(lambda folder: run(folder, args.python, table), args.report)


if __name__ == "__main__":
    raise SystemExit(main())
