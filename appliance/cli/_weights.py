"""The actions of ``appliance models`` on weights: fetch, list, verify, lock, gc, warm, time."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from appliance.bench.cold_start import measure_start
from appliance.cli._args import DEFAULT_CONFIG, add_config, add_json
from appliance.cli._transfer import shown_transfer
from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.engines.start_stages import start_stages
from appliance.errors import StartError, StoreError, UsageError
from appliance.models import gc, inventory, lock, verification, verified, warm
from appliance.models.hub import Hub, parse_model
from appliance.models.offline import FolderSource
from appliance.models.pin import pin
from appliance.models.progress import size_text
from appliance.models.transfer import TransferResult, bring, bring_held, held
from appliance.render.terminal import Console
from appliance.system import files
from appliance.system.stopping import Stopped, listening

THREADS = 4
"""Files that are downloaded at once by default: one connection seldom fills a fast line."""


def add_weights(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the actions to ``actions``."""
    fetch = actions.add_parser(
        "fetch",
        help="bring weights into the store: those of models.lock, or a model that is then locked",
        epilog="a second run resumes an interrupted transfer; files that match the lock are not copied again. "
        "HF_ENDPOINT names another hub; HF_TOKEN is for models that need one",
    )
    fetch.add_argument(
        "model",
        nargs="?",
        metavar="ORG/NAME@REVISION",
        help="fetch this revision (40 hex digits) and add it to the lock; default: all files of the lock",
    )
    fetch.add_argument("--lock", type=Path, required=True, metavar="FILE", help="models.lock")
    fetch.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="DIR",
        help="store to copy from (its HF_HOME), such as a disk on USB; default: the model hub",
    )
    fetch.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="files of the model to fetch, such as '*Q4_K_M*.gguf'; repeatable",
    )
    fetch.add_argument(
        "--threads", type=int, default=THREADS, metavar="N", help="files at once from the hub (%(default)s)"
    )
    fetch.set_defaults(run=_fetch)
    verify = actions.add_parser(
        "verify",
        help="compare weights on disk with models.lock; engines start with verified files only",
        epilog="exit code: 0 all files match, 1 some do not, with one line per file",
    )
    verify.add_argument("--lock", type=Path, required=True, metavar="FILE", help="models.lock")
    verify.add_argument(
        "--changed",
        action="store_true",
        help="hash only files whose size, time or inode changed since they were verified",
    )
    verify.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="files or folders of the store; default: all of the lock",
    )
    verify.set_defaults(run=_verify)
    make = actions.add_parser("lock", help="print the lock of the weights on disk")
    make.set_defaults(run=_lock)
    listing = actions.add_parser("list", help="list the models in the store, and whether they are verified")
    listing.add_argument("--lock", type=Path, metavar="FILE", help="models.lock; default: compare with no lock")
    add_json(listing)
    listing.set_defaults(run=_list)
    gc_parser = actions.add_parser(
        "gc",
        help="show the weights that no lock and no site names; remove them with --delete",
        epilog="the configuration of this host, if it has one, counts as a site",
    )
    gc_parser.add_argument(
        "--lock", type=Path, required=True, action="append", metavar="FILE", help="models.lock; repeatable"
    )
    gc_parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="configuration of a site; repeatable",
    )
    gc_parser.add_argument("--delete", action="store_true", help="remove them; default: show them only")
    gc_parser.set_defaults(run=_gc)
    warm_parser = actions.add_parser(
        "warm",
        help="read weights into RAM: into the page cache, or with --to into a store on a tmpfs",
        epilog="refused if the weights would take the memory of the engines",
    )
    warm_parser.add_argument(
        "models", nargs="*", metavar="ORG/NAME", help="models of the lock; default: all of them"
    )
    warm_parser.add_argument("--lock", type=Path, required=True, metavar="FILE", help="models.lock")
    warm_parser.add_argument("--to", type=Path, metavar="DIR", help="store on a tmpfs, which gets verified copies")
    warm_parser.set_defaults(run=_warm)
    time_parser = actions.add_parser(
        "time",
        help="measure a start of an engine by its stages, or read those of the last one from its log",
        epilog="example: journalctl -u appliance-engine-chat -o cat | appliance models time --log -",
    )
    time_parser.add_argument("engine", nargs="?", metavar="NAME", help="start this engine, and measure it")
    time_parser.add_argument(
        "--stop", action="store_true", help="stop it if it serves, and the model whose memory it needs"
    )
    time_parser.add_argument("--log", metavar="FILE", help="log of an engine; - reads it from standard input")
    add_json(time_parser)
    add_config(time_parser)
    time_parser.set_defaults(run=_time, long_run=True)
    for one in (fetch, verify, make, listing, gc_parser, warm_parser):
        _add_store(one)


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=Path, required=True, metavar="DIR", help="cache folder of the model hub (HF_HOME)"
    )


