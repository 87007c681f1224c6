"""Reads a site from a file and reports each error in one line.

TOML for people, JSON from NixOS, distinguished by the file's suffix; the validation is the same.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.contract.engine_options import check_options
from appliance.contract.model import Site, Tuning
from appliance.contract.rules import violations
from appliance.contract.violation import suggest
from appliance.errors import ConfigError
from appliance.system import text_file

MAX_BYTES = 1_000_000
"""Upper limit of a file in bytes. No site needs a megabyte: a larger file is another one."""


def load(path: Path) -> Site:
    """Return the site in ``path``.

    Raises :class:`ConfigError` with one line per error: file, key, error, fix.
    """
    return validate(str(path), parse(path, read(path)))


def validate(name: str, table: dict[str, Any]) -> Site:
    """Return ``table`` as a site.

    Raises :class:`ConfigError` with one line per error, each beginning with ``name``.
    """
    table = _with_tuning(table)
    try:
        # JSON mode: arrays become tuples, and a value of another type is still rejected.
        site = Site.model_validate_json(json.dumps(table))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{name}: {line}" for line in _lines(error, table))) from None
    broken = [str(violation) for violation in violations(site)] + check_options(site)
    if broken:
        raise ConfigError("\n".join(f"{name}: {line}" for line in broken))
    return site


def _with_tuning(table: dict[str, Any]) -> dict[str, Any]:
    """Return ``table`` with the keys of ``gateway.tuning`` in it: earlier versions had them in ``gateway``."""
    gateway = table.get("gateway")
    tuning = gateway.get("tuning", {}) if isinstance(gateway, dict) else None
    if not isinstance(gateway, dict) or not isinstance(tuning, dict):
        return table
    moved = {name: gateway[name] for name in Tuning.model_fields if name in gateway}
    if not moved:
        return table
    rest = {name: value for name, value in gateway.items() if name not in moved}
    return table | {"gateway": rest | {"tuning": moved | tuning}}


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
    """Return ``text`` as a table: JSON if ``path`` ends in .json, else TOML.

    Raises :class:`ConfigError` if it is empty or not valid.
    """
    if not text.strip():
        raise ConfigError(f"{path}: is empty; start from examples/laptop.toml")
    try:
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: is not {kind}: {error}; fix the syntax there") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; a site has at most six levels") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: is a JSON {type(table).__name__}; a site is an object")
    return table


def _lines(error: ValidationError, table: dict[str, Any]) -> list[str]:
    """Return one line per error: key, error, fix."""
    lines = []
    for one in error.errors(include_url=False):
        place = ".".join(str(part) for part in one["loc"] if part != "[key]") or "the file"
        lines.append(f"{place}: {_sentence(one['type'], one['msg'], one['loc'], table)}")
    return lines


def _sentence(kind: str, message: str, loc: tuple[int | str, ...], table: dict[str, Any]) -> str:
    if kind == "extra_forbidden":
        return f"unknown key; {suggest(str(loc[-1]), _siblings(loc))}"
    if kind == "missing":
        return "is missing; add it (`appliance schema` describes every key)"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if loc and loc[-1] == "[key]":
        plain = "is not a name: use letters, digits, dot, dash and underscore, and begin with a letter or digit"
        if loc[0] == "users":
            return f"{plain}; write an end user as `appliance usage` shows it, user/end-user"
        return plain
    value = _at(table, loc)
    shown = f", not {json.dumps(value)[:60]}" if isinstance(value, (str, int, float, bool)) else ""
    return f"{message[0].lower()}{message[1:]}{shown}; `appliance schema` describes it"


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the table that holds ``loc``."""
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
        # A section that may be absent is "a table or null".
        node = next((option for option in node.get("anyOf", ()) if "$ref" in option), node)
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
