"""Reads a site from a file and says in one line what is wrong with it.

TOML for people, JSON from NixOS, told apart by the file's ending; the same validation for both.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.contract.engine_options import check_options
from appliance.contract.model import Site
from appliance.contract.rules import suggest, violations
from appliance.errors import ConfigError
from appliance.system import text_file

MAX_BYTES = 1_000_000
"""No site needs a megabyte; a larger file is a mistake, and reading it would only hide that."""


def load(path: Path) -> Site:
    """The site in ``path``.

    Raises :class:`ConfigError` with one line per fault, each: file, where, what, how to mend.
    """
    return validate(str(path), parse(path, read(path)))


def validate(name: str, table: dict[str, Any]) -> Site:
    """``table`` as a site; raises :class:`ConfigError` with one line per fault, each beginning with ``name``."""
    try:
        # JSON mode: arrays become tuples, and a value of the wrong type is still refused.
        site = Site.model_validate_json(json.dumps(table))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{name}: {line}" for line in _lines(error, table))) from None
    broken = [str(violation) for violation in violations(site)] + check_options(site)
    if broken:
        raise ConfigError("\n".join(f"{name}: {line}" for line in broken))
    return site


def read(path: Path) -> str:
    """Return the text of ``path``; raises :class:`ConfigError` if it cannot be a configuration's text."""
    return text_file.read(
        path,
        missing="no such file; examples are in examples/",
        folder="name the TOML or JSON file in it",
        what="a site's file",
        max_bytes=MAX_BYTES,
    )


def parse(path: Path, text: str) -> dict[str, Any]:
    """``text`` as a table, by the ending of ``path``."""
    if not text.strip():
        raise ConfigError(f"{path}: is empty; start from examples/laptop.toml")
    try:
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: is not {kind}: {error}; mend the syntax there") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; a site has at most six levels") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: is a JSON {type(table).__name__}; a site is an object")
    return table


def _lines(error: ValidationError, table: dict[str, Any]) -> list[str]:
    """One line per fault: where, what, how to mend it."""
    lines = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"] if part != "[key]") or "the file"
        lines.append(f"{where}: {_say(fault['type'], fault['msg'], fault['loc'], table)}")
    return lines


def _say(kind: str, message: str, loc: tuple[int | str, ...], table: dict[str, Any]) -> str:
    if kind == "extra_forbidden":
        return f"unknown key; {suggest(str(loc[-1]), _siblings(loc))}"
    if kind == "missing":
        return "is missing; add it (`appliance schema` describes every key)"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if loc and loc[-1] == "[key]":
        plain = "is no name: letters, digits, dot, dash and underscore, beginning with a letter or digit"
        return f"{plain}; an end user as `appliance usage` shows it, user/end-user" if loc[0] == "users" else plain
    value = _at(table, loc)
    shown = f", not {json.dumps(value)[:60]}" if isinstance(value, (str, int, float, bool)) else ""
    return f"{message[0].lower()}{message[1:]}{shown}; `appliance schema` describes it"


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are known in the table that ``loc`` points into."""
    schema = Site.model_json_schema()
    node: dict[str, Any] = schema
    for part in loc[:-1]:
        if isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            extra: Any = node.get("additionalProperties") or next(
                iter(node.get("patternProperties", {}).values()), {}
            )
            node = extra if isinstance(extra, dict) else {}
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return list(node.get("properties", {}))


def _at(table: Any, loc: tuple[int | str, ...]) -> Any:
    for part in loc:
        try:
            table = table[part]
        except (KeyError, IndexError, TypeError):
            return None
    return table
