"""The fields of one config.json: each read once, checked as it is read, and none left over.

A file is refused unless :meth:`ConfigFields.finish` finds every field read, harmless, or in a value that changes
nothing. So "refused rather than guessed" also holds for fields of families yet to come.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from appliance.catalog import harmless_fields
from appliance.catalog.families import FAMILIES
from appliance.catalog.family import REFUSED, SAME_AS, Family
from appliance.errors import ConfigError

LIMITS: dict[str, tuple[int, int]] = {
    "hidden_size": (8, 65536),
    "num_hidden_layers": (1, 1024),
    "vocab_size": (2, 4_000_000),
    "num_attention_heads": (1, 1024),
    "max_position_embeddings": (1, 16_777_216),
}
"""What every model has, and the range in which the figure can be true."""

NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "vlm_config")
"""Fields that hold the text model of a multimodal one."""

BY_HAND = "describe the model by hand in models.toml"


@cache
def _all_defaults() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(resources.files(__package__).joinpath("defaults.toml").read_text("utf-8"))


def defaults(kind: str) -> Mapping[str, Any]:
    """Return what the class of ``kind`` assumes for fields that a file leaves out; empty if unknown."""
    return _all_defaults().get(kind, {})


def chain(kind: str) -> list[str]:
    """Return ``kind`` and the families it is built like, the last of them in FAMILIES if it is known."""
    kinds = [kind]
    while kinds[-1] in SAME_AS:
        kinds.append(SAME_AS[kinds[-1]])
    return kinds


def family_of(name: str, kind: str) -> Family:
    """Return the family of ``kind``; :class:`ConfigError` if it is not counted."""
    found = FAMILIES.get(chain(kind)[-1])
    if found is not None:
        return found
    what = next((what for prefix, what in REFUSED.items() if kind.startswith(prefix)), None)
    if what is not None:
        raise ConfigError(f"{name}: model_type {kind} is not supported ({what}); {BY_HAND}")
    if not kind:
        raise ConfigError(f"{name}: config.json has no model_type; take the model's own config.json")
    raise ConfigError(f"{name}: model_type {kind!r:.60} is not a family that the planner can count; {BY_HAND}")


def split(name: str, config: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the tables of ``config`` from the outermost to the text model's, and the names of the nested ones."""
    tables: list[Mapping[str, Any]] = [config]
    path: list[str] = []
    while True:
        inside = [key for key in NESTED if isinstance(tables[-1].get(key), Mapping)]
        if not inside:
            return tables, path
        if len(inside) > 1 or len(path) == len(NESTED):
            where = ".".join(path) or "config.json"
            raise ConfigError(f"{name}: {where} has {' and '.join(inside)}: two text models; {BY_HAND}")
        path.append(inside[0])
        tables.append(tables[-1][inside[0]])


