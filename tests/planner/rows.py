"""A row of measurements, as the CSV reader returns it."""

from __future__ import annotations

ROW = {
    "gpu": "RTX PRO 6000 Blackwell Workstation",
    "gpu_count": "1",
    "model": "Qwen3-30B-A3B",
    "dtype": "bf16",
    "engine": "vLLM",
    "input_tokens": "1000",
    "output_tokens": "1000",
    "concurrency": "16",
    "output_tok_s": "1000",
}