def _fetch(args: argparse.Namespace) -> int:
    if not 1 <= args.threads <= 32:
        raise UsageError(f"--threads {args.threads}: use 1 to 32")
    if args.model is not None:
        return _fetch_model(args)
    if args.only:
        raise UsageError("--only: needs a model, since models.lock names its files; write ORG/NAME@REVISION")
    entries = lock.read(args.lock)
    with shown_transfer() as watcher:
        if args.source is not None:
            # One file at a time: a disk reads it in one piece.
            result = bring(entries, FolderSource(args.source), args.store, watcher)
        else:
            entries = _of_the_hub(entries, args.store)
            result = bring(entries, Hub(), args.store, watcher, threads=args.threads)
    print(f"{len(entries)} files of {args.lock} are whole in {args.store}; {_counted(result)}")
    return 0


def _of_the_hub(entries: list[lock.Entry], store: Path) -> list[lock.Entry]:
    """Return the entries that a hub can have; raises :class:`StoreError` if another file is missing."""
    for entry in entries:
        if entry.is_local and not entry.path(store).exists():
            raise StoreError(
                f"{entry.path(store)}: is missing and in no repository; copy it there, or use --from with a store"
            )
    return [entry for entry in entries if not entry.is_local]


def _fetch_model(args: argparse.Namespace) -> int:
    if args.source is not None:
        raise UsageError("--from: copies the files of a lock; name no model, or fetch the model from the hub")
    repository, revision = parse_model(args.model)
    # An invalid lock is an error before the download, not after it.
    locked = lock.read(args.lock) if args.lock.exists() else []
    hub = Hub()
    with held(args.store):
        entries = pin(hub, repository, revision, args.only, args.store)
        with shown_transfer() as watcher:
            result = bring_held(entries, hub, args.store, watcher, threads=args.threads)
    fetched = {(one.repository, one.revision, one.file) for one in entries}
    others = [one for one in locked if (one.repository, one.revision, one.file) not in fetched]
    lock.write(args.lock, [*others, *entries])
    print(f"{len(entries)} files of {args.model} are whole in {args.store} and in {args.lock}; {_counted(result)}")
    return 0


def _counted(result: TransferResult) -> str:
    linked = f", {result.linked} linked to the same content" if result.linked else ""
    return f"{result.fetched} were copied{linked}"


def _verify(args: argparse.Namespace) -> int:
    locked = lock.read(args.lock)
    entries = list(dict.fromkeys(one for path in args.paths for one in _at(locked, args.store, path)))
    entries = entries if args.paths else locked
    result = verification.verify(entries, args.store, changed_only=args.changed)
    for difference in result.differences:
        print(f"error: {difference}", file=sys.stderr)
    if result.hashed and not result.recorded:
        print(f"not recorded: this user cannot write {args.store}, so engines start as before", file=sys.stderr)
    if not result.differences:
        print(f"{len(entries)} files of {args.lock} are whole in {args.store}; {result.hashed} were hashed")
    return 1 if result.differences else 0


def _at(entries: list[lock.Entry], store: Path, path: Path) -> list[lock.Entry]:
    found = verified.at_path(entries, store, path)
    if not found:
        raise StoreError(f"{path}: models.lock has no file of it; `appliance models lock` prints that of the store")
    return found


def _lock(args: argparse.Namespace) -> int:
    print(lock.HEADER + "\n".join(str(entry) for entry in lock.make(args.store)))
    return 0


