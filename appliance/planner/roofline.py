"""Time of one decode step and of one prefill: bandwidth, arithmetic, floors, communication.

Pure. A step's time is the larger of reading memory and multiplying, softened if the two are similar. Launches,
collectives and the host are added, because neither hides them. See docs/planner.md for the derivation. All formulas
are of operators only, so that they also accept arrays (``tools/calibrate``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from appliance.planner.constants import Constants
from appliance.planner.terms import PassTerms, decode_terms, prefill_terms
from appliance.planner.workload import Workload

LLAMACPP_HOST = 0.2
"""Host times of llama.cpp's server against vLLM's: C++, few sequences at a time. No measurement determines it."""

VERIFY_TOKEN_S = 20e-9
"""Seconds per token of context and layer in an attention that does not split the context.

A tile of 64 tokens waits for two reads of 0.7 us. A fit to three sources of such runs gives 21 ns.
"""

OVERLAP = 2.0
"""Host and card that overlap take the norm of both with exponent 1 + OVERLAP; without overlap it is their sum."""


def power(base: float, exponent: float) -> float:
    """Return ``base`` to the ``exponent``, also of arrays. A switch as exponent applies a factor or not."""
    result: float = base**exponent
    return result


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """Seconds of one pass by their cause."""

    memory: float
    compute: float
    floor: float
    communication: float
    host: float
    overlapped: float = 1.0
    """Whether the host prepares the next step while the card works; 0 or 1."""

    @property
    def card(self) -> float:
        """Reading and multiplying, overlapped."""
        return power(self.memory**2 + self.compute**2, 0.5)

    @property
    def total(self) -> float:
        """The whole step: host and card overlap with asynchronous scheduling, else they follow each other."""
        sharpness = 1.0 + OVERLAP * self.overlapped
        device = self.card + self.floor + self.communication
        return power(power(device, sharpness) + power(self.host, sharpness), 1.0 / sharpness)


def distinct_experts(experts: int, per_token: int, tokens: float) -> float:
    """Return the expected number of experts that ``tokens`` tokens choose, each ``per_token`` of ``experts``."""
    return experts * (1.0 - math.pow(1.0 - per_token / experts, max(tokens, 0.0)))


def larger(a: float, b: float) -> float:
    """Return the larger of two numbers, also of arrays."""
    return (a + b + abs(a - b)) / 2.0


def smaller(a: float, b: float) -> float:
    """Return the smaller of two numbers, also of arrays."""
    return (a + b - abs(a - b)) / 2.0


def age_factor(terms: PassTerms, per_year: float) -> float:
    """Return the factor by which times of software of this age are longer, ``per_year`` being that of one year."""
    return power(per_year, terms.age)


def memory_time(terms: PassTerms, k: Constants) -> float:
    """Return the seconds in which a pass reads weights and KV cache."""
    share = (
        k.memory_share
        * power(k.quantised_memory_factor, terms.four_bit)
        * power(k.llamacpp_memory_factor, terms.llamacpp)
    )
    expert_share = (
        k.expert_memory_share
        * power(k.tuned_factor, terms.tuned)
        * power(k.quantised_expert_factor, terms.four_bit)
        * power(k.fp8_expert_factor, terms.fp8_experts)
        * power(k.llamacpp_expert_factor, terms.llamacpp)
        / age_factor(terms, k.expert_age)
    )
    kv_share = k.kv_memory_share * power(k.quantised_kv_factor, terms.quantised_kv)
    kv_share = kv_share / power(k.shared_kv_factor, terms.shared_kv)
    wide = power(math.e, k.wide_memory_loss * terms.log_bandwidth)
    experts = terms.experts_s * read_share(terms, k) / expert_share * power(wide, terms.w4a16)
    return (terms.dense_s / share + experts + terms.kv_s / kv_share) * wide


def read_share(terms: PassTerms, k: Constants) -> float:
    """Return the expected share of the experts that the tokens of a pass choose, on the busiest card."""
    skew = power(k.expert_parallel_skew, terms.skewed)
    return 1.0 - power(math.e, terms.log_missed * terms.tokens**k.routing_power * skew)


def compute_time(terms: PassTerms, k: Constants) -> float:
    """Return the seconds of a pass's multiplications."""
    share = (
        power(k.bf16_share, terms.bf16)
        * power(k.fp8_share, terms.fp8)
        * power(k.fp4_share, terms.fp4)
        * power(k.w4a16_share, terms.w4a16 + terms.gguf)
        * kernel_factor(terms, k)
    )
    skew = power(k.expert_parallel_skew, terms.skewed)
    attention = k.attention_share * kernel_factor(terms, k)
    return (
        terms.gemm_s / share
        + terms.expert_gemm_s * skew / (share * k.expert_flops_share)
        + terms.attention_s / attention
    )


