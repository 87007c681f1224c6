"""The fields of one config.json: each is checked when it is read, and none is ignored.

:meth:`ConfigFields.finish` rejects a file unless every field was read, is harmless, or has a value that changes
nothing. So fields of future families are rejected as well, not guessed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
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
"""Fields that every model has, and the possible range of each."""

NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "vlm_config")
"""Fields that hold the text model of a multimodal one."""

BY_HAND = "describe the model by hand in models.toml"


@cache
def _all_defaults() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(resources.files(__package__).joinpath("defaults.toml").read_text("utf-8"))


def defaults(kind: str) -> Mapping[str, Any]:
    """Return the values that the class of ``kind`` assumes for fields missing from a file; empty if unknown."""
    return _all_defaults().get(kind, {})


def chain(kind: str) -> list[str]:
    """Return ``kind`` and the families with the same structure; the last is in FAMILIES if it is known."""
    kinds = [kind]
    while kinds[-1] in SAME_AS:
        kinds.append(SAME_AS[kinds[-1]])
    return kinds


def family_of(name: str, kind: str) -> Family:
    """Return the family of ``kind``; :class:`ConfigError` if the planner does not count it."""
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
    """Return the tables of ``config`` from the outermost to the text model's, and the names of the nested ones.

    Raises :class:`ConfigError` if a table has two text models.
    """
    tables: list[Mapping[str, Any]] = [config]
    path: list[str] = []
    while True:
        inside = [key for key in NESTED if isinstance(tables[-1].get(key), Mapping)]
        if not inside:
            return tables, path
        if len(inside) > 1 or len(path) == len(NESTED):
            table = ".".join(path) or "config.json"
            raise ConfigError(f"{name}: {table} has {' and '.join(inside)}: two text models; {BY_HAND}")
        path.append(inside[0])
        tables.append(tables[-1][inside[0]])


class ConfigFields:
    """The fields of a text model's table, and the set of those that were read."""

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

        If the file has none and ``own`` is not set, the value is the one that the family's class assumes, or None.
        Raises :class:`ConfigError` for spellings that contradict each other.
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
        """Return a whole number within its limits; ``default`` if the file has none.

        Raises :class:`ConfigError` for any other value, and for a missing field without ``default``.
        """
        key, value = self.raw(*keys, own=own)
        if value is None:
            if default is not None:
                return default
            raise self.missing(key)
        low, high = LIMITS.get(keys[0], (0, 1 << 24))
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.impossible(key, value, low=low, high=high)
        return value

    def positive(self, *keys: str, default: int | None = None, own: bool = False) -> int:
        """Return a whole number above 0, as :meth:`integer` does."""
        value = self.integer(*keys, default=default, own=own)
        if value < 1:
            raise self.impossible(self.spelled(keys[0])[0], value, low=1, high=value)
        return value

    def length(self, key: str) -> int:
        """Return a number of tokens; some files write whole numbers with a decimal point."""
        name, value = self.raw(key)
        low, high = LIMITS["max_position_embeddings"]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.impossible(name, value, low=low, high=high)
        return value

    def impossible(self, key: str, value: object, *, low: int, high: int) -> ConfigError:
        """Return the error for a figure that is not a whole number between ``low`` and ``high``."""
        # NaN is not above any number.
        above = isinstance(value, (int, float)) and value > low
        nearest = int(min(value, high)) if above and isinstance(value, (int, float)) else low
        return ConfigError(
            f"{self.name}: {self.path_of(key)} = {value!r:.40} is not possible; "
            f"nearest: a whole number like {nearest}"
        )

    def missing(self, key: str) -> ConfigError:
        """Return the error for a field that the file does not have."""
        if "peft_type" in self.table or "base_model_name_or_path" in self.table:
            return ConfigError(
                f"{self.name}: config.json has no {key}: the file belongs to an adapter; take the model's own file"
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
        """Return the value of ``text``: of ``flag:value``, the value if the file sets the flag, else ``none``."""
        flag, colon, value = text.partition(":")
        if not colon:
            return text
        return value if self.flag(flag) else "none"

    def listed(self, key: str, length: int) -> list[Any] | None:
        """Return a list with one entry for each of ``length`` layers, None if the file has no such list."""
        _, value = self.raw(key, own=True)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length:
            count = len(value) if isinstance(value, list) else 0
            raise ConfigError(
                f"{self.name}: {self.path_of(key)} names {count} layers, num_hidden_layers is {length}; "
                "make them agree"
            )
        return value

    def inner(
        self, path: str, table: object, read: Collection[str], only: Mapping[str, tuple[object, ...]]
    ) -> Mapping[str, Any]:
        """Return the inner ``table`` at ``path``.

        Raises :class:`ConfigError` unless each of its fields is in ``read`` or has a value in ``only``.
        """
        if not isinstance(table, Mapping):
            raise self.refused(path, table)
        for key, value in table.items():
            if key not in read and value not in only.get(key, ()):
                raise self.refused(f"{path}.{key}", value)
        return table

    def size(self, path: str, value: object) -> int:
        """Return a size that an inner table states; raises :class:`ConfigError` unless it is a possible one."""
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 16:
            raise self.refused(path, value)
        return value

    def refused(self, key: str, value: object) -> ConfigError:
        """Return the error for a field that is not understood."""
        meaning = harmless_fields.MEANING.get(key)
        explained = f" ({meaning})" if meaning else ""
        return ConfigError(
            f"{self.name}: config.json has {self.path_of(key)} = {value!r:.40}{explained}, which the planner does "
            f"not understand in model_type {self.kind} and which may change size or context; {BY_HAND}"
        )

    def finish(self) -> None:
        """Raise :class:`ConfigError` for a field that was not read and is not harmless."""
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
    """Raise :class:`ConfigError` if an outer table of a multimodal model has a field that is not understood."""
    text = tables[-1]
    for depth, table in enumerate(tables[:-1]):
        for key, value in table.items():
            if key == path[depth] or key in OUTSIDE or harmless_fields.is_harmless(key):
                continue
            # Some files repeat their text model's fields in the outer table.
            if key in text and text[key] == value:
                continue
            allowed = harmless_fields.ONLY.get(key, ())
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
                field = ".".join([*path[:depth], key])
                raise ConfigError(
                    f"{name}: config.json has {field} = {value!r:.40} outside its {path[-1]}, which the planner "
                    f"does not understand and which may change size or context; {BY_HAND}"
                )
