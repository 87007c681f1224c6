"""Precisions by name: bytes per weight, the weights that each covers, and the units that compute.

Pure. Accepts common notations: ``bf16``, ``nvfp4 (unsloth), kv bf16``, ``awq-int4``, ``Q4_K_M``, ``UD-IQ2_M``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from appliance.catalog.quantised import QUANTISED_BYTES
from appliance.catalog.shape import PartBytes, Shape
from appliance.contract.violation import suggest
from appliance.errors import UsageError

Units = Literal["bf16", "fp8", "fp4", "w4a16", "gguf"]

GGUF_BITS: dict[str, float] = {
    "IQ1_M": 1.75,
    "IQ2_XXS": 2.06,
    "IQ2_XS": 2.31,
    "IQ2_S": 2.5,
    "IQ2_M": 2.7,
    "Q2_K": 3.35,
    "IQ3_XXS": 3.06,
    "IQ3_S": 3.44,
    "IQ3_M": 3.66,
    "IQ3_K": 3.9,
    "Q3_K_S": 3.5,
    "Q3_K_M": 3.91,
    "Q3_K_L": 4.27,
    "IQ4_XS": 4.25,
    "IQ4_NL": 4.5,
    "Q4_0": 4.5,
    "Q4_1": 5.0,
    "Q4_K_S": 4.58,
    "Q4_K_M": 4.85,
    "Q4_K_XL": 4.95,
    "Q5_0": 5.5,
    "Q5_K_S": 5.54,
    "Q5_K_M": 5.69,
    "Q5_K_XL": 5.8,
    "Q6_K": 6.59,
    "Q6_K_XL": 7.0,
    "Q8_0": 8.5,
    "Q8_K_XL": 9.5,
    "F16": 16.0,
    "BF16": 16.0,
}
"""Bits per weight of llama.cpp's formats over a whole file. Source: its quantize tool's table; IQ3_K from the
106.8 GiB of a 235.1 B model."""

ALIASES = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "fp16": "bf16",
    "half": "bf16",
    "awq": "awq-int4",
    "gptq": "awq-int4",
    "int4": "awq-int4",
    "w4a16": "awq-int4",
    "gptq-int4": "awq-int4",
    "float8": "fp8",
    "w8a8": "int8",
    "w8a8-int8": "int8",
    "fp4": "nvfp4",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes per weight by part of the model, bytes per KV number, and the units that multiply."""

    name: str
    units: Units
    expert_bytes: float
    mlp_bytes: float
    attention_bytes: float
    linear_bytes: float
    embedding_bytes: float
    kv_bytes: float = 2.0


def uniform(name: str, units: Units, *, each: float, kv_bytes: float) -> Precision:
    """Return a precision with ``each`` bytes for every weight."""
    return Precision(
        name=name,
        units=units,
        expert_bytes=each,
        mlp_bytes=each,
        attention_bytes=each,
        linear_bytes=each,
        embedding_bytes=each,
        kv_bytes=kv_bytes,
    )


