"""Gives the tiny model short replies: it ends where it would repeat its most frequent words.

Runs under the engine's Python: ``python short_replies.py FOLDER``. Agents request 32,000 tokens, and the random
model would use most of them. The row of the end in the output layer becomes that of other words, slightly longer.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

END = "<|im_end|>"
WORDS = (" say", " her")
"""Words that the random model repeats most."""


def main() -> int:
    """Change the weights in the folder named on the command line."""
    folder = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    end = tokenizer.convert_tokens_to_ids(END)
    rows = [weights["lm_head.weight"][tokenizer.encode(word)[0]].float() for word in WORDS]
    weights["lm_head.weight"][end] = (sum(rows) * 0.8).to(weights["lm_head.weight"].dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
