"""vLLM's command line.

Which flags ``options`` may hold, and which of them a key of the configuration sets, is in
:mod:`appliance.contract.engine_options`.
"""

from __future__ import annotations

import json
import sys

from pydantic import JsonValue

from appliance.contract.model import Engine, Model
from appliance.engines.recipe import ORIGINAL_RERANKER, RERANKER_TEMPLATE, recipe_of

MODULE = "vllm.entrypoints.openai.api_server"
"""The module to run. The script ``vllm`` requires a distribution of that name, and the CPU build has another."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_MAX_N_SEQUENCES": "16",
}
"""Variables of every vLLM engine. Weights are pinned and fetched beforehand, so an engine needs no network. vLLM's
own limit of parallel completions, 16384, would let one request fill the engine."""


ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
"""The variable with the settings of torch's allocators; ``PYTORCH_ALLOC_CONF`` takes precedence over it."""

PINNED_EXACTLY = "pinned_max_round_threshold_mb:1"
"""A setting of torch: pinned buffers have the size of their content. By default each is rounded up to a power of
two. The copy of 61 GB of expert weights then takes 78 GB of RAM."""

TRANSCRIBE_TOKENS = 4096
"""Tokens of a batch of an engine that transcribes. vLLM's own number is the context times the sequences at most,
and it must be at least the 1500 tokens of Whisper's 30 s of audio."""


def build(engine: Engine, model: Model, replica: int) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment of replica number ``replica``."""
    argv = [engine.command or sys.executable, "-m", MODULE, "--model", model.source]
    if not model.is_folder and model.revision is not None:
        argv += ["--revision", model.revision, "--tokenizer-revision", model.revision]
    argv += ["--served-model-name", engine.model, "--host", "127.0.0.1", "--port", str(engine.port + replica)]
    # One sequence more than the gateway uses: otherwise its canary would wait for a whole response, and be late.
    argv += ["--max-model-len", str(engine.context), "--max-num-seqs", str(engine.concurrency + 1)]
    argv += ["--shutdown-timeout", str(engine.shutdown_timeout_s)]
    options = dict(engine.options)
    if model.task in ("embed", "rerank"):
        argv += ["--runner", "pooling", "--convert", "classify" if model.task == "rerank" else "embed"]
        options = pooling_options(model) | options | _overrides(model, engine)
    if model.task == "transcribe":
        options = {"max-num-batched-tokens": TRANSCRIBE_TOKENS} | options
    if model.adapters:
        argv += ["--enable-lora", "--max-loras", str(len(model.adapters))]
        argv += ["--max-lora-rank", str(max(_lora_rank(adapter.rank) for adapter in model.adapters.values()))]
        modules = [f"{engine.model}:{name}={adapter.source}" for name, adapter in model.adapters.items()]
        argv += ["--lora-modules", *modules]
    environment = dict(ENVIRONMENT)
    if engine.sleep:
        # Its control paths listen on loopback only, and the gateway forwards none of them.
        argv.append("--enable-sleep-mode")
        environment["VLLM_SERVER_DEV_MODE"] = "1"
        environment[ALLOCATOR] = PINNED_EXACTLY
    if engine.device == "cpu":
        # VLLM_CPU_KVCACHE_SPACE accepts whole GiB only.
        argv += ["--kv-cache-memory-bytes", str(round(engine.kv_cache_gib * 2**30))]
        if engine.tensor_parallel > 1:
            argv += ["--tensor-parallel-size", str(engine.tensor_parallel)]
    else:
        argv += ["--tensor-parallel-size", str(engine.tensor_parallel)]
        argv += ["--gpu-memory-utilization", f"{engine.gpu_memory_utilization:g}"]
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, engine.cards(replica)))
        if engine.pipeline_parallel > 1:
            argv += ["--pipeline-parallel-size", str(engine.pipeline_parallel)]
    for flag, value in options.items():
        argv += option_words(flag, value)
    return argv, environment


def pins_exactly(engine: Engine) -> bool:
    """Return whether the pinned copy of an engine that sleeps has the size of its weights.

    The variables of the engine replace ours, so a site can drop the setting.
    """
    for name in ("PYTORCH_ALLOC_CONF", ALLOCATOR):
        if name in engine.environment:
            return PINNED_EXACTLY in engine.environment[name].split(",")
    return True


def pooling_options(model: Model) -> dict[str, JsonValue]:
    """Return the options of the recipe of ``model``, which the options of an engine replace."""
    match recipe_of(model):
        case "qwen3-reranker" | "qwen3-reranker-classifier":
            return {"chat-template": str(RERANKER_TEMPLATE)}
        case "qwen3-embedding":
            return {"pooler-config": {"pooling_type": "LAST", "use_activation": True}}
        case _:
            return {}


def _overrides(model: Model, engine: Engine) -> dict[str, JsonValue]:
    """Return ``hf-overrides`` with those of the model, unless there are none; the engine's own take precedence."""
    ours: dict[str, JsonValue] = dict(ORIGINAL_RERANKER) if recipe_of(model) == "qwen3-reranker" else {}
    if model.matryoshka:
        ours["is_matryoshka"] = True
    given = engine.options.get("hf-overrides", {})
    return {"hf-overrides": ours | given} if ours and isinstance(given, dict) else {}


NO_HOST = "no-media.invalid"
"""A host that cannot be resolved (RFC 6761): to vLLM an empty list means every host, and this one means none."""


def media_options(domains: tuple[str, ...]) -> list[str]:
    """Return the options that limit the hosts of media to ``domains``, in addition to the gateway's own check."""
    return ["--allowed-media-domains", *(domains or (NO_HOST,))]


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM 0.33.0 has kernels (``MaxLoRARanks`` in vllm/config/lora.py)."""


def _lora_rank(rank: int) -> int:
    return next(known for known in LORA_RANKS if known >= rank)


def option_words(flag: str, value: JsonValue) -> list[str]:
    """Return the words of one flag: ``true`` alone, ``false`` as ``--no-…``, tables as JSON, lists as several."""
    if value is True:
        return [f"--{flag}"]
    if value is False:
        return [f"--no-{flag}"]
    if isinstance(value, dict):
        return [f"--{flag}", json.dumps(value, separators=(",", ":"))]
    if isinstance(value, list):
        return [f"--{flag}", *(str(item) for item in value)]
    return [f"--{flag}", str(value)]
