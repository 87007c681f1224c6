"""The planner's physical constants: what each means, its prior, and the calibrated value.

A prior is what the sources say before any measurement is fitted, ``spread`` how far the fit may move it: one
standard deviation of the logarithm. The calibrated values stand in ``constants.toml``, written by
``python -m tools.calibrate``.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources


def _constant(prior: float, spread: float, unit: str, meaning: str, source: str) -> float:
    """A dataclass field that carries its own description."""
    meta = {"spread": spread, "unit": unit, "meaning": meaning, "source": source}
    return field(default=prior, metadata=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Shares are of the card's peak in the catalogue; times are seconds."""

    memory_share: float = _constant(
        0.80,
        0.10,
        "share",
        "memory bandwidth reached by dense weights and KV cache",
        "dense decode MBU 0.81 of llama.cpp on an RTX PRO 6000; aiconfigurator uses 0.8",
    )
    expert_memory_share: float = _constant(
        0.55,
        0.30,
        "share",
        "memory bandwidth reached by the grouped GEMM over experts",
        "A3B models at batch 1 reach about 0.26, launch time included",
    )
    kv_memory_share: float = _constant(
        0.60,
        0.35,
        "share",
        "memory bandwidth reached by attention over the KV cache",
        "guess: gathers of small pages",
    )
    quantised_kv_factor: float = _constant(
        0.60,
        0.35,
        "factor",
        "bandwidth of attention over a quantised KV cache against a 16-bit one",
        "guess: unpacking, and fewer kernels to choose from",
    )
    routing_share: float = _constant(
        0.80,
        0.25,
        "share",
        "tokens of a batch that choose experts independently of each other",
        "guess: popular experts are shared",
    )
    bf16_share: float = _constant(
        0.60,
        0.20,
        "share",
        "share of bf16 peak in large GEMMs of a prefill",
        "measured 8192^3 GEMM: 0.64 (Workstation) and 0.80 (Server) of peak, less attention and norms",
    )
    fp8_share: float = _constant(0.50, 0.25, "share", "share of fp8 peak in a prefill", "guess below bf16")
    fp4_share: float = _constant(0.35, 0.30, "share", "share of fp4 peak in a prefill", "guess below fp8")
    w4a16_share: float = _constant(
        0.45,
        0.30,
        "share",
        "share of bf16 peak with 4-bit weights unpacked on the way (Marlin, AWQ, GGUF)",
        "guess below bf16",
    )
    expert_flops_share: float = _constant(
        0.60,
        0.30,
        "factor",
        "how much worse than dense GEMMs the grouped GEMMs of experts use the units",
        "guess: tiles half filled",
    )
    layer_s: float = _constant(
        30e-6,
        0.40,
        "s",
        "floor of one decode layer: kernel launches and dependencies inside a CUDA graph",
        "A3B models at batch 1: about 4 ms per token over 48 layers, experts included",
    )
    expert_layer_s: float = _constant(
        25e-6,
        0.40,
        "s",
        "further floor of a layer with experts: routing, sorting, gathering",
        "as layer_s",
    )
    linear_layer_s: float = _constant(
        20e-6,
        0.50,
        "s",
        "further floor of a linear attention layer: convolution, recurrence",
        "guess",
    )
    step_s: float = _constant(
        1.5e-3,
        0.40,
        "s",
        "host time per decode step that the card waits for: scheduling, sampling",
        "guess",
    )
    sequence_s: float = _constant(
        25e-6,
        0.50,
        "s",
        "host time per sequence and step: sampling, detokenisation, streaming",
        "guess",
    )
    reduce_pcie_s: float = _constant(
        25e-6,
        0.35,
        "s",
        "latency of one all-reduce between two cards over PCIe with peer-to-peer",
        "NCCL 32-64 KB: 26 us tuned, 48 us untuned",
    )
    reduce_nvlink_s: float = _constant(
        8e-6,
        0.40,
        "s",
        "latency of one all-reduce over NVLink",
        "vLLM's custom all-reduce, order of magnitude",
    )
    link_share: float = _constant(
        0.50,
        0.30,
        "share",
        "share of a link's bandwidth that collectives reach",
        "8 cards: bus bandwidth 22 to 41 GB/s of 64",
    )
    no_p2p_factor: float = _constant(
        2.5,
        0.40,
        "factor",
        "how much worse collectives are through host memory",
        "14 us against 0.4 us; 65 to 44 tok/s",
    )
    expert_parallel_skew: float = _constant(
        1.25,
        0.20,
        "factor",
        "load of the busiest card over the mean under expert parallelism",
        "guess",
    )
    sm120_share: float = _constant(
        0.80,
        0.20,
        "factor",
        "how much less tuned kernels for compute capability 12 are than for 9 and 10",
        "guess",
    )
    offline_factor: float = _constant(
        0.50,
        0.40,
        "factor",
        "host times of a C++ engine run offline (TensorRT-LLM), against vLLM's server",
        "no HTTP, no Python on the path",
    )
    tuned_factor: float = _constant(
        1.25,
        0.20,
        "factor",
        "speed of TensorRT-LLM's GEMMs against vLLM's",
        "guess",
    )
    cpu_memory_share: float = _constant(
        0.60,
        0.30,
        "share",
        "RAM bandwidth that experts on the processor reach",
        "Qwen3-235B on EPYC 9355",
    )
    cpu_layer_s: float = _constant(
        150e-6,
        0.40,
        "s",
        "hand-over between card and processor, per layer with experts in RAM",
        "guess",
    )
    drain: float = _constant(
        0.50,
        0.40,
        "factor",
        "time the last long answers add to a burst of unequal requests, per wave of them",
        "ShareGPT: the longest of a thousand answers is several times the mean",
    )
    acceptance_cost: float = _constant(
        0.08,
        0.50,
        "share",
        "cost of drafting one token, as a share of a step",
        "MTP head: one layer of many",
    )


def names() -> list[str]:
    """All constants, in the order of their definition."""
    return [entry.name for entry in fields(Constants)]


@cache
def calibrated() -> Constants:
    """The constants as calibrated; the priors where ``constants.toml`` says nothing."""
    return Constants(**{name: entry["value"] for name, entry in _file()["constants"].items()})


@cache
def intervals() -> dict[str, tuple[float, float]]:
    """Per class of answer, the logarithms to add to a prediction for the ends of its 80 % interval."""
    return {name: (entry["low"], entry["high"]) for name, entry in _file()["intervals"].items()}


@cache
def _file() -> dict[str, dict[str, dict[str, float]]]:
    path = resources.files(__package__).joinpath("constants.toml")
    if not path.is_file():
        return {"constants": {}, "intervals": {"all": {"low": -0.5, "high": 0.5}}}
    return tomllib.loads(path.read_text("utf-8"))
