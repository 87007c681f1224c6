"""The greedy texts of engines that sleep, kept in a file for the next gateway.

A gateway that starts again can find an engine asleep. The text of that engine's load is then needed for the first
comparison after a wake.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from appliance.errors import StoreError
from appliance.system import files

LOG = logging.getLogger(__name__)

NAME = "greedy_texts.json"
"""The file in the gateway's folder."""

GreedyTexts = tuple[str | None, ...]


class GreedyRecord:
    """The texts by engine in ``folder``; without a folder they are not kept."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / NAME if folder is not None else None
        self._texts: dict[str, GreedyTexts] = _read(self._path) if self._path is not None else {}

    def get(self, engine: str) -> GreedyTexts:
        """Return the texts of ``engine``; empty if none are known."""
        return self._texts.get(engine, ())

    def put(self, engine: str, texts: GreedyTexts) -> None:
        """Keep the texts of ``engine``. A file that cannot be written is logged: the comparison is then shorter."""
        if self.get(engine) == texts:
            return
        self._texts[engine] = texts
        if self._path is None:
            return
        try:
            files.replace(self._path, json.dumps(self._texts), mode=0o600)
        except StoreError as error:
            LOG.warning("the texts for comparisons after a wake are not kept: %s", error)


def _read(path: Path) -> dict[str, GreedyTexts]:
    try:
        content: Any = json.loads(files.read(path) or b"{}")
        return {str(name): tuple(_text(one) for one in texts) for name, texts in content.items()}
    except (StoreError, ValueError, TypeError, AttributeError) as error:
        LOG.warning("%s is not readable, and the first wakes are not compared: %s", path, error)
        return {}


def _text(one: object) -> str | None:
    if one is None or isinstance(one, str):
        return one
    raise ValueError(f"{type(one).__name__} is not a text")
