"""The planner's physical constants: the meaning, the prior and the calibrated value of each.

A prior is the value of the sources before any fit to measurements. ``spread`` limits its change by the fit: one
standard deviation of the logarithm. ``python -m tools.calibrate`` writes the calibrated values to
``constants.toml``.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources


def _constant(prior: float, *, spread: float, unit: str, meaning: str, source: str) -> float:
    """Return a dataclass field with its description."""
    meta = {"spread": spread, "unit": unit, "meaning": meaning, "source": source}
    return field(default=prior, metadata=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Constants of the roofline. Shares are of the card's peak in the catalog; times are seconds."""

    memory_share: float = _constant(
        0.80,
        spread=0.10,
        unit="share",
        meaning="memory bandwidth reached by dense weights and KV cache",
        source="dense decode MBU 0.81 of llama.cpp on an RTX PRO 6000; aiconfigurator uses 0.8",
    )
    wide_memory_loss: float = _constant(
        0.10,
        spread=0.40,
        unit="exponent",
        meaning="loss of bandwidth with its size: a card with e times the bandwidth loses this share of it",
        source="guess: layers are too short to fill more channels",
    )
    expert_memory_share: float = _constant(
        0.70,
        spread=0.20,
        unit="share",
        meaning="memory bandwidth reached by the grouped GEMM over experts",
        source="A3B models at batch 1: about 0.5 with launches; 2.4 ms of 6.3 are launches",
    )
    quantised_memory_factor: float = _constant(
        0.85,
        spread=0.25,
        unit="factor",
        meaning="bandwidth of 4-bit dense weights against 16-bit ones",
        source="guess: unpacking; Marlin is near the peak at batch 1",
    )
    quantised_expert_factor: float = _constant(
        0.75,
        spread=0.30,
        unit="factor",
        meaning="bandwidth of 4-bit experts against 16-bit ones",
        source="guess: tiles of an expert are small",
    )
    fp8_expert_factor: float = _constant(
        0.80,
        spread=0.25,
        unit="factor",
        meaning="bandwidth of FP8 experts against 16-bit ones",
        source="block scales; Triton kernels without tuned tiles",
    )
    expert_age: float = _constant(
        1.20,
        spread=0.30,
        unit="factor",
        meaning="time to read experts with software of a year ago against today's",
        source="MoE kernels of 2025 and 2026: FlashInfer CUTLASS, tuned tiles",
    )
    kv_memory_share: float = _constant(
        0.60,
        spread=0.35,
        unit="share",
        meaning="memory bandwidth reached by attention over the KV cache",
        source="guess: gathers of small pages",
    )
    quantised_kv_factor: float = _constant(
        0.60,
        spread=0.35,
        unit="factor",
        meaning="bandwidth of attention over a quantised KV cache against a 16-bit one",
        source="guess: unpacking, and fewer kernels to choose from",
    )
    shared_kv_factor: float = _constant(
        0.40,
        spread=0.30,
        unit="factor",
        meaning="time to read the KV cache of a shared prompt against prompts of their own",
        source="the same pages stay in the L2 cache",
    )
    routing_power: float = _constant(
        0.85,
        spread=0.30,
        unit="exponent",
        meaning="growth of independent choices of experts with the tokens of a pass",
        source="guess: tokens of a batch share topics and popular experts",
    )
    bf16_share: float = _constant(
        0.60,
        spread=0.20,
        unit="share",
        meaning="share of bf16 peak in large GEMMs of a prefill",
        source="measured 8192^3 GEMM: 0.64 (Workstation) and 0.80 (Server) of peak, less attention and norms",
    )
    fp8_share: float = _constant(
        0.50,
        spread=0.25,
        unit="share",
        meaning="share of fp8 peak in a prefill",
        source="guess below bf16",
    )
    fp4_share: float = _constant(
        0.35,
        spread=0.30,
        unit="share",
        meaning="share of fp4 peak in a prefill",
        source="guess below fp8",
    )
    w4a16_share: float = _constant(
        0.45,
        spread=0.30,
        unit="share",
        meaning="share of bf16 peak with 4-bit weights unpacked on the way (Marlin, AWQ, GGUF)",
        source="guess below bf16",
    )
    attention_share: float = _constant(
        0.45,
        spread=0.30,
        unit="share",
        meaning="share of bf16 peak in the attention of a prefill",
        source="FlashAttention 2 and 3 reach 0.5 to 0.7 at long contexts",
    )
    expert_flops_share: float = _constant(
        0.60,
        spread=0.30,
        unit="factor",
        meaning="use of the units by grouped GEMMs of experts against dense GEMMs",
        source="guess: tiles half filled",
    )
    flops_age: float = _constant(
        1.10,
        spread=0.15,
        unit="factor",
        meaning="time of GEMMs with software of a year ago against today's",
        source="H100, bf16: 0.45 of the peak in 2025, 0.7 in 2026",
    )
    layer_s: float = _constant(
        24e-6,
        spread=0.40,
        unit="s",
        meaning="floor of one decode layer: kernel launches and dependencies inside a CUDA graph",
        source="A3B models at batch 1: about 4 ms per token over 48 layers, experts included",
    )
    expert_layer_s: float = _constant(
        18e-6,
        spread=0.40,
        unit="s",
        meaning="further floor of a layer with experts: routing, sorting, gathering",
        source="as layer_s",
    )
    linear_layer_s: float = _constant(
        20e-6,
        spread=0.50,
        unit="s",
        meaning="further floor of a linear attention layer: convolution, recurrence",
        source="guess",
    )
    stream_s: float = _constant(
        4e-05,
        spread=0.40,
        unit="s",
        meaning="further floor of a layer per residual stream beyond the first",
        source="hyper-connections: mixing before and after each block",
    )
    quantise_s: float = _constant(
        8e-6,
        spread=0.50,
        unit="s",
        meaning="further floor of a layer that quantises its activations (FP8, FP4)",
        source="four kernels of 2 us per layer, one before each GEMM",
    )
    floor_age: float = _constant(
        1.50,
        spread=0.40,
        unit="factor",
        meaning="floors with software of a year ago against today's",
        source="V1 engine, asynchronous scheduling, fused kernels between 2025 and 2026",
    )
    host_age: float = _constant(
        1.50,
        spread=0.40,
        unit="factor",
        meaning="host times with software of a year ago against today's",
        source="as floor_age; asynchronous scheduling by default since 2026",
    )
    step_s: float = _constant(
        1.0e-3,
        spread=0.40,
        unit="s",
        meaning="host time per decode step that the card waits for: scheduling, sampling",
        source="guess",
    )
    sequence_s: float = _constant(
        20e-6,
        spread=0.60,
        unit="s",
        meaning="host time per sequence and step: sampling, detokenisation, streaming",
        source="one API process of vLLM streams 20,000 to 50,000 tok/s",
    )
    reduce_pcie_s: float = _constant(
        25e-6,
        spread=0.35,
        unit="s",
        meaning="latency of one all-reduce between two cards over PCIe with peer-to-peer",
        source="NCCL 32-64 KB: 26 us tuned, 48 us untuned",
    )
    reduce_nvlink_s: float = _constant(
        8e-6,
        spread=0.40,
        unit="s",
        meaning="latency of one all-reduce over NVLink",
        source="vLLM's custom all-reduce, order of magnitude",
    )
    link_share: float = _constant(
        0.50,
        spread=0.30,
        unit="share",
        meaning="share of a link's bandwidth that collectives reach",
        source="8 cards: bus bandwidth 22 to 41 GB/s of 64",
    )
    no_p2p_factor: float = _constant(
        2.5,
        spread=0.40,
        unit="factor",
        meaning="slowdown of collectives through host memory",
        source="14 us against 0.4 us; 65 to 44 tok/s",
    )
    expert_parallel_skew: float = _constant(
        1.25,
        spread=0.20,
        unit="factor",
        meaning="load of the busiest card over the mean under expert parallelism",
        source="guess",
    )
    sm120_share: float = _constant(
        0.80,
        spread=0.20,
        unit="factor",
        meaning="speed of kernels for compute capability 12 against those for 9 and 10",
        source="guess",
    )
    sm100_share: float = _constant(
        0.80,
        spread=0.20,
        unit="factor",
        meaning="speed of kernels for compute capability 10 against those for 9",
        source="guess: peaks doubled, kernels are young",
    )
    sm80_share: float = _constant(
        0.95,
        spread=0.20,
        unit="factor",
        meaning="speed of kernels for compute capability 8 against those for 9 and 10",
        source="guess: mature kernels, lower peak",
    )
    offline_factor: float = _constant(
        0.25,
        spread=0.50,
        unit="factor",
        meaning="host times of a C++ engine run offline (TensorRT-LLM), against vLLM's server",
        source="no HTTP, no streaming, no detokenisation per step: sampling remains",
    )
    tuned_factor: float = _constant(
        1.25,
        spread=0.20,
        unit="factor",
        meaning="speed of TensorRT-LLM's GEMMs against vLLM's",
        source="guess",
    )
    llamacpp_memory_factor: float = _constant(
        0.95,
        spread=0.15,
        unit="factor",
        meaning="bandwidth of llama.cpp's dense kernels against vLLM's",
        source="llama-bench on one card: 0.7 to 0.85 of the peak",
    )
    llamacpp_expert_factor: float = _constant(
        1.00,
        spread=0.30,
        unit="factor",
        meaning="bandwidth of llama.cpp's experts against vLLM's",
        source="guess",
    )
    llamacpp_floor: float = _constant(
        0.60,
        spread=0.40,
        unit="factor",
        meaning="floors of llama.cpp against vLLM's",
        source="C++ graphs at batch 1",
    )
    llamacpp_flops_factor: float = _constant(
        0.70,
        spread=0.30,
        unit="factor",
        meaning="speed of llama.cpp's GEMMs against vLLM's",
        source="pp512 on an RTX PRO 6000",
    )
    eager_factor: float = _constant(
        4.0,
        spread=0.40,
        unit="factor",
        meaning="floors without CUDA graphs against those with them",
        source="25.8 against 148 tok/s of one model at batch 1",
    )
    cpu_memory_share: float = _constant(
        0.60,
        spread=0.30,
        unit="share",
        meaning="RAM bandwidth that experts on the processor reach",
        source="Qwen3-235B on EPYC 9355",
    )
    cpu_layer_s: float = _constant(
        150e-6,
        spread=0.40,
        unit="s",
        meaning="hand-over between card and processor, per layer with experts in RAM",
        source="guess",
    )
    mixed_share: float = _constant(
        0.70,
        spread=0.25,
        unit="share",
        meaning="decode step that a pass with a prompt saves, because it decodes as well",
        source="chunked prefill: weights are read once for both",
    )
    drain: float = _constant(
        5.0,
        spread=0.30,
        unit="factor",
        meaning="length of the longest responses of a run beyond the mean, in means; they decode almost alone",
        source="ShareGPT: the longest of a thousand responses is four to five times the mean",
    )
    acceptance_cost: float = _constant(
        1.2,
        spread=0.40,
        unit="factor",
        meaning="time of a draft against that of reading one layer and the output head",
        source="MTP: one layer and the head per draft, and sampling",
    )
    mtp_acceptance: float = _constant(
        0.75,
        spread=0.15,
        unit="share",
        meaning="usual share of MTP drafts that are accepted, given that the earlier ones were",
        source="0.945, 0.764, 0.564 per position; lengths of 2.5 to 3.5",
    )
    eagle_acceptance: float = _constant(
        0.60,
        spread=0.20,
        unit="share",
        meaning="usual share of EAGLE3 drafts accepted likewise",
        source="lengths of 1.9 to 3.2",
    )
    dflash_acceptance: float = _constant(
        0.70,
        spread=0.20,
        unit="share",
        meaning="usual share of DFlash drafts accepted likewise",
        source="guess",
    )


def names() -> list[str]:
    """Return the names of all constants in the order of their definition."""
    return [entry.name for entry in fields(Constants)]


@cache
def calibrated() -> Constants:
    """Return the calibrated constants, and the prior of a constant that ``constants.toml`` does not have."""
    return Constants(**{name: entry["value"] for name, entry in _file()["constants"].items()})


@cache
def intervals() -> dict[str, tuple[float, float]]:
    """Return by class of prediction the logarithms to add for the ends of its 80 % interval."""
    return {name: (entry["low"], entry["high"]) for name, entry in _file()["intervals"].items()}


@cache
def _file() -> dict[str, dict[str, dict[str, float]]]:
    path = resources.files(__package__).joinpath("constants.toml")
    if not path.is_file():
        return {"constants": {}, "intervals": {"all": {"low": -0.5, "high": 0.5}}}
    return tomllib.loads(path.read_text("utf-8"))
