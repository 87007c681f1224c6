"""Makes a tiny Qwen3: random weights, a small BPE tokenizer of its own, Qwen's chat markers.

Runs under the engine's Python (torch, transformers): ``python tiny_qwen3.py FOLDER``. The path through the engine
is real, the generated text is noise. Two measures make it readable: the output layer is muted for tokens that are
not printable text, and a completion without ``max_tokens`` ends after 256 tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SEED = 20261121
VOCABULARY = 768
CONTEXT = 8192
DEFAULT_MAX_TOKENS = 256
OUTPUT_SCALE = 20.0
"""Factor of the logits, so that sampling at temperature 1 rarely selects a muted token (their logit is 0)."""

MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]

TEXT = Path(__file__).with_name("tiny_corpus.txt").read_text(encoding="utf-8")
"""The text from which the tokenizer is trained."""

TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "Functions you may call, as JSON, one a line:\n"
    "{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
    'To call one return <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\n'
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}{% if not (loop.first and message.role == 'system') %}"
    "<|im_start|>{{ 'user' if message.role == 'tool' else message.role }}\n"
    "{%- if message.role == 'tool' %}<tool_response>\n{{ message.content }}\n</tool_response>"
    "{%- else %}{{ message.content or '' }}{% endif %}"
    "{%- for call in message.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{%- endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE over :data:`TEXT` with Qwen's markers; it encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(ADDED),
        special_tokens=MARKERS,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.add_tokens(ADDED)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Return a model of two layers, hidden size 128, with the grouped-query attention and q/k norms of a Qwen3."""
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(OUTPUT_SCALE)
        for token in range(VOCABULARY):
            text = tokenizer.decode([token]) if token < len(tokenizer) else ""
            readable = text.isascii() and text.isprintable() and text not in MARKERS + ADDED
            if not (text and readable):
                model.lm_head.weight[token].zero_()
    model.generation_config = GenerationConfig(
        max_new_tokens=DEFAULT_MAX_TOKENS,
        eos_token_id=config.eos_token_id,
        bos_token_id=config.bos_token_id,
        pad_token_id=config.bos_token_id,
    )
    return model.to(torch.bfloat16)


def main() -> int:
    """Write the model into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} random parameters in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
