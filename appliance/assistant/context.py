"""The shared context of the endpoints of one running assistant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from appliance.assistant.inference import InferenceClient
from appliance.assistant.store.database import Database
from appliance.contract.model import Assistant, Site

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class AssistantContext:
    """The site, its settings for the assistant, the database, the way to the engines, the data folder."""

    site: Site
    settings: Assistant
    database: Database
    inference: InferenceClient
    folder: Path
    """The data folder."""
    _shared: dict[Callable[[AssistantContext], Any], Any] = field(default_factory=dict, repr=False, compare=False)

    def shared(self, kind: Callable[[AssistantContext], _Part]) -> _Part:
        """Return the one instance of ``kind`` in this assistant, a class whose only argument is a context.

        Example::

            search = context.shared(StoreSearch)
        """
        if kind not in self._shared:
            self._shared[kind] = kind(self)
        return cast("_Part", self._shared[kind])
