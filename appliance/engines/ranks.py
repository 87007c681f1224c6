"""The command line and the environment of one rank of an engine over several hosts.

Pure. The first host of ``nodes`` has rank 0 and the HTTP server; the other ranks run vLLM without one ("headless").
"""

from __future__ import annotations

import hashlib
import json

from appliance.contract.model import Engine, HostLink, Site
from appliance.errors import UsageError

EXECUTE_TIMEOUT_S = 30
"""Seconds after which a step of a frozen rank times out. vLLM's own default of 300 would hold every request for
five minutes."""

HEADLESS = (
    "import sys\n"
    "from vllm.entrypoints.cli.serve import ServeSubcommand\n"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    "parser = FlexibleArgumentParser()\n"
    "serve = ServeSubcommand()\n"
    "serve.subparser_init(parser.add_subparsers())\n"
    "arguments = parser.parse_args(['serve', *sys.argv[1:]])\n"
    "serve.validate(arguments)\n"
    "serve.cmd(arguments)\n"
)
"""The program of a rank without an HTTP server. The module of the API server has no such mode, and the script
``vllm``, which has it, does not run with the CPU build."""

RAY_PORT = 6379
"""Port of the head of a Ray cluster."""


def links_of(site: Site, engine: Engine) -> tuple[HostLink, ...]:
    """Return the links of the hosts of ``engine`` in the order of the ranks, as far as the site has them."""
    return tuple(link for host in engine.nodes if (link := site.hosts[host].link) is not None)


def on_rank(
    site: Site, engine: Engine, rank: int, *, argv: list[str], environment: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return ``argv`` and ``environment`` of the leader, changed for ``rank``.

    Raises :class:`UsageError` for a rank that does not exist, or that a Ray cluster runs.
    """
    hosts = engine.nodes
    if not 0 <= rank < len(hosts):
        raise UsageError(f"--rank {rank}: the engine has the ranks 0 to {len(hosts) - 1}, on {', '.join(hosts)}")
    links = links_of(site, engine)
    own = links[rank]
    environment = environment | {
        "VLLM_HOST_IP": own.address,
        "GLOO_SOCKET_IFNAME": own.interface,
        # NCCL takes a name for the beginning of one, unless it follows "=".
        "NCCL_SOCKET_IFNAME": f"={own.interface}",
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(EXECUTE_TIMEOUT_S),
    }
    if engine.distributed == "ray":
        if rank > 0:
            raise UsageError(f'--rank {rank}: with distributed = "ray", a Ray node of yours runs on {hosts[rank]}')
        # Ray's cards are those of its nodes.
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        environment |= {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": f"{own.address}:{RAY_PORT}"}
        return [*argv, "--distributed-executor-backend", "ray"], environment
    if engine.on_cards:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, engine.rank_cards(rank)))
    argv = [*argv, "--distributed-executor-backend", "mp"]
    argv += ["--nnodes", str(len(hosts)), "--node-rank", str(rank)]
    argv += ["--master-addr", links[0].address, "--master-port", str(engine.master_port)]
    if rank > 0:
        program, _, _, *words = argv
        argv = [program, "-c", HEADLESS, *words, "--headless"]
    return argv, environment


def digest_of(site: Site, engine: Engine) -> str:
    """Return a digest of all that the ranks of ``engine`` must have in common.

    The Python of its environment is not part of it: the version of vLLM is compared by itself.
    """
    common = {
        "engine": engine.model_dump(mode="json", exclude={"command"}),
        "model": site.models[engine.model].model_dump(mode="json"),
        "links": [link.address for link in links_of(site, engine)],
    }
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()
