"""Recipes: how embedders and rerankers of a known family are served.

The original weights of Qwen3-Embedding and Qwen3-Reranker are plain ``Qwen3ForCausalLM``. An engine also serves
them without their pooling, prompt and overrides. It logs a warning at most, and every vector or score is noise.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

from appliance.contract.model import Model
from appliance.system import files

Recipe = Literal["qwen3-embedding", "qwen3-reranker", "qwen3-reranker-classifier", "plain"]
"""A reranker is *original* if its score is that of the tokens "yes" and "no", a classifier if a converter has put
both into one output."""

FAMILY = re.compile(r"qwen3[-_.]?(embedding|reranker)", re.IGNORECASE)
CONVERTED = re.compile(r"seq[-_.]?cls", re.IGNORECASE)

TEMPLATES = Path(str(package_files("appliance.engines").joinpath("templates")))

RERANKER_TEMPLATE = TEMPLATES / "qwen3_reranker.j2"
"""The prompt of Qwen3-Reranker for vLLM's ``--chat-template``."""

QUERY_PREFIX = (TEMPLATES / "qwen3_query.txt").read_text(encoding="utf-8").removesuffix("\n")
"""The text before a query of Qwen3-Embedding, with the task of its model card, for documents in any language."""

ORIGINAL_RERANKER: dict[str, Any] = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}
"""vLLM's overrides for the original weights: the score is the softmax over the logits of two tokens."""


def recipe_of(model: Model) -> Recipe:
    """Return the recipe of ``model``: its own, or that of the family in the name of its source."""
    if model.recipe != "auto":
        return model.recipe
    # The name of a folder or a file, or the last part of a repository.
    name = Path(model.source).name
    found = FAMILY.search(name)
    family = found.group(1).lower() if found else ""
    if model.task == "embed" and family == "embedding":
        return "qwen3-embedding"
    if model.task == "rerank" and family == "reranker":
        return "qwen3-reranker-classifier" if CONVERTED.search(name) else "qwen3-reranker"
    return "plain"


def settle(model: Model) -> Model:
    """Return ``model`` with a recipe instead of ``auto``, after the config.json of a folder if it has one.

    A reranker with the architecture of a text generator has no head for scores: it is an original Qwen3-Reranker,
    whatever its folder is called.
    """
    if model.task not in ("embed", "rerank") or model.recipe != "auto":
        return model
    recipe = recipe_of(model)
    if model.is_folder and model.task == "rerank":
        architecture = architecture_of(Path(model.source))
        if architecture == "Qwen3ForCausalLM":
            recipe = "qwen3-reranker"
        elif architecture and recipe == "qwen3-reranker":
            recipe = "qwen3-reranker-classifier"
    return model.model_copy(update={"recipe": recipe})


def architecture_of(folder: Path) -> str:
    """Return the first architecture in the config.json of ``folder``; empty if there is none."""
    try:
        config: Any = json.loads(files.read(folder / "config.json") or b"null")
    except ValueError:
        return ""
    names = config.get("architectures") if isinstance(config, dict) else None
    return str(names[0]) if isinstance(names, list) and names else ""


def query_prefix(model: Model) -> str:
    """Return the text that precedes a query of an embedder; documents have none.

    Example::

        text = query_prefix(site.models["qwen3-embed"]) + question
    """
    return QUERY_PREFIX if recipe_of(model) == "qwen3-embedding" else ""
