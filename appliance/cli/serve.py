"""``appliance engine``, ``gateway``, ``assistant`` and ``admin``: the processes of a host, one unit each."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.cli._args import add_config
from appliance.contract.load import load
from appliance.contract.model import Model, Site
from appliance.errors import StoreError, UsageError
from appliance.system import files

if TYPE_CHECKING:
    from appliance.engines.argv import EngineReplica
    from appliance.engines.load_format import WeightsPlace


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance engine``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for action, run, text in (
        ("exec", _engine_exec, "replace this process with the engine"),
        ("argv", _engine_argv, "print the engine's environment and command, a word a line"),
    ):
        one = actions.add_parser(action, help=text)
        one.add_argument("name", metavar="NAME", help="engine, or engine.N for replica N")
        one.set_defaults(run=run)
        one.add_argument(
            "--rank", metavar="N", type=int, default=0, help="rank of this host in an engine over several hosts"
        )
        add_config(one)
        if action == "argv":
            one.add_argument(
                "--why", action="store_true", help="print first why it has each choice that the site leaves open"
            )
        if action == "exec":
            one.add_argument(
                "--environment",
                metavar="FOLDER",
                type=Path,
                help="where the Python environment of the engine is mounted; compiled kernels fit one path",
            )
            one.add_argument(
                "--caches",
                metavar=("FOLDER", "VERSION"),
                nargs=2,
                help="keep compiled kernels in FOLDER: those of VERSION and of the version before",
            )
            one.add_argument(
                "--lock",
                metavar="FILE",
                type=Path,
                help="models.lock: start only if its files of the model, in the store HF_HOME, are verified",
            )


def add_gateway(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance gateway``."""
    add_config(parser)
    parser.set_defaults(run=_gateway)


def add_assistant(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance assistant``."""
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="file for node_exporter's textfile collector")
    add_config(parser)
    parser.set_defaults(run=_assistant)


def add_admin(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance admin``."""
    add_config(parser)
    parser.set_defaults(run=_admin)


def _engine_argv(args: argparse.Namespace) -> int:
    from appliance.engines import argv as engine_argv
    from appliance.engines.cpu_dtype import read_cpuinfo

    site = load(args.config)
    replica = engine_argv.find(site, args.name)
    place = _place_of(site.models[replica.engine.model])
    command = engine_argv.command(site, replica, Path.cwd(), read_cpuinfo(), place, args.rank)
    if args.why:
        for reason in command.reasons:
            print(f"# {reason}")
    for name, value in sorted(command.environment.items()):
        print(f"{name}={value}")
    for word in command.argv:
        print(word)
    return 0


def _engine_exec(args: argparse.Namespace) -> int:
    from appliance.engines import argv as engine_argv
    from appliance.engines import caches
    from appliance.engines.cpu_dtype import read_cpuinfo
    from appliance.engines.gguf_examination import require_loadable
    from appliance.engines.load_format import weights_store

    site = load(args.config)
    replica = engine_argv.find(site, args.name)
    place = _place_of(site.models[replica.engine.model])
    command = engine_argv.command(site, replica, Path.cwd(), read_cpuinfo(), place, args.rank)
    if args.lock is not None:
        _require_verified(site.models[replica.engine.model], args.lock)
    require_loadable(site, replica, Path.cwd(), weights_store())
    if args.environment is not None:
        command = engine_argv.mounted(command, args.environment)
    kept = caches.prepare(Path(args.caches[0]), args.caches[1]) if args.caches else {}
    if command.notice:
        print(command.notice, file=sys.stderr, flush=True)
    environment = {**os.environ, **kept, **command.environment}
    if replica.engine.spans_hosts and replica.engine.distributed == "native":
        return _run_rank(site, replica, args.rank, command.argv, environment)
    try:
        os.execvpe(command.argv[0], command.argv, environment)
    except OSError as error:
        message = f"engines.{args.name}.command: {command.argv[0]} cannot be run ({error.strerror})"
        raise UsageError(f"{message}; name the engine's Python or binary there") from None


def _run_rank(
    site: Site, replica: EngineReplica, rank: int, argv: tuple[str, ...], environment: dict[str, str]
) -> int:
    """Run one rank of an engine over several hosts, with the watcher that ends it together with the others."""
    import asyncio

    from appliance.contract.across_hosts import watch_port
    from appliance.engines.rank_hello import RankHello, installed_version
    from appliance.engines.rank_link import RankPlace
    from appliance.engines.rank_process import RankProgram, run_rank
    from appliance.engines.ranks import digest_of, links_of

    engine = replica.engine
    hello = RankHello(
        engine=replica.name, rank=rank, version=installed_version(Path(argv[0])), config=digest_of(site, engine)
    )
    place = RankPlace(
        hello=hello,
        addresses=tuple(link.address for link in links_of(site, engine)),
        hosts=engine.nodes,
        port=watch_port(engine),
    )
    return asyncio.run(run_rank(place, RankProgram(argv, environment, engine.shutdown_timeout_s + 10.0)))


def _place_of(model: Model) -> WeightsPlace:
    """Return where the weights of ``model`` are: its folder, or the store of HF_HOME."""
    from appliance.engines.load_format import WeightsPlace, filesystem_of, weights_store
    from appliance.models.warm import is_warm

    store = weights_store()
    folder = Path(model.source).expanduser() if model.is_folder else store
    mounts = (files.read(Path("/proc/self/mounts")) or b"").decode("utf-8", "replace")
    warm = not model.is_folder and is_warm(store, model.source, model.revision)
    return WeightsPlace(filesystem_of((Path.cwd() / folder).resolve(), mounts), warm)


def _require_verified(model: Model, lock_file: Path) -> None:
    """Raise :class:`StoreError` with the first file of ``model`` that was not verified in its present state."""
    from appliance.models import lock, verified

    home = os.environ.get("HF_HOME")
    if not home and not model.is_folder and not model.is_package:
        raise UsageError("--lock: needs the store of the weights; set HF_HOME to its folder")
    if not home:
        return
    store, entries = Path(home).absolute(), lock.read(lock_file)
    reasons = []
    if not model.is_folder and not model.is_package:
        reasons = verified.unverified(entries, store, model.source, model.revision)
    # Folders outside of the store are the operator's own.
    sources = [*([model.source] if model.is_folder else []), *(one.source for one in model.adapters.values())]
    for source in sources:
        path = Path(source).expanduser().absolute()
        if path.is_relative_to(store):
            reasons += verified.unverified_path(entries, store, path)
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise StoreError(f"{reasons[0]}{more}")


def _gateway(args: argparse.Namespace) -> int:
    from appliance.gateway.main import serve

    return serve(load(args.config), Path.cwd())


def _assistant(args: argparse.Namespace) -> int:
    from appliance.assistant.main import serve

    return serve(load(args.config), Path.cwd(), args.metrics)


def _admin(args: argparse.Namespace) -> int:
    from appliance.admin.serve import serve

    return serve(load(args.config), Path.cwd())
