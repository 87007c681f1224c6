"""The catalogue's TOML: every figure of a card stands with its source, every model with its origin.

``load_*`` read what is shipped; :func:`dump_model` writes one model the way the shipped file has it.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from appliance.catalog.cards import Card, Cpu
from appliance.catalog.shape import Attention, LinearAttention, Mla, Moe, Shape
from appliance.contract.rules import suggest
from appliance.errors import ConfigError, UsageError
from appliance.system import text_file

PARTS: dict[str, type] = {
    "attention": Attention,
    "mla": Mla,
    "sliding": Attention,
    "linear": LinearAttention,
    "moe": Moe,
}
"""Nested tables of a model, and what they become."""


MAKERS_WORDS = ("nvidia", "geforce", "edition", "generation")
"""Words of a card's name that tell it from no other."""


def _shipped(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text("utf-8"))


@cache
def cards() -> dict[str, Card]:
    """Cards by their name."""
    loaded = {}
    for name, table in _shipped("gpus.toml")["gpus"].items():
        figures = {key: value["value"] if isinstance(value, dict) else value for key, value in table.items()}
        figures["aliases"] = tuple(figures.get("aliases", ()))
        loaded[name] = Card(name=name, **figures)
    return loaded


@cache
def cpus() -> dict[str, Cpu]:
    """Processors by their name."""
    loaded = {}
    for name, table in _shipped("cpus.toml")["cpus"].items():
        figures = {key: value["value"] if isinstance(value, dict) else value for key, value in table.items()}
        figures["aliases"] = tuple(figures.get("aliases", ()))
        loaded[name] = Cpu(name=name, **figures)
    return loaded


@cache
def shipped_models() -> dict[str, Shape]:
    """The shipped models by repository name."""
    return {name: read_model(name, table) for name, table in _shipped("models.toml")["models"].items()}


def models(extra: Path | None = None) -> dict[str, Shape]:
    """The shipped models, and those of the file ``extra``."""
    known = dict(shipped_models())
    if extra is not None:
        try:
            table = tomllib.loads(text_file.read(extra))["models"]
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise ConfigError(
                f"{extra}: is no catalogue ({error}); write it with `appliance catalog add-model`"
            ) from None
        known |= {name: read_model(name, entry) for name, entry in table.items()}
    return known


def read_model(name: str, table: dict[str, Any]) -> Shape:
    """One model's table as a shape."""
    fields = {key: value for key, value in table.items() if key not in PARTS}
    try:
        parts = {key: PARTS[key](**table[key]) for key in PARTS if key in table}
        full = parts.pop("mla", None) or parts.pop("attention")
        return Shape(name=name, full=full, **parts, **fields)
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"catalogue: model {name}: {error}; write it with `appliance catalog add-model`"
        ) from None


def dump_model(shape: Shape) -> str:
    """``shape`` as a TOML table, defaults left out."""
    lines = [f'[models."{shape.name}"]']
    for field in dataclasses.fields(shape):
        value = getattr(shape, field.name)
        if field.name == "name" or value == field.default:
            continue
        key = "mla" if isinstance(value, Mla) else "attention" if field.name == "full" else field.name
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


def find_card(name: str) -> Card:
    """Return the card that ``name`` means: its name, an alias, or what its driver prints.

    Words may come in any order, and without the maker's: ``NVIDIA A100 80GB PCIe`` is ``A100 PCIe 80GB``. Raises
    :class:`UsageError` for a name that means no card, or more than one.
    """
    wanted, words = plain(name), card_words(name)
    found = [
        card
        for card in cards().values()
        if any(wanted == plain(known) or words == card_words(known) for known in (card.name, *card.aliases))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"card {name!r} may be {' or '.join(card.name for card in found)}; name one of them")
    raise UsageError(f"there is no card {name!r} in the catalogue; {suggest(name, list(cards()))}")


def card_words(name: str) -> list[str]:
    """Return the words of a card's name in order of the alphabet, without the maker's; ``SXM5`` is ``SXM``."""
    words = re.findall(r"[a-z0-9]+", name.lower().replace("max-q", "maxq"))
    return sorted(re.sub(r"^sxm\d$", "sxm", word) for word in words if word not in MAKERS_WORDS)


def find_cpu(name: str) -> Cpu:
    """The processor that ``name`` means."""
    wanted = plain(name)
    for cpu in cpus().values():
        if wanted in {plain(cpu.name), *map(plain, cpu.aliases)}:
            return cpu
    raise UsageError(f"there is no processor {name!r} in the catalogue; {suggest(name, list(cpus()))}")


def find_model(name: str, known: dict[str, Shape] | None = None) -> Shape:
    """The model that ``name`` means: a repository, or its last part, whatever the case."""
    known = shipped_models() if known is None else known
    if name in known:
        return known[name]
    wanted = plain(name.rsplit("/", 1)[-1])
    for shape in known.values():
        if plain(shape.name.rsplit("/", 1)[-1]) == wanted:
            return shape
    raise UsageError(
        f"there is no model {name!r} in the catalogue; {suggest(name, list(known))} "
        "`appliance catalog add-model` adds one from its config.json"
    )


def plain(name: str) -> str:
    """``name`` in letters and digits alone, without the maker's words."""
    for word in MAKERS_WORDS:
        name = name.lower().replace(word, " ")
    return "".join(letter for letter in name if letter.isalnum())
