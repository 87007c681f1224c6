"""The command lines of replicas. tests/vllm compares their flags with the real parser's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import JsonValue

from appliance.contract import engine_options
from appliance.contract.load import load
from appliance.contract.model import Engine, Model, Site
from appliance.engines import argv, llamacpp, vllm
from appliance.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
HYBRID = load(ROOT / "examples" / "eight-cards-hybrid.toml")


def command(site: Site, name: str) -> argv.EngineCommand:
    return argv.command(site, argv.find(site, name), ROOT)


def flag(words: tuple[str, ...] | list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_replicas_have_their_own_cards_and_ports() -> None:
    names = [replica.name for replica in argv.replicas(HYBRID)]
    assert names == ["planner", "agents.0", "agents.1", "agents.2", "agents.3", "embed"]
    third = command(HYBRID, "agents.2")
    assert flag(third.argv, "--port") == "8112"
    assert third.environment["CUDA_VISIBLE_DEVICES"] == "6"
    planner = command(HYBRID, "planner")
    assert flag(planner.argv, "--tensor-parallel-size") == "4"
    assert planner.environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_vllm_gets_loopback_offline_and_a_pinned_revision() -> None:
    one = command(HYBRID, "agents.0")
    assert flag(one.argv, "--host") == "127.0.0.1"
    assert flag(one.argv, "--revision") == HYBRID.models["qwen3-30b"].revision
    assert flag(one.argv, "--served-model-name") == "qwen3-30b"
    assert flag(one.argv, "--shutdown-timeout") == "30"
    most = HYBRID.engines["agents"].concurrency
    assert flag(one.argv, "--max-num-seqs") == str(most + 1), "the canary has a sequence of its own"
    assert one.environment["HF_HUB_OFFLINE"] == "1"
    assert "--api-key" not in one.argv


def test_folders_are_absolute_and_have_no_revision() -> None:
    planner = command(HYBRID, "planner")
    assert flag(planner.argv, "--model") == str(ROOT / "models/Qwen3-235B-A22B-Instruct-2507-FP8")
    assert "--revision" not in planner.argv


def test_only_an_engine_that_sleeps_has_control_paths() -> None:
    swap = load(ROOT / "examples" / "one-card-swap.toml")
    fast = command(swap, "fast")
    assert "--enable-sleep-mode" in fast.argv
    assert fast.environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert flag(fast.argv, "--host") == "127.0.0.1"
    assert fast.environment["PYTORCH_CUDA_ALLOC_CONF"] == "pinned_max_round_threshold_mb:1"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in command(HYBRID, "planner").environment
    assert "VLLM_SERVER_DEV_MODE" not in command(HYBRID, "planner").environment
    assert fast.environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_an_engine_fetches_media_from_named_hosts_only() -> None:
    assert flag(command(HYBRID, "planner").argv, "--allowed-media-domains") == "no-media.invalid"
    site = HYBRID.model_dump(mode="python", exclude_unset=True)
    site["gateway"] = {"media_domains": ("a.example.org", "b.example.org")}
    words = command(Site.model_validate(site), "planner").argv
    at = words.index("--allowed-media-domains")
    assert words[at + 1 : at + 3] == ("a.example.org", "b.example.org")
    found = engine_options.check_vllm(
        HYBRID.engines["planner"].model_copy(update={"options": {"allowed-media-domains": "*"}})
    )
    assert found == ["allowed-media-domains is set by gateway.media_domains; remove it from options"]


def test_options_of_adapters_and_rerankers() -> None:
    site = HYBRID.model_dump(mode="python", exclude_unset=True)
    site["models"]["qwen3-30b"]["adapters"] = {"sql": {"source": "/m/sql", "rank": 20}, "de": {"source": "/m/de"}}
    site["models"]["qwen3-30b"]["task"] = "rerank"
    site["roles"] = {"sql": {"model": "qwen3-30b", "adapter": "sql"}}
    words = command(Site.model_validate(site), "agents.0").argv
    assert flag(words, "--max-lora-rank") == "32", "the next rank that vLLM has kernels for"
    assert flag(words, "--max-loras") == "2"
    at = words.index("--lora-modules")
    assert words[at + 1 : at + 3] == ("qwen3-30b:sql=/m/sql", "qwen3-30b:de=/m/de")
    assert (flag(words, "--runner"), flag(words, "--convert")) == ("pooling", "classify")
    assert Site.model_validate(site).roles["sql"].served_name == "qwen3-30b:sql"


def test_options_of_embeddings_on_the_cpu() -> None:
    embed = command(HYBRID, "embed")
    assert flag(embed.argv, "--runner") == "pooling"
    assert "--gpu-memory-utilization" not in embed.argv
    assert flag(embed.argv, "--kv-cache-memory-bytes") == str(4 * 2**30)
    assert "CUDA_VISIBLE_DEVICES" not in embed.environment


@pytest.mark.parametrize(("gib", "size"), [(0.5, 2**29), (1.0, 2**30), (1.1, 1181116006), (4096.0, 2**42)])
def test_a_fraction_of_a_gib_is_a_size_of_the_cache(gib: float, size: int) -> None:
    engine = HYBRID.engines["embed"].model_copy(update={"kv_cache_gib": gib})
    site = HYBRID.model_copy(update={"engines": HYBRID.engines | {"embed": engine}})
    words = command(site, "embed")
    assert flag(words.argv, "--kv-cache-memory-bytes") == str(size)
    assert "VLLM_CPU_KVCACHE_SPACE" not in words.environment, "vLLM reads whole GiB there, and ends otherwise"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, ["--x"]),
        (False, ["--no-x"]),
        (3, ["--x", "3"]),
        ("a b", ["--x", "a b"]),
        ({"method": "mtp", "n": 1}, ["--x", '{"method":"mtp","n":1}']),
        ([1, 2], ["--x", "1", "2"]),
    ],
)
def test_options_become_words(value: JsonValue, words: list[str]) -> None:
    assert vllm.option_words("x", value) == words


def test_llamacpp_divides_its_context_among_slots() -> None:
    engine = Engine(
        kind="llamacpp", host="h", model="m", gpus=(1,), context=8192, concurrency=4, port=9000,
        options={"override-tensor": "exps=CPU"},
    )  # fmt: skip
    words, environment = llamacpp.build(engine, Model(source="/m.gguf"), 0)
    assert words[:3] == ["llama-server", "--model", "/m.gguf"]
    assert flag(words, "--ctx-size") == str(4 * 8192)
    assert flag(words, "--host") == "127.0.0.1"
    assert flag(words, "--override-tensor") == "exps=CPU"
    assert flag(words, "--n-gpu-layers") == "999"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"


def test_llamacpp_by_vulkan_selects_its_cards_by_ggmls_own_variable() -> None:
    engine = Engine(
        kind="llamacpp", host="h", model="m", device="vulkan", gpus=(1,), context=8192, concurrency=4, port=9000
    )  # fmt: skip
    words, environment = llamacpp.build(engine, Model(source="/m.gguf"), 0)
    assert flag(words, "--n-gpu-layers") == "999"
    assert environment == {"GGML_VK_VISIBLE_DEVICES": "1"}


def test_options_that_llamacpp_cannot_have_are_rejected() -> None:
    engine = Engine(
        kind="llamacpp", host="h", model="m", device="cpu", context=1, concurrency=1, port=1,
        options={"port": 1, "-ngl": 1, "mlock": None},
    )  # fmt: skip
    assert [line.partition(" ")[0] for line in engine_options.check_llamacpp(engine)] == [
        "port",
        "'-ngl'",
        "mlock",
    ]


@pytest.mark.parametrize(
    "flag",
    [
        *("tools", "tools-runtime", "agent", "ui-mcp-proxy", "webui-mcp-proxy", "mcp", "mcp-servers-config"),
        *("mcp-servers-json", "rpc", "models-dir", "models-preset", "media-path", "path"),
    ],
)
def test_options_that_give_a_shell_or_a_proxy_are_refused(flag: str) -> None:
    engine = Engine(
        kind="llamacpp", host="h", model="m", device="cpu", context=1, concurrency=1, port=1,
        options={flag: "all"},
    )  # fmt: skip
    (error,) = engine_options.check_llamacpp(engine)
    assert error.startswith(f"{flag} ")
    assert error.endswith("; remove it, tools run at the client")
    switched_off = engine.model_copy(update={"options": {flag: False}})
    assert engine_options.check_llamacpp(switched_off) == []


def test_llamacpps_own_variables_cannot_replace_options() -> None:
    engine = Engine(
        kind="llamacpp", host="h", model="m", device="cpu", context=1, concurrency=1, port=1,
        environment={"LLAMA_ARG_TOOLS": "all", "GGML_NOTHING": "1"},
    )  # fmt: skip
    (error,) = engine_options.check_llamacpp(engine)
    assert error.startswith("environment.LLAMA_ARG_TOOLS sets a flag of llama.cpp")


def test_an_unknown_engine_is_an_error_that_suggests_a_name() -> None:
    with pytest.raises(UsageError, match=r"no engine is called 'agent'; did you mean 'agents.\d'\?"):
        argv.find(HYBRID, "agent")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "appliance", *words]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=30, cwd=ROOT)


def test_the_command_line_of_a_replica_is_printed() -> None:
    done = run("engine", "argv", "agents.1", "--config", "examples/eight-cards-hybrid.toml")
    lines = done.stdout.splitlines()
    assert "CUDA_VISIBLE_DEVICES=5" in lines
    assert lines[lines.index("--port") + 1] == "8111"


def test_exec_becomes_the_engine_or_reports_why_not(tmp_path: Path) -> None:
    site = json.loads(HYBRID.model_dump_json())
    engine = site["engines"]["embed"]
    engine["command"] = "/nowhere/python"
    file = tmp_path / "site.json"
    file.write_text(json.dumps(site))
    done = run("engine", "exec", "embed", "--config", str(file))
    assert done.returncode == 2
    assert done.stderr == (
        "error: engines.embed.command: /nowhere/python cannot be run (No such file or directory); "
        "name the engine's Python or binary there\n"
    )
    engine["command"] = "/bin/echo"
    file.write_text(json.dumps(site))
    done = run("engine", "exec", "embed", "--config", str(file))
    assert done.stdout.startswith("-m vllm.entrypoints.openai.api_server --model Qwen/Qwen3-Embedding-0.6B")