def _list(args: argparse.Namespace) -> int:
    found = inventory.stored_models(args.store, lock.read(args.lock) if args.lock is not None else [])
    partial = inventory.partial_bytes(args.store)
    if args.json:
        models = [asdict(one) | {"state": one.state} for one in found]
        print(json.dumps({"models": models, "partial_bytes": partial}, indent=2))
        return 0
    table = Table("model", "revision", "files", "size", "state", *(["in the lock"] if args.lock else []))
    for one in found:
        row = [one.repository, one.revision[:12], str(one.files), size_text(one.size), one.state]
        table.add_row(*row, *(["yes" if one.locked else "no"] if args.lock else []))
    console = Console()
    console.print(table)
    if partial:
        console.print(
            f"{size_text(partial)} in incomplete files: `appliance models fetch` resumes them", markup=False
        )
    return 0


def _gc(args: argparse.Namespace) -> int:
    entries = [entry for file in args.lock for entry in lock.read(file)]
    own = Path(os.environ.get("APPLIANCE_CONFIG", DEFAULT_CONFIG))
    configs = [*args.config, *([own] if own.exists() else [])]
    named = [model for config in configs for model in _named(load(config))]
    removals = (gc.remove if args.delete else gc.plan)(args.store, entries, named)
    for one in removals:
        print(f"{size_text(one.size):>12}  {one.path}  ({one.reason})")
    total = size_text(sum(one.size for one in removals))
    print(f"{total} were freed" if args.delete else f"{total} can be freed; --delete removes them")
    return 0


def _named(site: Site) -> Iterator[gc.NamedModel]:
    for model in site.models.values():
        yield gc.NamedModel(model.source, model.revision)
        yield from (gc.NamedModel(adapter.source, None) for adapter in model.adapters.values())


def _warm(args: argparse.Namespace) -> int:
    entries = warm.chosen(lock.read(args.lock), args.models)
    size = sum({one.sha256: one.size for one in entries}.values())
    memory = warm.read_memory()
    excess = warm.page_cache_excess(size, memory) if args.to is None else warm.tmpfs_excess(size, memory)
    if excess:
        raise StoreError(f"{args.store if args.to is None else args.to}: {excess}")
    with shown_transfer() as watcher:
        if args.to is not None:
            result = bring(entries, FolderSource(args.store), args.to, watcher, threads=THREADS)
            done = f"{len(entries)} files are whole in {args.to}; {_counted(result)}"
        else:
            watcher.begin(sum(one.size for one in entries), 0)
            warm.fill_page_cache(entries, args.store, watcher.advance, THREADS)
            done = f"{len(entries)} files, {size_text(size)}, are in the page cache"
    print(done)
    return 0


STAGES = {
    "weights": "weights",
    "compile": "compilation",
    "graphs": "capture of CUDA graphs",
    "init": "all after the weights",
    "total": "until it serves",
}
"""Stages of a start by their names in JSON."""


def _time(args: argparse.Namespace) -> int:
    if (args.engine is None) == (args.log is None):
        raise UsageError("models time: name an engine, or its log with --log")
    return _time_of_log(args) if args.engine is None else _time_of_start(args)


def _time_of_start(args: argparse.Namespace) -> int:
    with listening() as stop:
        try:
            site = load(args.config)
            data = site.data_path(Path.cwd())
            found = measure_start(site, data, args.engine, stop_serving=args.stop, stop=stop)
        except Stopped:
            raise StartError(f"{stop.reason} ended the measurement before the first token") from None
    stages = {} if found.stages is None else asdict(found.stages)
    if args.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    if found.unloaded is not None:
        print(f"{'unload of another model':<24} {found.unloaded:.2f} s")
    for name, label in STAGES.items():
        if name != "total" and stages.get(name) is not None:
            print(f"{label:<24} {stages[name]:g} s")
    print(f"{STAGES['total']:<24} {'not seen' if found.serves is None else f'{found.serves:.2f} s'}")
    print(f"{'until the first token':<24} {found.first_token:.2f} s")
    return 0


def _time_of_log(args: argparse.Namespace) -> int:
    content = sys.stdin.buffer.read() if args.log == "-" else files.read(Path(args.log))
    stages = start_stages((content or b"").decode("utf-8", "replace"))
    if stages is None:
        raise StartError(f"{args.log}: has no start of vLLM; name the log of an engine of kind vllm")
    found = asdict(stages)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, label in STAGES.items():
        print(f"{label:<24} {'not in the log' if found[name] is None else f'{found[name]:g} s'}")
    return 0
