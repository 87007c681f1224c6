"""What to execute for one replica of an engine, by kind. Pure: a site goes in, a command line comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.contract.model import Engine, Model, Site
from appliance.contract.rules import suggest
from appliance.engines import llamacpp, mock_command, vllm
from appliance.errors import UsageError


@dataclass(frozen=True, slots=True)
class Command:
    """One process to run: its argument vector and what its environment has beyond the parent's."""

    argv: tuple[str, ...]
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class EngineReplica:
    """One replica of an engine, named ``engine`` or ``engine.1`` as the command line and units write it."""

    name: str
    engine: Engine
    index: int

    @property
    def port(self) -> int:
        """Its loopback port."""
        return self.engine.port + self.index

    @property
    def url(self) -> str:
        """Its base URL, on loopback."""
        return f"http://127.0.0.1:{self.port}"


Build = Callable[[Engine, Model, int], tuple[list[str], dict[str, str]]]

_BUILD: dict[str, Build] = {"vllm": vllm.build, "llamacpp": llamacpp.build, "mock": mock_command.build}


def replicas(site: Site) -> list[EngineReplica]:
    """Every replica of every engine of ``site``; a lone replica bears the engine's own name."""
    return [
        EngineReplica(name if engine.replicas == 1 else f"{name}.{index}", engine, index)
        for name, engine in site.engines.items()
        for index in range(engine.replicas)
    ]


def find(site: Site, name: str) -> EngineReplica:
    """The replica called ``name``; raises :class:`UsageError` that names those there are."""
    known = {replica.name: replica for replica in replicas(site)}
    if name not in known:
        raise UsageError(f"no engine is called {name!r}; {suggest(name, list(known))}")
    return known[name]


def command(site: Site, replica: EngineReplica, base: Path) -> Command:
    """The process for ``replica``. Relative model folders are taken from ``base``."""
    model = site.models[replica.engine.model]
    if model.is_folder:
        model = model.model_copy(update={"source": str((base / Path(model.source).expanduser()).resolve())})
    argv, environment = _BUILD[replica.engine.kind](replica.engine, model, replica.index)
    if replica.engine.kind == "vllm":
        argv += vllm.media(site.gateway.media_domains)
    return Command(tuple(argv), {**environment, **replica.engine.environment})