def kernel_factor(terms: PassTerms, k: Constants) -> float:
    """Return how well kernels are tuned for this generation of cards and this engine."""
    return (
        power(k.sm120_share, terms.sm12)
        * power(k.sm100_share, terms.sm10)
        * power(k.sm80_share, terms.sm8)
        * power(k.tuned_factor, terms.tuned)
        * power(k.llamacpp_flops_factor, terms.llamacpp)
        / age_factor(terms, k.flops_age)
    )


def floor_time(terms: PassTerms, k: Constants) -> float:
    """Return the launch time of one pass over all layers in seconds."""
    each = terms.layers * k.layer_s + terms.moe_layers * k.expert_layer_s + terms.linear_layers * k.linear_layer_s
    each = each + terms.stream_layers * k.stream_s + terms.layers * k.quantise_s * terms.quantises
    launches = (
        each
        * age_factor(terms, k.floor_age)
        * power(k.llamacpp_floor, terms.llamacpp)
        * power(k.eager_factor, terms.eager)
    )
    return launches + terms.verified * VERIFY_TOKEN_S


def communication_time(terms: PassTerms, k: Constants) -> float:
    """Return the seconds of the collectives of a pass."""
    penalty = power(k.no_p2p_factor, terms.no_p2p)
    latency = (
        terms.nvlink_rounds * k.reduce_nvlink_s + terms.pcie_rounds * k.reduce_pcie_s * penalty + terms.fixed_s
    )
    return latency + terms.link_s * penalty / k.link_share


def host_time(terms: PassTerms, k: Constants) -> float:
    """Return the host time per step that the card waits for."""
    scale = (
        power(k.offline_factor, terms.offline)
        * power(LLAMACPP_HOST, terms.llamacpp)
        * age_factor(terms, k.host_age)
    )
    return scale * (k.step_s * terms.stages + k.sequence_s * terms.sequences)


def cpu_time(terms: PassTerms, k: Constants) -> float:
    """Return the seconds in which the processor reads its share of the weights."""
    read = terms.cpu_dense_s + terms.cpu_experts_s * read_share(terms, k)
    return read / k.cpu_memory_share + terms.cpu_layers * k.cpu_layer_s


def step_time(terms: PassTerms, k: Constants) -> DecodeStep:
    """Return the time of one decode step by its causes."""
    draft = 1.0 + k.acceptance_cost * terms.drafts
    return DecodeStep(
        memory=memory_time(terms, k) * draft,
        compute=compute_time(terms, k) * draft,
        floor=floor_time(terms, k) * (1.0 + k.acceptance_cost * terms.draft_layers) + cpu_time(terms, k),
        communication=communication_time(terms, k),
        host=host_time(terms, k),
        overlapped=terms.overlapped,
    )


def prefill_seconds(terms: PassTerms, k: Constants) -> float:
    """Return the seconds in which an idle replica's cards prefill one prompt."""
    cpu = (terms.cpu_dense_s + terms.cpu_experts_s) / k.cpu_memory_share
    return compute_time(terms, k) + communication_time(terms, k) + cpu


def prefill_time(workload: Workload, tokens: float, k: Constants) -> float:
    """Return the seconds in which an idle replica's cards prefill one prompt of ``tokens`` tokens."""
    return prefill_seconds(prefill_terms(workload, tokens), k)


def prefill_latency(workload: Workload, tokens: float, k: Constants) -> float:
    """Return the seconds to the first token of a prompt of ``tokens`` tokens on an idle replica."""
    return first_token_seconds(
        decode_terms(workload, batch=1.0, context=tokens), prefill_terms(workload, tokens), workload.layout.pp, k
    )


def first_token_seconds(alone: PassTerms, prompt: PassTerms, stages: float, k: Constants) -> float:
    """Return the seconds to the first token: the prefill, or one pass if that is longer, and its floors."""
    step = step_time(alone, k)
    once = larger(prefill_seconds(prompt, k) * stages, step.card)
    return once + step.floor + step.communication + step.host
