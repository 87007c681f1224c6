"""Tiny Qwen3 models for embeddings and reranking, and their vectors and scores by transformers.

Runs in the engine's environment. ``make FOLDER`` writes a model with the tokens "yes" and "no". Its tokenizer ends
each text with <|endoftext|>, as that of Qwen3-Embedding does. ``compute FOLDER`` reads pairs, texts and an
instruction as JSON and writes scores and vectors. The prompt, the last token and the softmax are those of the model
cards of Qwen3-Reranker and Qwen3-Embedding, written independently of the template.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.models.tiny_qwen3 import make_model, make_tokenizer

LAYER_SCALE = 4.0
"""Factor of all projections: with the usual small weights, the last token would determine the score alone."""


def make(folder: Path) -> None:
    """Write the model in float32, in which engine and reference agree to five digits."""
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model = make_model(tokenizer).to(torch.float32)
    tokenizer.add_tokens(["yes", "no"])
    model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "proj" in name:
                weights.mul_(LAYER_SCALE)
        model.lm_head.weight[-2:] = torch.randn(2, model.config.hidden_size) / model.config.hidden_size**0.5
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def prompt(query: str, document: str, instruction: str) -> str:
    """Return the prompt of Qwen3-Reranker's model card."""
    prefix = Path(__file__).parents[1].joinpath("engines/reranker_prompt.txt").read_text()
    head, tail = prefix.split("<Instruct>: Find it\n<Query>: q\n<Document>: d")
    return f"{head}<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}{tail.removesuffix(chr(10))}"


def compute(folder: Path) -> None:
    """Write the scores of the pairs and the vectors of the texts."""
    wanted = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    scores, vectors = [], []
    with torch.no_grad():
        for query, document in wanted["pairs"]:
            ids = tokenizer(prompt(query, document, wanted["instruction"]), return_tensors="pt").input_ids
            logits = model(ids).logits[0, -1, [no, yes]]
            scores.append(float(torch.softmax(logits, dim=0)[1]))
        for text in wanted["texts"]:
            ids = tokenizer(text, return_tensors="pt").input_ids
            state = model.model(ids).last_hidden_state[0, -1]
            vectors.append(torch.nn.functional.normalize(state, dim=0).tolist())
    json.dump({"scores": scores, "vectors": vectors}, sys.stdout)


if __name__ == "__main__":
    {"make": make, "compute": compute}[sys.argv[1]](Path(sys.argv[2]))
