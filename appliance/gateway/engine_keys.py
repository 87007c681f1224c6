"""Reads the API keys with which the gateway uses servers of kind http."""

from __future__ import annotations

from pathlib import Path

from appliance.contract.model import Site
from appliance.engines.argv import replicas
from appliance.errors import ConfigError
from appliance.system import text_file


def read_engine_keys(site: Site, base: Path) -> dict[str, str]:
    """Return the keys of the engines of ``site`` that have one, by the names of their replicas.

    Relative paths begin at ``base``. Raises :class:`ConfigError` for a file that cannot be read or has not exactly
    one key, and :class:`UsageError` for one whose text cannot be a key. No message contains a part of a key.
    """
    found: dict[str, str] = {}
    for replica in replicas(site):
        file = replica.engine.key_file
        if file is None:
            continue
        path = base / file
        words = text_file.keys(path, name=f"{path} (engines.{replica.name}.key_file)")
        if len(words) != 1:
            raise ConfigError(f"{path} (engines.{replica.name}.key_file): holds {len(words)} keys; write one")
        found[replica.name] = words[0]
    return found
