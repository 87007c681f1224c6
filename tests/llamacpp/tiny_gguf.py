"""Writes tiny GGUF files: Qwen3, Qwen3-MoE, an embedder and a reranker with random weights, in milliseconds.

The format is that of GGUF version 3: a header, metadata as typed key-value pairs, descriptions of tensors, and
aligned tensor data. The tokenizer is byte-level: one token a byte, and the markers of Qwen's chats.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

ALIGNMENT = 32
HIDDEN = 64
HEADS = 4
KV_HEADS = 2
HEAD_SIZE = 16
FEED_FORWARD = 128
EXPERTS = 8
EXPERTS_USED = 2
CONTEXT = 4096
SEED = 20261128

MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL_MARKERS = ("<tool_call>", "</tool_call>")
TOOL_CALL = 256
"""The token that begins a call of a tool."""
TOOL_END = 257
LINE_FEED, SPACE, BRACE = 10, 32, 125
"""Tokens of bytes. A line feed ends the prompt of a response."""
END = -1
"""The last token, which ends a response."""

HABITS = {
    LINE_FEED: {TOOL_CALL: 100, TOOL_END: 50, LINE_FEED: -100, SPACE: -100},
    TOOL_CALL: {LINE_FEED: 100},
    BRACE: {BRACE: 100, LINE_FEED: 50},
    TOOL_END: {END: 100},
    SPACE: {SPACE: -100, LINE_FEED: -100},
}
"""Weights of a caller's next token by the last one. The negative ones end white space, which has no limit."""
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Types of tokens in GGUF."""

Meta = int | float | bool | str | list[str] | list[int]
Variant = Literal["chat", "moe", "embed", "rerank", "caller"]
"""A caller writes one call of a tool, as far as the server's grammar has a choice; see :data:`HABITS`."""

TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "<tools>{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n"
    'Call one with <tool_call>\n{"name": <name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}{% if not (loop.first and message.role == 'system') %}"
    "<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}\n"
    "{%- if message.role == 'tool' %}<tool_response>\n{{ message.content }}\n</tool_response>"
    "{%- else %}{{ message.content or '' }}{% endif %}"
    "{%- if message.tool_calls %}{% for call in message.tool_calls %}"
    "{%- if call.function %}{% set call = call.function %}{% endif %}"
    '{{- \'\n<tool_call>\n{"name": "\' }}{{ call.name }}{{ \'", "arguments": \' }}'
    "{%- if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}{% endif %}"
    "{{- '}\n</tool_call>' }}{% endfor %}{% endif %}<|im_end|>\n{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

RERANK_TEMPLATE = "<Query>: {query}\n<Document>: {document}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file: its name and its values, rows first as in numpy."""

    name: str
    values: np.ndarray


def byte_letters() -> list[str]:
    """Return the printable letter of each byte in byte-level vocabularies, in the order of the bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, following = {}, 256
    for byte in range(256):
        if byte in plain:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(following)
            following += 1
    return [letters[byte] for byte in range(256)]


def write_gguf(path: Path, metadata: dict[str, Meta], tensors: list[Tensor]) -> None:
    """Write a GGUF file; values of float32 and float16 are kept as such."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    pairs = b"".join(_text(key) + _typed(value) for key, value in metadata.items())
    infos, data, offset = b"", [], 0
    for tensor in tensors:
        raw = tensor.values.tobytes()
        shape = tensor.values.shape[::-1]
        kind = {"float32": 0, "float16": 1}[tensor.values.dtype.name]
        infos += _text(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        padded = raw + bytes(-len(raw) % ALIGNMENT)
        data.append(padded)
        offset += len(padded)
    before = head + pairs + infos
    path.write_bytes(before + bytes(-len(before) % ALIGNMENT) + b"".join(data))


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Meta) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if all(isinstance(item, int) for item in value):
        return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(str(item)) for item in value)


