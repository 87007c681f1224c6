"""Default options and environment of vLLM by model and card: the rules of ``recipes.toml``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from appliance.catalog.cards import find_card
from appliance.contract.engine_options import known_flags
from appliance.contract.model import Engine, Model, Site
from appliance.contract.violation import suggest
from appliance.errors import ConfigError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRule:
    """One rule: its conditions, and the options and environment that it gives."""

    name: str
    reason: str
    source: str
    models: str = ""
    compute: float | None = None
    cards: int = 1
    without: tuple[str, ...] = ()
    given: Mapping[str, str] = field(default_factory=dict)
    adapters: bool = False
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def fits(self, engine: Engine, model: Model, computes: Collection[float]) -> bool:
        """Return whether the rule is for ``engine``; ``computes`` are the capabilities of its cards."""
        if engine.kind != "vllm" or engine.device != "cuda" or model.task != "generate":
            return False
        return (
            re.search(self.models, Path(model.source).name) is not None
            and (self.compute is None or set(computes) == {self.compute})
            and engine.tensor_parallel >= self.cards
            and not any(flag in engine.options for flag in self.without)
            and all(re.match(value, str(engine.options.get(flag, ""))) for flag, value in self.given.items())
            and (bool(model.adapters) or not self.adapters)
        )


@dataclass(frozen=True, slots=True)
class EngineTuning:
    """Options and environment of all rules that fit, and a line for each of these rules."""

    options: dict[str, JsonValue]
    environment: dict[str, str]
    reasons: tuple[str, ...]


@cache
def shipped_rules() -> tuple[TuningRule, ...]:
    """Return the rules of ``recipes.toml``."""
    text = package_files("appliance.engines").joinpath("recipes.toml").read_text("utf-8")
    return parse_rules(tomllib.loads(text)["recipes"], known_flags())


def parse_rules(tables: Mapping[str, Mapping[str, Any]], flags: Collection[str]) -> tuple[TuningRule, ...]:
    """Return the rules of ``tables``; raises :class:`ConfigError` for a flag that ``flags`` of vLLM lacks."""
    rules = []
    for name, table in tables.items():
        for flag in (*table.get("options", {}), *table.get("given", {})):
            if flag not in flags:
                raise ConfigError(
                    f"recipes.toml: {name}: the pinned vLLM has no flag {flag}; {suggest(flag, sorted(flags))}"
                )
        rules.append(TuningRule(name=name, **{**table, "without": tuple(table.get("without", ()))}))
    return tuple(rules)


def computes_of(site: Site, engine: Engine) -> set[float]:
    """Return the compute capabilities of the cards of ``engine``; 0.0 for a card that the catalog lacks."""
    found = set()
    for card in site.gpus_of(engine):
        try:
            found.add(find_card(card.model).compute)
        except UsageError:
            found.add(0.0)
    return found


def tune(engine: Engine, model: Model, computes: Collection[float], rules: Sequence[TuningRule]) -> EngineTuning:
    """Return what ``rules`` give to ``engine``; its own options and variables take precedence.

    Raises :class:`UsageError` if it skips a rule that does not exist.
    """
    names = [rule.name for rule in rules]
    for name in engine.skip_recipes:
        if name not in names:
            raise UsageError(f"skip_recipes: no recipe is called {name!r}; {suggest(name, names)}")
    options: dict[str, JsonValue] = {}
    environment: dict[str, str] = {}
    reasons = []
    for rule in rules:
        if not rule.fits(engine, model, computes):
            continue
        line = f"{rule.name}: {rule.reason} ({rule.source})"
        if engine.pipeline_parallel > 1 and "speculative-config" in rule.options:
            reasons.append(f"{rule.name}: skipped, since pipeline_parallel excludes it (vllm-project/vllm#50098)")
            continue
        if rule.name in engine.skip_recipes:
            reasons.append(f"{rule.name}: skipped by skip_recipes of the engine")
            continue
        own = [flag for flag in (*rule.options, *rule.environment) if flag in engine.options | engine.environment]
        options |= {flag: value for flag, value in rule.options.items() if flag not in engine.options}
        environment |= {flag: value for flag, value in rule.environment.items() if flag not in own}
        reasons.append(f"{line}; replaced by the engine's {', '.join(own)}" if own else line)
    return EngineTuning(options, environment, tuple(reasons))
