"""An engine over several hosts in the contract, and the command line of each rank."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from appliance.contract.load import validate
from appliance.contract.model import Site
from appliance.engines.argv import command, find
from appliance.engines.ranks import HEADLESS, digest_of
from appliance.errors import ConfigError, UsageError

GPUS = [
    {"index": index, "model": "RTX PRO 6000 Blackwell Workstation", "memory_mib": 97887} for index in (0, 1, 2, 3)
]
SITE: dict[str, Any] = {
    "version": 1,
    "hosts": {
        "gpu": {"memory_gib": 256, "gpus": GPUS, "link": {"address": "10.88.0.1", "interface": "eno1"}},
        "gpu2": {"memory_gib": 256, "gpus": GPUS, "link": {"address": "10.88.0.2", "interface": "eno10"}},
        "spare": {"memory_gib": 256, "gpus": GPUS},
    },
    "models": {"large": {"source": "/models/large", "weights_gib": 250}},
    "engines": {
        "big": {
            "host": "gpu", "nodes": ["gpu", "gpu2"], "model": "large", "tensor_parallel": 2, "pipeline_parallel": 2,
            "gpus": [0, 1, 2, 3], "context": 8192, "concurrency": 4, "port": 8101,
            "command": "/opt/vllm/bin/python",
        }
    },
}  # fmt: skip


def changed(engine: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    table = copy.deepcopy(SITE)
    table["engines"]["big"] |= engine or {}
    for path, value in more.items():
        node = table
        *parents, last = path.split("__")
        for part in parents:
            node = node[part]
        node[last] = value
    return table


def errors(table: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate("site", table)
    return [line.removeprefix("site: ") for line in str(caught.value).splitlines()]


def site() -> Site:
    return validate("site", copy.deepcopy(SITE))


def rank(number: int, table: dict[str, Any] | None = None) -> tuple[tuple[str, ...], dict[str, str]]:
    one = validate("site", table or copy.deepcopy(SITE))
    built = command(one, find(one, "big"), Path("/"), rank=number)
    return built.argv, built.environment


def after(words: tuple[str, ...], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_the_leader_has_the_server_and_the_other_rank_has_none() -> None:
    leader, other = rank(0)[0], rank(1)[0]
    assert leader[1:3] == ("-m", "vllm.entrypoints.openai.api_server")
    assert other[1:3] == ("-c", HEADLESS)
    assert "--headless" not in leader
    assert other[-1] == "--headless" or "--headless" in other
    for number, words in enumerate((leader, other)):
        assert after(words, "--nnodes") == "2"
        assert after(words, "--node-rank") == str(number)
        assert (after(words, "--master-addr"), after(words, "--master-port")) == ("10.88.0.1", "29501")
        assert (after(words, "--tensor-parallel-size"), after(words, "--pipeline-parallel-size")) == ("2", "2")
        assert after(words, "--distributed-executor-backend") == "mp"
        assert after(words, "--host") == "127.0.0.1"


def test_each_rank_uses_its_own_link_and_cards() -> None:
    leader, other = rank(0)[1], rank(1)[1]
    assert (leader["CUDA_VISIBLE_DEVICES"], other["CUDA_VISIBLE_DEVICES"]) == ("0,1", "2,3")
    assert (leader["VLLM_HOST_IP"], other["VLLM_HOST_IP"]) == ("10.88.0.1", "10.88.0.2")
    assert (leader["GLOO_SOCKET_IFNAME"], other["GLOO_SOCKET_IFNAME"]) == ("eno1", "eno10")
    assert leader["NCCL_SOCKET_IFNAME"] == "=eno1", "NCCL would take eno10 for eno1"
    assert leader["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] == other["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] == "30"


def test_ranks_with_other_programs_have_one_configuration() -> None:
    one = site()
    other = one.engines["big"].model_copy(update={"command": "/nix/other/bin/python"})
    larger = one.engines["big"].model_copy(update={"context": 4096})
    assert digest_of(one, one.engines["big"]) == digest_of(one, other)
    assert digest_of(one, one.engines["big"]) != digest_of(one, larger)


def test_ray_has_a_token_and_one_rank_of_ours() -> None:
    table = changed({"distributed": "ray"})
    words, environment = rank(0, table)
    assert after(words, "--distributed-executor-backend") == "ray"
    assert "--nnodes" not in words
    assert (environment["RAY_AUTH_MODE"], environment["RAY_ADDRESS"]) == ("token", "10.88.0.1:6379")
    with pytest.raises(UsageError, match="a Ray node of yours runs on gpu2"):
        rank(1, table)


def test_pipelines_get_no_drafts() -> None:
    table = changed(models__large__source="/models/Qwen3.6-35B-A3B")
    words, _ = rank(0, table)
    assert "--speculative-config" not in words
    table["engines"]["big"] |= {"pipeline_parallel": 1, "tensor_parallel": 4}
    assert "--speculative-config" in rank(0, table)[0]


@pytest.mark.parametrize("number", [2, -1])
def test_a_rank_that_does_not_exist(number: int) -> None:
    with pytest.raises(UsageError, match="the engine has the ranks 0 to 1, on gpu, gpu2"):
        rank(number)


def test_a_rank_of_an_engine_on_one_host() -> None:
    table = changed({"nodes": []})
    with pytest.raises(UsageError, match="engine big runs on one host"):
        rank(1, table)


@pytest.mark.parametrize(
    ("table", "error"),
    [
        (changed({"nodes": ["gpu", "gpu3"]}), "engines.big.nodes: host 'gpu3' does not exist; did you mean 'gpu"),
        (changed({"nodes": ["gpu", "gpu"]}), "engines.big.nodes: names gpu twice; name each host once"),
        (changed({"nodes": ["gpu"]}), "engines.big.nodes: names one host; name two or more, or remove it"),
        (changed({"nodes": ["gpu2", "gpu"]}), "engines.big.host: is gpu, and nodes begins with gpu2"),
        (changed({"nodes": ["gpu", "spare"]}), "hosts.spare.link: is missing, and engines.big spans it"),
        (changed({"gpus": [0, 1, 2]}), "engines.big.gpus: names 3 cards; tensor_parallel x pipeline_parallel"),
        (changed({"gpus": [0, 1, 2, 7]}), "engines.big.gpus: host gpu2 has no card 7; it has: 0, 1, 2, 3"),
        (changed({"gpus": [0, 0, 2, 3]}), "engines.big.gpus: names a card of gpu twice"),
        (changed({"tensor_parallel": 3, "pipeline_parallel": 1, "gpus": [0, 1, 2]}), "which 2 hosts cannot share"),
        (changed({"replicas": 2}), "engines.big.replicas: is more than 1 though nodes is set"),
        (changed({"kind": "llamacpp"}), "engines.big.nodes: llamacpp computes on one host"),
        (
            changed({"device": "cpu", "gpus": [], "tensor_parallel": 1}),
            "engines.big.pipeline_parallel: vLLM on the CPU ends at its first request with it",
        ),
        (changed({"master_port": 8000}), "engines.big.master_port: port 8000 is already used by gateway"),
        (changed({"master_port": 8100}), "engines.big.master_port: port 8101 is already used by engines.big"),
        (changed({"master_port": 65535}), "engines.big.master_port: the watchers would need port 65536"),
        (changed({"options": {"nnodes": 3}}), "engines.big.options: nnodes is set by nodes; remove it"),
        (
            changed({"options": {"distributed-executor-backend": "ray"}}),
            "engines.big.options.distributed-executor-backend: contradicts nodes; remove it",
        ),
        (
            changed({"options": {"speculative-config": {"method": "mtp"}}}),
            "engines.big.options.speculative-config: is not possible with pipeline_parallel",
        ),
        (changed({"distributed": "ray", "command": None}), "the locked environment of vLLM does not contain Ray"),
        (changed({"nodes": [], "distributed": "ray"}), "engines.big.distributed: concerns an engine over several"),
        (changed(hosts__gpu2__link__address="10.88.0.1"), "two of its hosts have the link address 10.88.0.1"),
        (changed(hosts__gpu2__link__address="203.0.113.7"), "203.0.113.7 is not a private address"),
        (changed(hosts__gpu2__link__interface="lan0; rm"), "hosts.gpu2.link.interface"),
        (changed(models__large__weights_gib=380), "weights per card do not fit"),
    ],
)
def test_each_mistake_is_one_line_with_its_fix(table: dict[str, Any], error: str) -> None:
    assert any(error in line for line in errors(table)), errors(table)


def test_a_card_of_another_host_is_free_for_another_engine() -> None:
    table = changed({"gpus": [0, 1, 0, 1]})
    table["engines"]["small"] = {
        "host": "gpu2", "model": "large", "gpus": [1], "context": 1024, "concurrency": 1, "port": 8101,
    }  # fmt: skip
    table["models"]["large"].pop("weights_gib")
    assert any("hosts.gpu2.gpus.1: big and small together use 184%" in line for line in errors(table))
    table["engines"]["small"]["gpus"] = [2]
    validate("site", json.loads(json.dumps(table)))