def write_tiny(
    path: Path,
    variant: Variant = "chat",
    *,
    layers: int = 2,
    vocabulary: int | None = None,
    architecture: str | None = None,
) -> Path:
    """Write a tiny model and return ``path``.

    ``vocabulary`` is the number of tokens if it exceeds the bytes and markers. The markers are the last ones then,
    as in Qwen3's own vocabulary. ``architecture`` replaces the name of the architecture in the file.
    """
    moe = variant == "moe"
    name = "qwen3moe" if moe else "qwen3"
    letters = byte_letters()
    known = len(letters) + len(TOOL_MARKERS) + len(MARKERS)
    size = vocabulary or known
    fill = [f"[unused{index}]" for index in range(size - known)]
    tokens = [*letters, *TOOL_MARKERS, *fill, *MARKERS]
    types = [NORMAL] * len(letters) + [USER_DEFINED] * len(TOOL_MARKERS) + [NORMAL] * len(fill)
    ids = {marker: size - len(MARKERS) + index for index, marker in enumerate(MARKERS)}
    metadata: dict[str, Meta] = {
        "general.architecture": architecture or name,
        "general.name": f"tiny {name}",
        "general.alignment": ALIGNMENT,
        f"{name}.block_count": layers,
        f"{name}.context_length": CONTEXT,
        f"{name}.embedding_length": HIDDEN,
        f"{name}.feed_forward_length": FEED_FORWARD,
        f"{name}.attention.head_count": HEADS,
        f"{name}.attention.head_count_kv": KV_HEADS,
        f"{name}.attention.key_length": HEAD_SIZE,
        f"{name}.attention.value_length": HEAD_SIZE,
        f"{name}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{name}.rope.freq_base": 1e6,
    }
    if moe:
        metadata |= {
            f"{name}.expert_count": EXPERTS,
            f"{name}.expert_used_count": EXPERTS_USED,
            f"{name}.expert_feed_forward_length": FEED_FORWARD // 2,
        }
    metadata |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types + [CONTROL] * len(MARKERS),
        "tokenizer.ggml.merges": ["e r"],
        "tokenizer.ggml.bos_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.eos_token_id": ids["<|endoftext|>" if variant in ("embed", "rerank") else "<|im_end|>"],
        "tokenizer.ggml.padding_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": variant == "embed",
        "tokenizer.chat_template": TEMPLATE,
    }
    if variant == "rerank":
        metadata |= {
            "tokenizer.chat_template.rerank": RERANK_TEMPLATE,
            f"{name}.classifier.output_labels": ["yes", "no"],
            f"{name}.pooling_type": 4,
        }
    tensors = _tensors(
        moe=moe,
        layers=layers,
        size=size,
        scored=variant == "rerank",
        generates=variant in ("chat", "moe", "caller"),
        calls=variant == "caller",
    )
    write_gguf(path, metadata, tensors)
    return path


def _learn_habits(embedding: np.ndarray, output: np.ndarray) -> None:
    """Give each last token of :data:`HABITS` a dimension of its own, in which only its next tokens have weights."""
    followers = sorted({token for weights in HABITS.values() for token in weights})
    output[followers] = 0
    for weights in (embedding, output):
        weights[:, : len(HABITS)] = 0
    for dimension, (last, habits) in enumerate(HABITS.items()):
        embedding[last] = 0
        embedding[last, dimension] = 1
        for token, weight in habits.items():
            output[token, dimension] = weight


def _tensors(*, moe: bool, layers: int, size: int, scored: bool, generates: bool, calls: bool) -> list[Tensor]:
    random = np.random.default_rng(SEED)

    def matrix(*shape: int) -> np.ndarray:
        values: np.ndarray = random.standard_normal(shape, dtype=np.float32) * shape[-1] ** -0.5
        return values.astype(np.float16)

    def ones(length: int) -> np.ndarray:
        return np.ones(length, dtype=np.float32)

    tensors = [Tensor("token_embd.weight", matrix(size, HIDDEN)), Tensor("output_norm.weight", ones(HIDDEN))]
    if generates:
        # Tokens that are not printable ASCII are muted, so that each response is valid text.
        printable = np.zeros((size, 1), dtype=np.float16)
        printable[32:127] = 20.0
        output = matrix(size, HIDDEN) * printable
        if calls:
            _learn_habits(tensors[0].values, output)
        tensors.append(Tensor("output.weight", output))
    if scored:
        tensors.append(Tensor("cls.output.weight", matrix(2, HIDDEN)))
    for layer in range(layers):
        block = f"blk.{layer}."
        parts = {
            "attn_norm": ones(HIDDEN),
            "attn_q": matrix(HEADS * HEAD_SIZE, HIDDEN),
            "attn_k": matrix(KV_HEADS * HEAD_SIZE, HIDDEN),
            "attn_v": matrix(KV_HEADS * HEAD_SIZE, HIDDEN),
            "attn_output": matrix(HIDDEN, HEADS * HEAD_SIZE),
            "attn_q_norm": ones(HEAD_SIZE),
            "attn_k_norm": ones(HEAD_SIZE),
            "ffn_norm": ones(HIDDEN),
        }
        if moe:
            width = FEED_FORWARD // 2
            parts |= {
                "ffn_gate_inp": matrix(EXPERTS, HIDDEN).astype(np.float32),
                "ffn_gate_exps": matrix(EXPERTS, width, HIDDEN),
                "ffn_up_exps": matrix(EXPERTS, width, HIDDEN),
                "ffn_down_exps": matrix(EXPERTS, HIDDEN, width),
            }
        else:
            parts |= {
                "ffn_gate": matrix(FEED_FORWARD, HIDDEN),
                "ffn_up": matrix(FEED_FORWARD, HIDDEN),
                "ffn_down": matrix(HIDDEN, FEED_FORWARD),
            }
        if calls:
            # Without its layers, the next token depends on the last one only.
            parts |= {name: parts[name] * np.float16(0) for name in ("attn_output", "ffn_down")}
        tensors += [Tensor(f"{block}{part}.weight", values) for part, values in parts.items()]
    return tensors
