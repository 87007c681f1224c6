"""llama.cpp's server: the second kind of engine, for GGUF weights and experts in RAM."""

from __future__ import annotations

import re

from appliance.contract.model import Engine, Model
from appliance.engines.vllm import option

OURS = {
    "model": "model",
    "alias": "model",
    "hf-repo": "the model's source",
    "host": "nothing: engines listen on loopback",
    "port": "port",
    "api-key": "nothing: the gateway holds the keys",
    "ctx-size": "context and concurrency",
    "parallel": "concurrency",
    "embedding": "the model's task",
    "embeddings": "the model's task",
}
"""Flags we set ourselves, and the key of the configuration that sets them."""


def build(engine: Engine, model: Model, replica: int) -> tuple[list[str], dict[str, str]]:
    """argv and environment of replica number ``replica``.

    ``--ctx-size`` is the whole KV cache, which the server divides among its ``--parallel`` slots; so that each
    slot holds ``context`` tokens it is their product.
    """
    argv = [engine.command or "llama-server"]
    argv += ["--model", model.source] if model.is_folder else ["--hf-repo", model.source]
    argv += ["--alias", engine.model, "--host", "127.0.0.1", "--port", str(engine.port + replica)]
    argv += ["--ctx-size", str(engine.context * engine.concurrency), "--parallel", str(engine.concurrency)]
    # The server's own page and its model download have no place behind the gateway.
    argv += ["--no-webui", "--offline", "--metrics", "--jinja"]
    if model.task == "embed":
        argv += ["--embedding"]
    environment: dict[str, str] = {}
    if engine.device == "cpu":
        argv += ["--n-gpu-layers", "0"]
    else:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, engine.cards(replica)))
        if "n-gpu-layers" not in engine.options:
            argv += ["--n-gpu-layers", "999"]
    for flag, value in engine.options.items():
        argv += option(flag, value)
    return argv, environment


def check_options(engine: Engine) -> list[str]:
    """Faults of ``engine.options``; llama.cpp's binary is not pinned here, so only what is surely wrong."""
    faults = []
    for flag, value in engine.options.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", flag):
            faults.append(
                f"{flag!r} is no long flag; write it as llama-server --help does, without dashes in front"
            )
        elif flag in OURS:
            faults.append(f"{flag} is set by {OURS[flag]}; remove it from options")
        elif value is None:
            faults.append(f"{flag} has no value; remove it")
    return faults
