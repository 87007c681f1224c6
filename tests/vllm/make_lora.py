"""Makes a LoRA adapter with random weights for a Qwen3 folder; runs in the engine's environment.

``python make_lora.py MODEL ADAPTER``. Its update is large on purpose, so that it changes the output visibly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 8


def main() -> None:
    model, adapter = map(Path, sys.argv[1:3])
    config = json.loads((model / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    torch.manual_seed(7)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, inner)
        tensors[f"{name}.lora_B.weight"] = torch.randn(hidden, RANK)
    adapter.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(adapter / "adapter_model.safetensors"))
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": 64, "target_modules": ["down_proj"], "bias": "none"}
    about |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": str(model), "inference_mode": True}
    (adapter / "adapter_config.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
