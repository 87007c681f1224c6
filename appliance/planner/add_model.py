"""``appliance catalog add-model``: reads a model's ``config.json`` from a folder or from the hub's local cache."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from appliance.catalog import hf_config
from appliance.catalog.shape import Shape
from appliance.errors import ConfigError
from appliance.planner import precision

TOLERANCE = 0.15
"""Largest relative difference of the weights' index from the count, which omits vision towers and MTP heads."""


def read(source: str, pooling: bool = False) -> Shape:
    """Return the shape of the model at ``source``: a config.json, a folder, or a repository in the local cache.

    ``pooling`` is set for a model that only embeds. Raises :class:`ConfigError`, one line, for a file that is not
    readable or not understood.
    """
    path = locate(source)
    config = _table(path)
    if not (config.get("quantization_config") or config.get("compression_config")):
        config |= _quantised_beside(path.parent)
    name = str(config.get("_name_or_path") or "") or (
        source if _is_repository(source) else path.parent.resolve().name
    )
    if _is_repository(source):
        name = source
    shape = hf_config.parse(name, config, source=f"config.json of {name}", pooling=pooling)
    index = path.parent / "model.safetensors.index.json"
    return _against_index(shape, index) if index.is_file() else shape


def _table(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, in any Unicode encoding, with or without a byte order mark."""
    try:
        if path.stat().st_size > 4_000_000:
            raise ConfigError(f"{path}: is too large for a config.json; name the model's own file")
        table = json.loads(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); name a readable config.json") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({error}); download it again") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: holds no JSON object; name the model's config.json")
    return table


def _quantised_beside(folder: Path) -> dict[str, Any]:
    """Return the quantisation that a checkpoint states in a separate file: ModelOpt, AutoGPTQ, AutoAWQ."""
    beside = folder / "hf_quant_config.json"
    if beside.is_file():
        # vLLM also reads this file.
        table = _table(beside)
        inner = table.get("quantization")
        return {
            "quantization_config": {**(inner if isinstance(inner, dict) else table), "quant_method": "modelopt"}
        }
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (folder / name).is_file():
            return {"quantization_config": {"quant_method": method, **_table(folder / name)}}
    return {}


def locate(source: str) -> Path:
    """Return the path of the config.json of ``source``; :class:`ConfigError` if it does not exist."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        inside = path / "config.json"
        if inside.is_file():
            return inside
        raise ConfigError(f"{path}: holds no config.json; name the model's folder")
    if _is_repository(source):
        home = os.environ.get("HF_HOME")
        base = Path(home) if home else Path.home() / ".cache" / "huggingface"
        folder = base / "hub" / f"models--{source.replace('/', '--')}" / "snapshots"
        found = sorted(folder.glob("*/config.json"), key=lambda one: one.stat().st_mtime) if folder.is_dir() else []
        if found:
            return found[-1]
        raise ConfigError(
            f"{source} is not in the local cache; fetch its config.json (`hf download {source} config.json`) "
            "or name a folder"
        )
    raise ConfigError(f"{source}: no such file or folder; name a config.json, its folder, or OWNER/NAME")


def _is_repository(source: str) -> bool:
    parts = source.split("/")
    return len(parts) == 2 and all(parts) and not source.startswith((".", "~", "/"))


def _against_index(shape: Shape, index: Path) -> Shape:
    """Return ``shape`` with the checkpoint's size from its index.

    Raises :class:`ConfigError` for a config.json that belongs to other weights.
    """
    try:
        table: Any = json.loads(index.read_bytes())
        size = int(table["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return shape
    counted = precision.weights(shape, precision.parse(shape.native)).total
    if not 1 - TOLERANCE <= size / counted <= 1 + 2 * TOLERANCE:
        raise ConfigError(
            f"{shape.name}: config.json describes {counted / 1e9:.2f} GB of {shape.native} weights, the index "
            f"{size / 1e9:.2f} GB; one of them belongs to another model: download both again"
        )
    return dataclasses.replace(shape, checkpoint_bytes=size)
