"""The options of a load test, without the command line that names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from appliance.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTestOptions:
    """A load test as requested; whatever is absent is taken from the scenario or from the configuration."""

    config: Path
    """The configuration of the site; it may be missing if ``url`` is given."""
    scenario: str = "chat"
    url: str | None = None
    """Base URL of the gateway."""
    models: tuple[str, ...] = ()
    """Names of models or roles."""
    keys: Path | None = None
    """File of API keys, one per line; without it the key is read from the environment."""
    engine_urls: tuple[str, ...] = ()
    """Engines that are queried for their tokenizer and metrics."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~loadtests.parameters.Parameters`."""
    slo: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~appliance.contract.model.Slo`."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~loadtests.parameters.LoadLimits`."""
    baseline: Path | None = None
    """Report of an earlier run, as JSON."""
    find_goodput: bool = False
    """Search for the highest load that meets the SLOs, instead of one run."""
    max_load: float = 1000.0
    """Upper bound of that search: requests/s in an open loop, users in a closed one."""
    resolution: float = 0.1
    """Relative distance of both ends at which the search stops."""
    outputs: Mapping[str, Path | None] = field(default_factory=dict)
    """Files to write by their flag: ``--json``, ``--junit``, ``--html``, ``--samples``."""


def validated(model: type[Model], table: Mapping[str, Any]) -> Model:
    """Return ``table`` as ``model``; raises :class:`UsageError` with the first error in one line."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        raise UsageError(f"{first['loc'][0]}: {message}, not {first['input']}") from None
