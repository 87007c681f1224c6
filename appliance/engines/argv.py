"""The command lines of engines: pure functions from a site to the process of each replica."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.contract.model import Engine, Model, Site
from appliance.contract.violation import suggest
from appliance.engines import cpu_dtype, embedder_command, llamacpp, mock_command, ranks, vllm
from appliance.engines.load_format import LoaderChoice, WeightsPlace, choose_loader
from appliance.engines.recipe import settle
from appliance.engines.tuning import computes_of, shipped_rules, tune
from appliance.errors import UsageError


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """One process to run: its argument vector, its additions to the parent's environment, a line for the user."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    notice: str = ""
    reasons: tuple[str, ...] = ()
    """Why each choice was made that the site leaves open, a line each."""


@dataclass(frozen=True, slots=True)
class EngineReplica:
    """One replica of an engine, named ``engine`` or ``engine.1`` as the command line and units write it."""

    name: str
    engine: Engine
    index: int

    @property
    def port(self) -> int:
        """Return its loopback port."""
        return self.engine.port + self.index

    @property
    def url(self) -> str:
        """Return its base URL: on loopback, or at the address of a server of kind http."""
        address = self.engine.address or "127.0.0.1"
        return f"http://{f'[{address}]' if ':' in address else address}:{self.port}"


def unit_name(replica: str) -> str:
    """Return the systemd unit of the replica with this name."""
    return f"appliance-engine-{replica}.service"


Build = Callable[[Engine, Model, int], tuple[list[str], dict[str, str]]]

_BUILD: dict[str, Build] = {
    "vllm": vllm.build,
    "llamacpp": llamacpp.build,
    "embedder": embedder_command.build,
    "mock": mock_command.build,
}


def replicas(site: Site) -> list[EngineReplica]:
    """Return every replica of every engine of ``site``; a lone replica has the engine's own name."""
    return [
        EngineReplica(name if engine.replicas == 1 else f"{name}.{index}", engine, index)
        for name, engine in site.engines.items()
        for index in range(engine.replicas)
    ]


def started_replicas(site: Site) -> list[EngineReplica]:
    """Return the replicas whose processes the appliance starts: all except those of kind http."""
    return [replica for replica in replicas(site) if replica.engine.is_started]


def find(site: Site, name: str) -> EngineReplica:
    """Return the replica ``name``; raises :class:`UsageError` that suggests an existing name."""
    known = {replica.name: replica for replica in replicas(site)}
    if name not in known:
        raise UsageError(f"no engine is called {name!r}; {suggest(name, list(known))}")
    return known[name]


def mounted(command: EngineCommand, environment: Path) -> EngineCommand:
    """Return ``command`` with the same program below ``environment``, where its Python environment is mounted."""
    program = environment / "bin" / Path(command.argv[0]).name
    return replace(command, argv=(str(program), *command.argv[1:]))


def command(
    site: Site,
    replica: EngineReplica,
    base: Path,
    cpuinfo: str = "",
    place: WeightsPlace | None = None,
    rank: int = 0,
) -> EngineCommand:
    """Return the process of ``replica``. Relative model folders are below ``base``.

    ``cpuinfo`` is the text of /proc/cpuinfo on the machine that runs the process, see :mod:`.cpu_dtype`. ``place``
    is where its weights are, see :mod:`.load_format`; unknown without it. ``rank`` is its number among the
    hosts of an engine that spans several, see :mod:`.ranks`. Raises :class:`UsageError` for an engine of kind http,
    and for a rank that the engine does not have.
    """
    if not replica.engine.is_started:
        raise UsageError(
            f"engine {replica.name} is of kind http: it runs by itself at {replica.url}, and has no command here"
        )
    model = site.models[replica.engine.model]
    if model.is_folder:
        model = model.model_copy(update={"source": str((base / Path(model.source).expanduser()).resolve())})
    argv, environment = _BUILD[replica.engine.kind](replica.engine, settle(model), replica.index)
    if replica.engine.kind == "vllm":
        argv += vllm.media_options(site.gateway.media_domains)
    if replica.engine.kind == "llamacpp":
        argv += llamacpp.on_processor(replica.engine, cpuinfo)
    notice = ""
    if dtype := cpu_dtype.choose(replica.engine, cpuinfo):
        argv += ["--dtype", dtype]
        notice = f"engine {replica.name}: {cpu_dtype.NOTICE}"
    loader = choose_loader(replica.engine, place) if place is not None else LoaderChoice("the place is unknown")
    tuning = tune(replica.engine, model, computes_of(site, replica.engine), shipped_rules())
    for flag, value in (loader.options | tuning.options).items():
        argv += vllm.option_words(flag, value)
    if replica.engine.spans_hosts:
        argv, environment = ranks.on_rank(site, replica.engine, rank, argv=argv, environment=environment)
    elif rank:
        raise UsageError(f"--rank {rank}: engine {replica.name} runs on one host; set its nodes, or omit --rank")
    return EngineCommand(
        argv=tuple(argv),
        environment={**environment, **loader.environment, **tuning.environment, **replica.engine.environment},
        notice=notice,
        reasons=(f"loader: {loader.reason}", *tuning.reasons),
    )
