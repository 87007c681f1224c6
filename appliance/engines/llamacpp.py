"""llama.cpp's server: the second kind of engine, for GGUF weights and experts in RAM."""

from __future__ import annotations

import re

from appliance.contract.model import Engine, Model
from appliance.engines.recipe import recipe_of
from appliance.engines.vllm import option_words

LOAD_FLAGS = ("load-mode", "mlock", "mmap", "no-mmap", "direct-io")
"""Flags with which a site chooses the way of loading by itself."""

LOCKED_IN_RAM = {"LLAMA_ARG_MLOCK": "1", "LLAMA_ARG_LOAD_MODE": "mmap+mlock"}
"""Mapped and locked weights. Builds before 10114 read the first variable, later ones the second."""

END_TOKEN = 151643
"""The id of ``<|endoftext|>``, whose hidden state is the vector of Qwen3-Embedding of every size."""


def build(engine: Engine, model: Model, replica: int) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment of replica number ``replica``.

    ``--ctx-size`` is the size of the whole KV cache, which the server divides among its ``--parallel`` slots. Their
    product gives each slot ``context`` tokens.
    """
    argv = [engine.command or "llama-server"]
    argv += ["--model", model.source] if model.is_folder else ["--hf-repo", model.source]
    argv += ["--alias", engine.model, "--host", "127.0.0.1", "--port", str(engine.port + replica)]
    argv += ["--ctx-size", str(engine.context * engine.concurrency), "--parallel", str(engine.concurrency)]
    # Users reach the gateway alone, so the server's own page is off; weights are fetched beforehand.
    argv += ["--no-webui", "--offline", "--metrics", "--jinja"]
    argv += _pooling(engine, model)
    environment: dict[str, str] = {}
    if engine.device == "cpu":
        argv += ["--n-gpu-layers", "0"]
    else:
        cards = ",".join(map(str, engine.cards(replica)))
        if engine.device == "vulkan":
            # ggml's own choice of devices: the loader of Vulkan has none.
            environment["GGML_VK_VISIBLE_DEVICES"] = cards
        else:
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            environment["CUDA_VISIBLE_DEVICES"] = cards
        if "n-gpu-layers" not in engine.options:
            argv += ["--n-gpu-layers", "999"]
    if engine.experts_in_ram and engine.options.keys().isdisjoint(LOAD_FLAGS):
        environment |= LOCKED_IN_RAM
    for flag, value in engine.options.items():
        argv += option_words(flag, value)
    return argv, environment


def on_processor(engine: Engine, cpuinfo: str) -> list[str]:
    """Return the words that fit experts in RAM to the processor of ``cpuinfo``; none for another engine.

    A thread for each physical core reads memory fastest. With two sockets, ``--numa distribute`` spreads the
    threads, and the pages that each of them touches first, over the nodes.
    """
    if not engine.experts_in_ram:
        return []
    sockets = set(re.findall(r"^physical id\s*:\s*(\d+)", cpuinfo, re.MULTILINE))
    cores = set(re.findall(r"^physical id\s*:\s*(\d+)(?:\n.+)*?\ncore id\s*:\s*(\d+)", cpuinfo, re.MULTILINE))
    words = []
    if cores and "threads" not in engine.options:
        words += ["--threads", str(len(cores))]
    if len(sockets) > 1 and "numa" not in engine.options:
        words += ["--numa", "distribute"]
    return words


def _pooling(engine: Engine, model: Model) -> list[str]:
    """Return the words for embeddings or scores.

    A text must fit into one physical batch. GGUF files of Qwen3-Embedding from before August 2025 name another end
    token, or append none (ggml-org/llama.cpp#14252, #14314): the vector would be that of the last word.
    """
    if model.task == "generate":
        return []
    words = ["--reranking"] if model.task == "rerank" else ["--embedding"]
    if not {"batch-size", "ubatch-size"} & engine.options.keys():
        words += ["--batch-size", str(engine.context), "--ubatch-size", str(engine.context)]
    if recipe_of(model) == "qwen3-embedding":
        if "pooling" not in engine.options:
            words += ["--pooling", "last"]
        words += ["--override-kv", "tokenizer.ggml.add_eos_token=bool:true"]
        words += ["--override-kv", f"tokenizer.ggml.eos_token_id=int:{END_TOKEN}"]
    return words
