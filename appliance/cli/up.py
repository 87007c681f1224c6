"""``appliance up``: the whole service on one machine, without Nix."""

from __future__ import annotations

import argparse
from pathlib import Path

from appliance.system.ports import port
from appliance.up import Options, up


def add_up(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance up``."""
    parser.add_argument(
        "--engine",
        choices=("vllm", "fake"),
        default="vllm",
        help="vLLM, or an engine without a model (%(default)s)",
    )
    parser.add_argument(
        "--model",
        choices=("auto", "tiny"),
        default="auto",
        help="auto: download Qwen if the hub can be reached; tiny: random weights (%(default)s)",
    )
    parser.add_argument("--port", metavar="PORT", help="port of the gateway; default: the one of --config")
    parser.add_argument(
        "--engine-port", metavar="PORT", help="port of the first engine replica; the others use the ports after it"
    )
    parser.add_argument("--once", action="store_true", help="end after the smoke test, with its exit code")
    parser.add_argument(
        "--engine-python",
        metavar="PATH",
        default=".venv-engine/bin/python",
        help="Python of the environment with vLLM (%(default)s)",
    )
    # Not the configuration of the host: `make up` runs in a clone.
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("examples/laptop.toml"),
        metavar="FILE",
        help="configuration of the site (%(default)s)",
    )
    parser.set_defaults(run=_up, long_run=True)


def _up(args: argparse.Namespace) -> int:
    options = Options(
        config=args.config,
        engine=args.engine,
        model=args.model,
        port=None if args.port is None else port(args.port, "--port (PORT=)"),
        once=args.once,
        engine_python=Path(args.engine_python).absolute(),
        base=Path.cwd(),
        engine_port=None if args.engine_port is None else port(args.engine_port, "--engine-port (ENGINE_PORT=)"),
    )
    return up(options)
