"""Makes a tiny Qwen3 on the spot: random weights, a small BPE tokenizer of its own, Qwen's chat markers.

Runs under the engine's Python (torch, transformers): ``python tiny_qwen3.py FOLDER``. The path through the
engine is real, the answers are noise. Two things make the noise easy to look at: the output layer is muted
for tokens that are no readable text, and an answer without ``max_tokens`` ends after 256 tokens.
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
"""Spreads the logits, so that sampling at temperature 1 rarely meets a muted token (their logit is 0)."""

MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]

TEXT = """
A river begins as rain on a hill and ends as salt in the sea. Between the two it turns a mill, waters a field,
carries a boat and drowns a road. People who live beside it learn its habits. They build the bridge where the
bank is rock, and they keep the hay on the high side of the barn. When the water rises at night somebody rings
the bell, and everyone knows what to do. The baker moves the flour upstairs. The teacher counts the children.
The smith lets the fire go out, for wet coal is worse than none. In the morning the fields are a brown lake,
and the first to come back are the birds. Then the work begins: mud is shovelled from the kitchen, doors are
hung out to dry, a cow is led home by a girl who found her on the church steps. After a week the road is open.
After a month there is grass. The user asks, the assistant answers; the system says how. A question has a
number, a name, a place and a reason. An answer has true or false, yes or no, and sometimes an example.
"""

TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "Functions you may call, as JSON, one a line:\n"
    "{%- for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
    'To call one answer <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\n'
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
    """A byte-level BPE over :data:`TEXT` with Qwen's markers; encodes any text."""
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
    """Two layers, hidden size 128, grouped-query attention and q/k norms as in every Qwen3."""
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
