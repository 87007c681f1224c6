"""Models: the shipped shapes, those of the user's own file, and the search for a model by name.

:func:`dump_model` writes a model in the format of the shipped file.
"""

from __future__ import annotations

import dataclasses
import tomllib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from appliance.catalog.names import normalise
from appliance.catalog.shape import Attention, DeltaAttention, LinearAttention, Mamba2, Mla, Moe, PartBytes, Shape
from appliance.catalog.shipped import read_table
from appliance.contract.violation import suggest
from appliance.errors import ConfigError, UsageError
from appliance.system import text_file

PARTS: dict[str, type] = {
    "attention": Attention,
    "mla": Mla,
    "sliding": Attention,
    "linear": LinearAttention,
    "delta": DeltaAttention,
    "mamba": Mamba2,
    "moe": Moe,
    "native_bytes": PartBytes,
}
"""Nested tables of a model, and the type of each."""


@cache
def shipped_models() -> dict[str, Shape]:
    """Return the shipped models by the name of their repository."""
    return {name: read_model(name, table) for name, table in read_table("models.toml", "models").items()}


def known_models(extra: Path | None = None) -> dict[str, Shape]:
    """Return the shipped models and those of the file ``extra``, by name.

    Raises :class:`ConfigError` if ``extra`` is not a catalog.
    """
    known = dict(shipped_models())
    if extra is not None:
        try:
            table = tomllib.loads(text_file.read(extra))["models"]
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise ConfigError(
                f"{extra}: is not a catalog ({error}); write it with `appliance catalog add-model`"
            ) from None
        known |= {name: read_model(name, entry) for name, entry in table.items()}
    return known


def read_model(name: str, table: dict[str, Any]) -> Shape:
    """Return the shape in the ``table`` of the model ``name``; :class:`ConfigError` for a field that is unknown."""
    fields = {key: value for key, value in table.items() if key not in PARTS}
    try:
        parts = {key: PARTS[key](**table[key]) for key in PARTS if key in table}
        full = parts.pop("mla", None) or parts.pop("attention")
        linear = parts.pop("mamba", None) or parts.pop("delta", None) or parts.pop("linear", None)
        return Shape(name=name, full=full, linear=linear, **parts, **fields)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"catalog: model {name}: {error}; write it with `appliance catalog add-model`") from None


def dump_model(shape: Shape) -> str:
    """Return ``shape`` as a TOML table without its default values."""
    lines = [f'[models."{shape.name}"]']
    for field in dataclasses.fields(shape):
        value = getattr(shape, field.name)
        if field.name == "name" or value == field.default:
            continue
        key = "attention" if field.name == "full" else field.name
        key = next((name for name in ("mla", "mamba", "delta") if isinstance(value, PARTS[name])), key)
        lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if dataclasses.is_dataclass(value):
        pairs = (
            f"{field.name} = {_toml(getattr(value, field.name))}"
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        )
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


@lru_cache(maxsize=1024)
def _last_part(name: str) -> str:
    return normalise(name.rsplit("/", 1)[-1])


def find_model(name: str, known: dict[str, Shape] | None = None) -> Shape:
    """Return the model with ``name``: a repository, or its last part in any case.

    ``known`` are the models to search, the shipped ones if absent. Raises :class:`UsageError` if none matches.
    """
    known = shipped_models() if known is None else known
    if name in known:
        return known[name]
    wanted = _last_part(name)
    for shape in known.values():
        if _last_part(shape.name) == wanted:
            return shape
    raise UsageError(
        f"model {name!r} is not in the catalog; {suggest(name, list(known))} "
        "`appliance catalog add-model` adds one from its config.json"
    )