def parse(text: str, kv: str | None = None) -> Precision:
    """Return the precision named in ``text``; ``kv``, or a ``kv …`` in the text, sets that of the KV cache.

    Raises :class:`UsageError` for an unknown name.
    """
    stated_kv = re.search(r"\bkv[ _=-]*(bf16|fp16|fp8|int8|nvfp4|auto)", text, re.IGNORECASE)
    kv = kv or (stated_kv.group(1).lower() if stated_kv else "bf16")
    kv_bytes = {"fp8": 1.0, "int8": 1.0, "nvfp4": 0.5625}.get(kv, 2.0)
    if kv not in {"fp8", "int8", "nvfp4", "bf16", "fp16", "auto", "bfloat16", "float16"}:
        raise UsageError(f"KV cache type {kv!r} does not exist; {suggest(kv, ['auto', 'bf16', 'fp8', 'nvfp4'])}")
    words = re.sub(r"\bkv[ _=-]*\w+", " ", text)
    mixed = re.search(r"mxfp4", words, re.IGNORECASE)
    gguf = re.search(r"\b(?:UD-)?(I?Q\d\w*)\b", words)
    if gguf and not mixed:
        name = gguf.group(1).upper()
        bits = GGUF_BITS.get(name)
        if bits is None:
            raise UsageError(f"GGUF format {gguf.group(1)!r} does not exist; {suggest(name, list(GGUF_BITS))}")
        return uniform(name, "gguf", each=bits / 8, kv_bytes=kv_bytes)
    word = (re.findall(r"[a-z][a-z0-9-]*", words.lower()) or ["bf16"])[0] if not mixed else "mxfp4"
    word = ALIASES.get(word, word)
    if word == "bf16":
        return uniform("bf16", "bf16", each=2.0, kv_bytes=kv_bytes)
    if word == "fp32":
        return uniform("fp32", "bf16", each=4.0, kv_bytes=kv_bytes)
    if word == "mxfp4":
        # gpt-oss: only the experts are quantised.
        unquantised = uniform("mxfp4", "w4a16", each=2.0, kv_bytes=kv_bytes)
        return replace(unquantised, expert_bytes=QUANTISED_BYTES["mxfp4"])
    if word == "fp4-experts":
        # DeepSeek V4: experts in MXFP4, the rest in FP8.
        rest = uniform("fp4-experts", "fp8", each=1.0, kv_bytes=kv_bytes)
        return replace(rest, expert_bytes=QUANTISED_BYTES["mxfp4"], embedding_bytes=2.0)
    if word in QUANTISED_BYTES:
        one = QUANTISED_BYTES[word]
        units: Units = {"awq-int4": "w4a16", "nvfp4": "fp4", "nvfp4-w4a16": "w4a16"}.get(word, "fp8")  # type: ignore[assignment]
        # Linear attention stays at 16 bits in published 4-bit checkpoints, embedding and head in all of them.
        linear = 2.0 if word in {"nvfp4", "nvfp4-w4a16", "awq-int4"} else one
        quantised = uniform(word, units, each=one, kv_bytes=kv_bytes)
        return replace(quantised, linear_bytes=linear, embedding_bytes=2.0)
    known = ["bf16", "mxfp4", "fp4-experts", *QUANTISED_BYTES, *GGUF_BITS]
    raise UsageError(f"precision {word!r} does not exist; {suggest(word, known)}")


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """Bytes of a model's weights, by the way in which a step reads them."""

    dense: float
    """Read entirely in every step: attention, linear attention, dense MLPs, shared experts, output head."""
    experts: float
    """All routed experts; a step reads those that its tokens chose."""
    embedding: float
    """The input embedding, which a step never reads entirely. If it is also the head, it counts as dense."""

    @property
    def total(self) -> float:
        """Bytes of all weights."""
        return self.dense + self.experts + self.embedding


def _parts(precision: Precision) -> PartBytes:
    return PartBytes(
        attention=precision.attention_bytes,
        linear=precision.linear_bytes,
        dense=precision.mlp_bytes,
        shared=precision.mlp_bytes,
        experts=precision.expert_bytes,
        head=precision.embedding_bytes,
    )


@lru_cache(maxsize=4096)
def weights(shape: Shape, precision: Precision) -> WeightSizes:
    """Return the bytes of ``shape``'s weights in ``precision``.

    In the precision of the published checkpoint, each part has the bytes of that checkpoint.
    """
    own = shape.native_bytes
    each = own if own is not None and parse(shape.native).name == precision.name else _parts(precision)
    dense = shape.attention_params * each.attention
    dense += shape.linear_params * each.linear
    dense += shape.dense_mlp_params * each.dense
    router = shape.moe_layers * shape.hidden * shape.moe.experts if shape.moe else 0
    dense += router * 2.0 + (shape.moe_common_params - router) * each.shared
    dense += shape.small_params * 2.0
    embedding = shape.embedding_params * precision.embedding_bytes
    if shape.tied:
        dense, embedding = dense + embedding, 0.0
    else:
        dense += shape.head_params * each.head
    bias = (
        shape.moe_layers * shape.moe.experts * (2 * shape.moe.width + shape.hidden)
        if (shape.moe and shape.moe.expert_bias)
        else 0
    )
    experts = (shape.expert_params - bias) * each.experts + bias * 2.0
    return WeightSizes(dense=dense, experts=experts, embedding=embedding)
