"""Checks the ``options`` of an engine: flags that the engine does not have, and flags that other keys set.

vLLM's flags are those of the pinned release (``vllm_flags.txt``, read from its own parser; a test compares the
two). llama.cpp's binary is not pinned, so only certain mistakes are reported for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files

from appliance.contract.model import Engine, Site
from appliance.contract.violation import suggest

VLLM_OURS = {
    "model": "model",
    "revision": "the model's revision",
    "tokenizer-revision": "the model's revision",
    "served-model-name": "model",
    "host": "nothing: engines listen on loopback",
    "port": "port",
    "uds": "port",
    "api-key": "nothing: the gateway holds the keys",
    "max-model-len": "context",
    "max-num-seqs": "concurrency",
    "tensor-parallel-size": "tensor_parallel",
    "pipeline-parallel-size": "pipeline_parallel",
    "nnodes": "nodes",
    "node-rank": "nodes",
    "headless": "nodes",
    "master-addr": "`link` of the first host of `nodes`",
    "master-port": "master_port",
    "gpu-memory-utilization": "gpu_memory_utilization",
    "device-memory-utilization": "gpu_memory_utilization",
    "shutdown-timeout": "shutdown_timeout_s",
    "device-ids": "gpus",
    "runner": "the model's task",
    "convert": "the model's task",
    "enable-lora": "`adapters` of the model",
    "lora-modules": "`adapters` of the model",
    "max-loras": "`adapters` of the model",
    "max-lora-rank": "`adapters` of the model",
    "enable-sleep-mode": "`sleep` of the engine",
    "allowed-media-domains": "gateway.media_domains",
}
"""Flags that the appliance sets, and the key of the configuration for each."""

GONE = {
    "speculative-decoding": "write speculative-config, a table such as {method = 'mtp'}",
    "draft-model": "write speculative-config = {model = ..., num_speculative_tokens = ...}",
    "enable-flash-attention": "leave it out: the attention backend is chosen for the card",
    "max-concurrent-requests": "set `concurrency` of the engine",
    "max-batch-size": "set `concurrency` of the engine",
    "swap-space": "leave it out: preempted sequences are recomputed",
    "num-scheduler-steps": "leave it out: scheduling is asynchronous by itself",
    "use-v2-block-manager": "leave it out: there is one block manager",
    "task": "set `task` of the model",
}
"""Flags of old notes and posts, and their replacements. vLLM 0.33.0's own parser rejects each of them."""

LLAMACPP_OURS = {
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
    "rerank": "the model's task",
    "reranking": "the model's task",
}
"""Flags of llama.cpp that the appliance sets, and the key of the configuration for each."""

LLAMACPP_REFUSED = {
    "tools": "runs shell commands and edits files for each client",
    "tools-runtime": "runs shell commands and edits files for each client",
    "agent": "runs shell commands and edits files for each client",
    "ui-mcp-proxy": "makes the engine a proxy to any address",
    "webui-mcp-proxy": "makes the engine a proxy to any address",
    "rpc": "gives other machines raw access to memory, without authentication",
    "models-dir": "loads other models than that of the site",
    "models-preset": "loads other models than that of the site",
    "media-path": "opens local files to requests",
    "path": "serves local files",
}
"""Flags of llama.cpp that give a shell, a proxy, files or memory to a request, with the reason of the refusal."""

MCP = re.compile(r"mcp(-.*)?")
"""Flags that connect the engine to MCP servers, which are programs that it starts."""

MOCK_OPTIONS = (
    "itl-ms",
    "ttft-ms",
    "load-delay-s",
    "tokens",
    "fail-load",
    "wake-delay-s",
    "capacity",
    "fail-sleep",
    "fail-wake",
    "bad-wake",
)
"""Flags of the mock engine."""


EMBEDDER_OPTIONS = ("threads",)
"""Flags of the small embedder."""

MAX_THREADS = 256


def check_options(site: Site) -> list[str]:
    """Return one line per option of ``site`` that its engine does not have or that another key sets."""
    return [
        f"engines.{name}.options: {error}"
        for name, engine in site.engines.items()
        for error in _CHECK[engine.kind](engine)
    ]


@cache
def known_flags() -> frozenset[str]:
    """Return the flags of the pinned vLLM, without leading dashes."""
    text = files("appliance.contract").joinpath("vllm_flags.txt").read_text()
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


def check_vllm(engine: Engine) -> list[str]:
    """Return the errors of ``engine.options``: unknown or removed flags, and flags that another key sets."""
    errors = []
    for flag, value in engine.options.items():
        bare = flag.lstrip("-")
        if value is None:
            errors.append(f"{flag} has no value; remove it")
        elif bare in VLLM_OURS:
            errors.append(f"{flag} is set by {VLLM_OURS[bare]}; remove it from options")
        elif bare in GONE:
            errors.append(f"vLLM has no {flag}; {GONE[bare]}")
        elif flag != bare:
            errors.append(f"{flag} has leading dashes; write {bare}")
        elif bare not in known_flags():
            errors.append(f"the pinned vLLM has no flag {flag}; {suggest(flag, sorted(known_flags()))}")
    return errors


def check_llamacpp(engine: Engine) -> list[str]:
    """Return certain errors of ``engine.options``; llama.cpp's binary is not pinned, so its flags are unknown."""
    errors = [
        f"environment.{name} sets a flag of llama.cpp; write it as an option, which is checked"
        for name in engine.environment
        if name.startswith("LLAMA_ARG_")
    ]
    for flag, value in engine.options.items():
        bare = flag.strip("-").removeprefix("no-")
        if value is not False and (bare in LLAMACPP_REFUSED or MCP.fullmatch(bare)):
            reason = LLAMACPP_REFUSED.get(bare, "starts programs that the model calls")
            errors.append(f"{flag} {reason}; remove it, tools run at the client")
        elif not re.fullmatch(r"[a-z][a-z0-9-]*", flag):
            errors.append(
                f"{flag!r} is not a long flag; write it as in llama-server --help, without the leading dashes"
            )
        elif flag in LLAMACPP_OURS:
            errors.append(f"{flag} is set by {LLAMACPP_OURS[flag]}; remove it from options")
        elif value is None:
            errors.append(f"{flag} has no value; remove it")
    return errors


def check_mock(engine: Engine) -> list[str]:
    """Return the errors of ``engine.options``: unknown flags."""
    return [
        f"the mock engine has no flag {flag}; it has {', '.join(MOCK_OPTIONS)}"
        for flag in engine.options
        if flag not in MOCK_OPTIONS
    ]


def check_embedder(engine: Engine) -> list[str]:
    """Return the errors of ``engine.options``: unknown flags, and values that are not a number of threads."""
    errors = []
    for flag, value in engine.options.items():
        if flag not in EMBEDDER_OPTIONS:
            errors.append(f"the embedder has no flag {flag}; it has {', '.join(EMBEDDER_OPTIONS)}")
        elif not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_THREADS:
            errors.append(f"{flag} = {value!r} is not a number from 1 to {MAX_THREADS}")
    return errors


_CHECK: dict[str, Callable[[Engine], list[str]]] = {
    "vllm": check_vllm,
    "llamacpp": check_llamacpp,
    "embedder": check_embedder,
    # Any option of this kind is a violation of the rules already.
    "http": lambda _: [],
    "mock": check_mock,
}
