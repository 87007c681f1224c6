"""Runs llama.cpp's own C++ server with our command lines: the test package embeds it and has no command line.

Each flag of :mod:`appliance.engines.llamacpp` becomes the server's parameter of the same meaning. An unknown flag
ends the program, as in llama-server, so that a new flag of ours must be added here. ``--override-kv`` has
no parameter in the package, so the file must have these values already.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path

import xllamacpp

ROOT = Path(__file__).resolve().parents[2]

POOLING = {
    kind: getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{kind.upper()}")
    for kind in ("none", "mean", "cls", "last", "rank")
}
FLASH = {
    "auto": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
LOAD_MODES = {
    "none": xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE,
    "mmap": xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP,
    "mlock": xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MLOCK,
    "mmap+mlock": xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP_MLOCK,
    "dio": xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_DIRECT_IO,
}


def program(folder: Path) -> Path:
    """Write an executable that runs this module, and return its path: the ``command`` of an engine."""
    path = folder / "llama-server"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.llamacpp.server_command import main\nmain()\n"
    )
    path.chmod(0o755)
    return path


def parser() -> ArgumentParser:
    """Return the parser of our flags."""
    flags = ArgumentParser(prog="llama-server", allow_abbrev=False)
    for name in ("model", "alias", "host", "pooling", "slot-save-path"):
        flags.add_argument(f"--{name}", default="")
    for name in ("port", "ctx-size", "threads", "batch-size", "ubatch-size", "n-cpu-moe"):
        flags.add_argument(f"--{name}", type=int, default=0)
    flags.add_argument("--parallel", type=int, default=1)
    flags.add_argument("--cache-ram", type=int, default=8192)
    # `all` in later builds, a number in earlier ones.
    flags.add_argument("--n-gpu-layers", default="0")
    flags.add_argument("--override-kv", action="append", default=[])
    flags.add_argument("--load-mode", choices=LOAD_MODES, default=os.environ.get("LLAMA_ARG_LOAD_MODE"))
    flags.add_argument("--flash-attn", choices=("on", "off", "auto"), default="auto")
    flags.add_argument("--numa", choices=("distribute", "isolate", "numactl"))
    for name in ("offline", "metrics", "jinja", "embedding", "reranking", "cpu-moe"):
        flags.add_argument(f"--{name}", action="store_true")
    flags.add_argument("--webui", action=BooleanOptionalAction, default=True)
    return flags


def parameters(args: Namespace) -> xllamacpp.CommonParams:
    """Return the server's parameters for the flags."""
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.model_alias = {args.alias}
    params.hostnames = [args.host]
    params.port = args.port
    params.n_ctx = args.ctx_size
    params.n_parallel = args.parallel
    params.cache_ram_mib = args.cache_ram
    params.n_gpu_layers = -1 if args.n_gpu_layers == "all" else int(args.n_gpu_layers)
    params.ui = args.webui
    params.offline = args.offline
    params.endpoint_metrics = args.metrics
    params.use_jinja = args.jinja
    params.embedding = args.embedding or args.reranking
    params.slot_save_path = args.slot_save_path
    # Free memory of a card does not exist here.
    params.fit_params = False
    if args.threads:
        params.cpuparams.n_threads = args.threads
    if args.batch_size:
        params.n_batch = args.batch_size
    if args.ubatch_size:
        params.n_ubatch = args.ubatch_size
    if args.reranking:
        params.pooling_type = POOLING["rank"]
    if args.pooling:
        params.pooling_type = POOLING[args.pooling]
    if args.load_mode:
        params.load_mode = LOAD_MODES[args.load_mode]
    params.flash_attn_type = FLASH[args.flash_attn]
    if args.numa:
        params.numa = getattr(xllamacpp.ggml_numa_strategy, f"GGML_NUMA_STRATEGY_{args.numa.upper()}")
    if args.cpu_moe or args.n_cpu_moe:
        layers = "\\d+" if args.cpu_moe else "|".join(map(str, range(args.n_cpu_moe)))
        params.tensor_buft_overrides = f"blk\\.({layers})\\.ffn_(up|down|gate)_exps=CPU"
    return params


def main() -> None:
    """Serve until SIGTERM."""
    args = parser().parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = xllamacpp.Server(parameters(args))
    print(f"listening on {server.listening_address}", flush=True)
    while not ended.wait(1):
        pass
    # The C++ server ends with the process; its own destructor waits for connections that are kept open.
    os._exit(0)


if __name__ == "__main__":
    main()