class ConfigFields:
    """The fields of a text model's table, those read marked as such."""

    def __init__(self, name: str, table: Mapping[str, Any], kind: str, path: Iterable[str]) -> None:
        self.name = name
        self.table = table
        self.kind = kind
        self.family = family_of(name, kind)
        self.path = ".".join(path)
        self.seen: set[str] = set()
        self.assumed = next((found for one in chain(kind) if (found := defaults(one))), {})

    def spelled(self, key: str) -> tuple[str, ...]:
        """Return the family's spellings of the ordinary field ``key``."""
        return self.family.names.get(key, (key,))

    def path_of(self, key: str) -> str:
        """Return ``key`` with the names of the tables around it."""
        return f"{self.path}.{key}" if self.path else key

    def raw(self, *keys: str, own: bool = False) -> tuple[str, Any]:
        """Return the first spelling of ``keys`` that the file has, and its value.

        Without one, or if ``own`` is not set and the file has none, the value is what the family's class
        assumes, or None. Spellings that contradict each other are refused.
        """
        names = [name for key in keys for name in self.spelled(key)]
        self.seen.update(names)
        found = [(name, self.table[name]) for name in names if self.table.get(name) is not None]
        if found:
            first, value = found[0]
            for other, second in found[1:]:
                if second != value:
                    raise ConfigError(
                        f"{self.name}: {self.path_of(first)} = {value!r:.40} and {other} = {second!r:.40} "
                        "contradict each other; remove one of them"
                    )
            return first, value
        if own or any(name in self.table for name in names):
            return names[0], None
        return next(((name, self.assumed[name]) for name in names if name in self.assumed), (names[0], None))

    def integer(self, *keys: str, default: int | None = None, own: bool = False) -> int:
        """Return a whole number within its limits; ``default`` if there is none."""
        key, value = self.raw(*keys, own=own)
        if value is None:
            if default is not None:
                return default
            raise self.missing(key)
        low, high = LIMITS.get(keys[0], (0, 1 << 24))
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.impossible(key, value, low, high)
        return value

    def positive(self, *keys: str, default: int | None = None, own: bool = False) -> int:
        """Return a whole number above 0."""
        value = self.integer(*keys, default=default, own=own)
        if value < 1:
            raise self.impossible(self.spelled(keys[0])[0], value, 1, value)
        return value

    def length(self, key: str) -> int:
        """Return a number of tokens; files write whole numbers with a point, too."""
        name, value = self.raw(key)
        low, high = LIMITS["max_position_embeddings"]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.impossible(name, value, low, high)
        return value

    def impossible(self, key: str, value: object, low: int, high: int) -> ConfigError:
        """Return the error for a figure that is not a whole number between ``low`` and ``high``."""
        # NaN is not above anything.
        above = isinstance(value, (int, float)) and value > low
        nearest = int(min(value, high)) if above and isinstance(value, (int, float)) else low
        return ConfigError(
            f"{self.name}: {self.path_of(key)} = {value!r:.40} cannot be true; "
            f"nearest: a whole number like {nearest}"
        )

    def missing(self, key: str) -> ConfigError:
        """Return the error for a field that the file does not have."""
        if "peft_type" in self.table or "base_model_name_or_path" in self.table:
            return ConfigError(
                f"{self.name}: config.json has no {key}: it is an adapter's; take the model's own file"
            )
        return ConfigError(
            f"{self.name}: config.json has no {self.path_of(key)}; add it, or take the model's own config.json"
        )

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return a field that is true or false."""
        name, value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self.name}: {self.path_of(name)} = {value!r:.40} is neither true nor false")
        return value

    def option(self, text: str) -> str:
        """Return what ``text`` says: ``what``, or with ``flag:what``, ``what`` if the file sets the flag."""
        flag, colon, what = text.partition(":")
        if not colon:
            return text
        return what if self.flag(flag) else "none"

    def listed(self, key: str, length: int) -> list[Any] | None:
        """Return a list with one entry per layer, None if the file has none."""
        _, value = self.raw(key, own=True)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length:
            count = len(value) if isinstance(value, list) else 0
            raise ConfigError(
                f"{self.name}: {self.path_of(key)} names {count} layers, num_hidden_layers says {length}; "
                "make them agree"
            )
        return value

    def refused(self, key: str, value: object) -> ConfigError:
        """Return the error for a field that is not understood."""
        meaning = harmless_fields.MEANING.get(key)
        speaks = f" ({meaning})" if meaning else ""
        return ConfigError(
            f"{self.name}: config.json has {self.path_of(key)} = {value!r:.40}{speaks}, which the planner does not "
            f"understand in model_type {self.kind} and which may change size or context; {BY_HAND}"
        )

    def finish(self) -> None:
        """Refuse the file if any field was neither read nor is harmless."""
        for key, value in self.table.items():
            if key in self.seen or key in self.family.harmless or key in NESTED:
                continue
            if key in self.family.everywhere and isinstance(value, list):
                allowed: tuple[object, ...] = ([self.family.everywhere[key]] * len(value),)
            elif key in self.family.only:
                allowed = self.family.only[key]
            elif harmless_fields.is_harmless(key):
                continue
            else:
                allowed = harmless_fields.ONLY.get(key, ())
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
                raise self.refused(key, value)


OUTSIDE = frozenset(
    {
        "compression_config",
        "model_max_length",
        "quantization_config",
        "tie_word_embeddings",
    }
)
"""Fields of an outer table that are read there."""


def check_outside(name: str, tables: list[Mapping[str, Any]], path: list[str]) -> None:
    """Refuse a multimodal model's outer table with a field that is not understood."""
    text = tables[-1]
    for depth, table in enumerate(tables[:-1]):
        for key, value in table.items():
            if key == path[depth] or key in OUTSIDE or harmless_fields.is_harmless(key):
                continue
            # Some files repeat their text model's fields outside.
            if key in text and text[key] == value:
                continue
            allowed = harmless_fields.ONLY.get(key, ())
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
                where = ".".join([*path[:depth], key])
                raise ConfigError(
                    f"{name}: config.json has {where} = {value!r:.40} outside its {path[-1]}, which the planner "
                    f"does not understand and which may change size or context; {BY_HAND}"
                )
