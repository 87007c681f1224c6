"""Transcribes a WAV file with real vLLM on the CPU, behind the gateway: ``python -m tests.vllm.whisper FOLDER``.

The model is a Whisper of random weights, made on the spot, so its text is noise: the path is real. It takes some
minutes and 3 GB, so it is not a part of ``make test``. FOLDER has vLLM's extra ``audio`` (soundfile and av, as
``pip install --target`` writes them), which the locked environment of the CPU does not have.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from appliance.engines.probe import probe_token
from tests.conftest import RunningService, serving
from tests.gateway.running.media import sound, transcribe
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / ".venv-engine" / "bin" / "python"
START_S = 600.0

MAKE = """
import sys, torch
from transformers import (
    WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from pathlib import Path
import json
folder = Path(sys.argv[1])
# The byte alphabet of GPT-2, without merges, then Whisper's own markers.
alphabet = [*range(33, 127), *range(161, 173), *range(174, 256)]
others = [byte for byte in range(256) if byte not in alphabet]
letters = [chr(byte) for byte in alphabet] + [chr(256 + number) for number in range(len(others))]
words = {letter: number for number, letter in enumerate(letters)}
markers = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{one}|>" for one in LANGUAGES), "<|translate|>",
           "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
markers += [f"<|{number * 0.02:.2f}|>" for number in range(1501)]
(folder / "vocab.json").write_text(json.dumps(words))
(folder / "merges.txt").write_text("#version: 0.2\\n")
tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token="<|endoftext|>")
tokenizer.add_special_tokens({"additional_special_tokens": markers})
ids = tokenizer.convert_tokens_to_ids
config = WhisperConfig(
    vocab_size=len(tokenizer), d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=80,
    decoder_start_token_id=ids("<|startoftranscript|>"), eos_token_id=ids("<|endoftext|>"),
    bos_token_id=ids("<|endoftext|>"), pad_token_id=ids("<|endoftext|>"),
)
torch.manual_seed(20261128)
WhisperForConditionalGeneration(config).save_pretrained(folder)
WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
"""
"""Makes the model under the engine's Python."""


def make_whisper(folder: Path) -> None:
    """Write a tiny Whisper of random weights into ``folder``."""
    folder.mkdir(parents=True)
    subprocess.run([ENGINE, "-c", MAKE, str(folder)], check=True)


def main() -> int:
    """Run once; print what happened."""
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_whisper(folder / "whisper")
        engine = {
            "kind": "vllm",
            "host": "here",
            "model": "whisper",
            "device": "cpu",
            "context": 448,
            "concurrency": 2,
            "port": free_port(),
            "command": str(ENGINE),
            "kv_cache_gib": 0.5,
            "environment": {"PYTHONPATH": str(Path(sys.argv[1]).resolve())},
            "residency": "always",
        }
        models = {"whisper": {"source": str(folder / "whisper"), "task": "transcribe"}}
        with serving(folder / "g", engines={"ears": engine}, models=models) as service:
            code = _try(service, engine["port"], folder)
    return code


def _try(service: RunningService, port: object, folder: Path) -> int:
    """Start vLLM as the appliance does, and send it audio through the gateway."""
    argv = [sys.executable, "-m", "appliance", "engine", "exec", "ears", "--config", str(service.config)]
    with (folder / "engine.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        began = time.monotonic()
        while reason := probe_token(f"http://127.0.0.1:{port}", "whisper", "transcribe"):
            if process.poll() is not None or time.monotonic() > began + START_S:
                print(f"vLLM does not transcribe: {reason}\n{(folder / 'engine.log').read_text()[-4000:]}")
                return 1
            time.sleep(1)
        print(f"the canary passed after {time.monotonic() - began:.0f} s")
        service.get("/ready")
        for more in ({}, {"response_format": "text"}, {"stream": "true"}):
            response = transcribe(service, sound(64_044), language="en", max_completion_tokens="16", **more)
            print(response.status, response.headers.get("content-type"), response.body[:300])
            if response.status != 200:
                return 1
        print(json.dumps(service.rows()[-1], default=str))
        return 0
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
