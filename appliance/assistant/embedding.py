"""The embedder that the memory uses: which model, how a query is sent, and the fingerprint of its vectors."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from appliance.assistant.retrieval.fingerprint import EmbedderFingerprint
from appliance.contract.model import Engine, Model, Site
from appliance.contract.violation import suggest
from appliance.engines.embedder_command import DISTRIBUTION
from appliance.engines.golden_pairs import expected_dimensions
from appliance.engines.recipe import query_prefix, recipe_of, settle
from appliance.errors import ConfigError
from appliance.system import files

SAMPLES = 64
"""Blocks of a file of weights that its digest reads, at equal distances."""
BLOCK_BYTES = 65_536
WEIGHTS = ("*.safetensors", "*.gguf", "*.bin")
CONFIGURATION = ("config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json")
"""Files of a folder that change its vectors, in addition to the weights."""


def embed_model(site: Site, wanted: str | None = None) -> str:
    """Return the name of the model that embeds: ``wanted``, or else the first embedder that an engine serves.

    Raises:
        ConfigError: No engine serves ``wanted``, it is not an embedder, or the site has no embedder.
    """
    served = [engine.model for engine in site.engines.values() if site.models[engine.model].task == "embed"]
    if wanted is None:
        if not served:
            raise ConfigError(
                'no engine serves embeddings, which the memory needs; add a model with task = "embed" and an engine'
            )
        return served[0]
    if wanted not in served:
        raise ConfigError(f"no engine serves embeddings of {wanted!r}; {suggest(wanted, served)}")
    return wanted


def query_text(site: Site, model: str, query: str) -> str:
    """Return ``query`` as the embedder ``model`` needs it; a document is sent as it is."""
    return query_prefix(site.models[model]) + query


def embedder_fingerprint(
    site: Site, model: str, base: Path, *, dimensions: int | None = None
) -> EmbedderFingerprint:
    """Return the fingerprint of the vectors of ``model``.

    Args:
        site: The site, valid.
        model: The name of an embedder that an engine serves, see :func:`embed_model`.
        base: The folder at which relative paths of the site begin.
        dimensions: The length of a vector that the engine returned, for models that the catalog does not have.

    Raises:
        ConfigError: The folder of the weights is absent, or the number of dimensions is not known. Or engines of
            different kinds serve the model, whose vectors would differ.

    Example::

        current = embedder_fingerprint(site, embed_model(site), Path.cwd())
    """
    entry = site.models[model]
    engines = [engine for engine in site.engines.values() if engine.model == model and engine.kind != "mock"]
    folder = (base / Path(entry.source).expanduser()).resolve() if entry.is_folder else None
    if folder is not None:
        entry = settle(entry.model_copy(update={"source": str(folder)}))
    ways = {(_pooling(engine, entry), _dtype(engine, folder)) for engine in engines} or {("mock", "mock")}
    if len(ways) > 1:
        raise ConfigError(
            f"the engines of {model} would return different vectors ({_listed(ways)}); give them one kind and one "
            "dtype, or serve them as two models"
        )
    ((pooling, dtype),) = ways
    known = dimensions or _configured_dimensions(folder)
    known = known or next((found for one in engines if (found := expected_dimensions(one, entry))), None)
    if known is None:
        raise ConfigError(f"the number of dimensions of {model} is not in the catalog; pass that of a vector")
    return EmbedderFingerprint(
        model=entry.source if folder is None else model,
        revision=_revision(entry, folder),
        pooling=pooling,
        instruction=query_prefix(entry),
        dimensions=known,
        dtype=dtype,
    )


def _listed(ways: set[tuple[str, str]]) -> str:
    return ", ".join(sorted(" ".join(way) for way in ways))


def _pooling(engine: Engine, model: Model) -> str:
    if engine.kind == "embedder":
        return "mean"
    configured = engine.options.get("pooler-config" if engine.kind == "vllm" else "pooling")
    if isinstance(configured, dict):
        configured = configured.get("pooling_type") or configured.get("seq_pooling_type")
    if isinstance(configured, str):
        return configured.lower()
    return "last" if recipe_of(model) == "qwen3-embedding" else "of the model"


def _dtype(engine: Engine, folder: Path | None) -> str:
    """Return the precision of the weights. A processor may compute in another one (see :mod:`.engines.cpu_dtype`);
    its vectors differ by rounding only and remain comparable.
    """
    if engine.kind == "embedder":
        return "uint8"
    if engine.kind == "llamacpp":
        return "gguf"
    stated = engine.options.get("dtype")
    if isinstance(stated, str) and stated != "auto":
        return stated
    config = _config(folder)
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _revision(model: Model, folder: Path | None) -> str:
    if model.is_package:
        try:
            return importlib.metadata.version(DISTRIBUTION)
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(
                f"{DISTRIBUTION} is not installed; install the extra `embedder` of this package"
            ) from None
    return (model.revision or "unpinned") if folder is None else f"sha256:{folder_digest(folder)}"


def folder_digest(folder: Path) -> str:
    """Return a SHA-256 over the weights and the configuration in ``folder``.

    Of each file of weights it reads the size and :data:`SAMPLES` blocks, so that 16 GB take a fraction of a second.
    Another training changes nearly every block. Raises :class:`ConfigError` for missing weights.
    """
    weights = [folder] if folder.is_file() else sorted({path for form in WEIGHTS for path in folder.glob(form)})
    if not weights:
        raise ConfigError(f"{folder} contains no weights ({', '.join(WEIGHTS)}); fetch the model again")
    digest = hashlib.sha256()
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for number in range(SAMPLES):
                file.seek(max(0, size - BLOCK_BYTES) * number // (SAMPLES - 1))
                digest.update(file.read(BLOCK_BYTES))
    for name in CONFIGURATION:
        digest.update(f"{name}\0".encode() + (files.read(folder / name) or b"" if folder.is_dir() else b""))
    return digest.hexdigest()


def _config(folder: Path | None) -> dict[str, Any]:
    if folder is None or not folder.is_dir():
        return {}
    try:
        found: Any = json.loads(files.read(folder / "config.json") or b"null")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _configured_dimensions(folder: Path | None) -> int | None:
    size = _config(folder).get("hidden_size")
    return size if isinstance(size, int) else None
