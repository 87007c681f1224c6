"""``appliance memory``: the stores of the memory, their files, searches, and the fit to an embedder.

The commands use the database of the assistant directly, as `appliance chats` does, so most of them work while it
does not run. Embeddings are those of the site's engines, through the gateway, and a key of the user is billed. A
file that is added waits until a running assistant reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from appliance.assistant.api.files import publish_file
from appliance.assistant.api.search import search_hit
from appliance.assistant.api.uploads import clean_filename
from appliance.assistant.calibration.site_rules import ChosenRule, SiteRules
from appliance.assistant.caller import Caller, names_caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.file_contents import FileContents
from appliance.assistant.ids import FILE, new_id
from appliance.assistant.main import open_context
from appliance.assistant.memory.calibrate import calibrate
from appliance.assistant.memory.qdrant_sync import LargeStore, QdrantSync
from appliance.assistant.memory.reindex import StoreSummary, read_summaries, reindex
from appliance.assistant.memory.search import StoreSearch, StoreSearchOutcome
from appliance.assistant.retrieval.chunking import ChunkSettings
from appliance.assistant.store.ended_chats import count_waiting
from appliance.assistant.store.files import FileRecord, FileRepository
from appliance.assistant.store.passages import read_fingerprint
from appliance.assistant.store.stores import memory_stores, unexpired_stores
from appliance.assistant.store.vector_stores import NewStoreFile, StoreFileRecord, VectorStoreRepository
from appliance.cli._args import add_config, add_json, duration
from appliance.contract.load import load
from appliance.contract.model import Site
from appliance.errors import StoreError, UsageError
from appliance.render.terminal import Console
from appliance.store.keys import KeyStore

DEFAULT_STORE = "files"
PURPOSE = "assistants"
POLL_S = 0.2
SHOWN = 400
"""Characters of a passage that `search` prints."""
CALIBRATE = "appliance memory calibrate"


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``appliance memory``."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    status = actions.add_parser("status", help="list the stores with their passages and embedders")
    status.set_defaults(run=_status)
    adding = actions.add_parser("add", help="add files to a store of a user; a running assistant reads them")
    adding.add_argument("files", metavar="FILE", nargs="+", type=Path, help="a file of text, PDF, DOCX or HTML")
    adding.add_argument(
        "--store", metavar="NAME", default=DEFAULT_STORE, help="name or id; a new name makes a store (%(default)s)"
    )
    adding.add_argument(
        "--wait", metavar="TIME", default="60s", help="longest wait for the files; 0 does not wait (%(default)s)"
    )
    adding.set_defaults(run=_add)
    searching = actions.add_parser("search", help="search the stores of a user, as its requests do")
    searching.add_argument("query", metavar="QUERY", help="what to look for")
    searching.add_argument("--store", metavar="NAME", help="name, id or `chats`; default: all of the user")
    searching.add_argument("--limit", type=int, default=10, metavar="N", help="at most N passages (%(default)s)")
    searching.set_defaults(run=_search)
    again = actions.add_parser("reindex", help="embed stores again, after a change of the embedder; resumable")
    again.add_argument("store", metavar="STORE", nargs="?", help="id of a store; default: all")
    again.add_argument(
        "--index", action="store_true", help="embed nothing; make the points in Qdrant again from the database"
    )
    again.set_defaults(run=_reindex)
    fitting = actions.add_parser("calibrate", help="fit the threshold of a search to the site's embedder")
    fitting.add_argument("--dry-run", action="store_true", help="print the result and change nothing")
    fitting.set_defaults(run=_calibrate)
    for one in (adding, searching, fitting):
        one.add_argument(
            "--user", metavar="USER", help="USER or USER/END-USER; default: the only user with an active key"
        )
        one.add_argument("--key", metavar="ID", help="id of the billed key; needs --user, reads no key store")
    for one in (status, adding, searching, fitting):
        add_json(one)
    for one in (status, adding, searching, again, fitting):
        add_config(one)


def _status(args: argparse.Namespace) -> int:
    context = open_context(load(args.config), Path.cwd())
    try:
        with context.database.reading() as connection:
            stores = read_summaries(connection)
            waiting = count_waiting(connection, time.time(), context.settings.idle_s)
        rules = context.shared(SiteRules)
        chosen = {one.fingerprint: rules.choose(read_fingerprint(one.fingerprint)) for one in stores}
    finally:
        context.database.close()
    embedded = [one for one in stores if one.fingerprint is not None]
    uncalibrated = sorted({_embedder(one) for one in embedded if chosen[one.fingerprint].source == "words"})
    if args.json:
        listed = [dataclasses.asdict(one) | {"rule": chosen[one.fingerprint].source} for one in stores]
        found = {"stores": listed, "waiting_conversations": waiting, "uncalibrated_embedders": uncalibrated}
        print(json.dumps(found))
        return 0
    table = Table("store", "user", "kind", "name", "passages", "embedder", "evidence")
    for one in stores:
        words = (one.id, one.tenant, one.kind, one.name, str(one.passages), _embedder(one))
        table.add_row(*map(escape, words), _evidence_words(one, chosen[one.fingerprint]))
    Console().print(table)
    print(f"{waiting} ended conversations wait for the memory")
    reranker = context.settings.reranker
    if uncalibrated and reranker is None:
        print(
            f"notice: {', '.join(uncalibrated)} is not calibrated, so searches need words of the request in a "
            f"passage; run `{CALIBRATE}`"
        )
    elif uncalibrated:
        print(
            f"notice: {', '.join(uncalibrated)} is not calibrated; the reranker {reranker} decides. If it fails, "
            f"searches need words of the request in a passage; run `{CALIBRATE}`"
        )
    return 0


def _embedder(one: StoreSummary) -> str:
    return "words only" if one.fingerprint is None else str(json.loads(one.fingerprint)["model"])


def _evidence_words(one: StoreSummary, chosen: ChosenRule) -> str:
    if one.fingerprint is None:
        return "words"
    return {"site": "calibrated here", "shipped": "calibrated", "words": "not calibrated: words"}[chosen.source]


@asynccontextmanager
async def _opened(site: Site) -> AsyncIterator[AssistantContext]:
    context = await asyncio.to_thread(open_context, site, Path.cwd())
    try:
        yield context
    finally:
        await context.inference.close()
        context.database.close()


def _caller(site: Site, user: str | None, key_id: str | None) -> Caller:
    """Return the user with one of its active keys, or with ``key_id``, which the gateway checks; it is billed.

    Raises :class:`UsageError` if it has none, or if ``user`` is None and several users have one.
    """
    if key_id is not None:
        if user is None or not names_caller(user, key_id):
            raise UsageError("--key needs --user USER and the 12 digits of the key's id")
        return Caller(user=user, key_id=key_id, request_id=f"cli-{os.getpid()}")
    store, now = KeyStore(site.data_path(Path.cwd()), site.gateway.database_url), time.time()
    try:
        active = [key for key in store.all() if key.state(now) == "active"]
    finally:
        store.close()
    if user is None:
        users = sorted({key.account for key in active})
        if len(users) != 1:
            listed = ", ".join(users[:10]) or "no user has an active key"
            raise UsageError(f"add --user USER ({listed})")
        user = users[0]
    account, _, end_user = user.partition("/")
    mine = [key for key in active if key.account == account and (key.end_users or not end_user)]
    if not mine:
        kind = "key with end users" if end_user else "key"
        raise UsageError(f"{user!r} has no active {kind}; `appliance keys list` lists them")
    return Caller(user=user, key_id=mine[0].id, request_id=f"cli-{os.getpid()}")


def _add(args: argparse.Namespace) -> int:
    wait_s = duration(args.wait, "--wait")
    site = load(args.config)
    caller = _caller(site, args.user, args.key)
    contents = [(path, _content(path, site)) for path in args.files]
    context = open_context(site, Path.cwd())
    try:
        stores = VectorStoreRepository(context.database)
        store_id = _store_to_fill(context, stores, caller, args.store)
        added = [_store_file(context, caller, path, content) for path, content in contents]
        settings = ChunkSettings()
        chunking = {"max_tokens": settings.max_tokens, "overlap_tokens": settings.overlap_tokens}
        files = [NewStoreFile(one.id, {}, chunking) for one in added]
        stores.attach(caller.user, store_id, files, key_id=caller.key_id, now=time.time())
        records = _waited(stores, caller, store_id, added, wait_s)
    finally:
        context.database.close()
    names = {one.id: one.filename for one in added}
    if args.json:
        rows = [
            {
                "file_id": one.file_id,
                "filename": names[one.file_id],
                "status": one.status,
                "error": one.error_code,
                "message": one.error_message,
            }
            for one in records
        ]
        print(json.dumps({"store": store_id, "user": caller.user, "files": rows}, ensure_ascii=False))
    else:
        table = Table("file", "id", "status", "error")
        for one in records:
            table.add_row(escape(names[one.file_id]), one.file_id, one.status, escape(one.error_message or ""))
        Console().print(table)
        if any(one.status == "in_progress" for one in records):
            print("files in progress are read by the running assistant; `appliance memory status` counts passages")
    return 1 if any(one.status in ("failed", "cancelled") for one in records) else 0


def _content(path: Path, site: Site) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a readable file") from None
    most = site.assistant.max_file_bytes if site.assistant is not None else len(content)
    if len(content) > most:
        raise UsageError(f"{path} has {len(content)} bytes; assistant.max_file_bytes is {most}")
    return content


def _store_to_fill(context: AssistantContext, stores: VectorStoreRepository, caller: Caller, name: str) -> str:
    """Return the id of the one store with the name or id ``name``; make a store with that name if there is none."""
    with context.database.reading() as connection:
        found = [one for one in memory_stores(connection, caller.user, [name]) if stores.get(caller.user, one)]
    if len(found) > 1:
        raise UsageError(f"{len(found)} stores have the name {name!r}; name one by its id: {', '.join(found)}")
    if found:
        return found[0]
    if name == "chats" or name.startswith("vs_"):
        raise UsageError(f"--store: {name!r} is not a store of files of {caller.user}; choose another name")
    return stores.create(caller.user, name=name, metadata={}, expires_days=None, now=time.time())


def _store_file(context: AssistantContext, caller: Caller, path: Path, content: bytes) -> FileRecord:
    """Store a file as an upload does; as root, for the owner of the data folder."""
    file_id = new_id(FILE)
    draft = FileContents(context.folder).draft(file_id)
    try:
        draft.write(content)
        digest = draft.finish()
        record = FileRecord(
            id=file_id,
            tenant=caller.user,
            filename=clean_filename(path.name),
            purpose=PURPOSE,
            size=draft.size,
            digest=digest,
            created_at=time.time(),
        )
        publish_file(FileRepository(context.database), draft, record)
    finally:
        draft.discard()
    _give_to_owner(context.folder, [context.folder / "files", context.folder / "files" / file_id])
    return record


def _give_to_owner(folder: Path, paths: Sequence[Path]) -> None:
    if os.geteuid() != 0:
        return
    owner = folder.stat()
    for path in paths:
        try:
            os.chown(path, owner.st_uid, owner.st_gid)
        except OSError as error:
            raise StoreError.unwritable(path, error) from None


def _waited(
    stores: VectorStoreRepository, caller: Caller, store_id: str, added: Sequence[FileRecord], wait_s: float
) -> list[StoreFileRecord]:
    """Return the files of the store once all are processed, or as they are after ``wait_s`` seconds."""
    until = time.monotonic() + wait_s
    while True:
        found = [stores.get_file(caller.user, store_id, one.id) for one in added]
        records = [one for one in found if one is not None]
        if time.monotonic() >= until or all(one.status != "in_progress" for one in records):
            return records
        time.sleep(POLL_S)


def _search(args: argparse.Namespace) -> int:
    return asyncio.run(_search_stores(args))


async def _search_stores(args: argparse.Namespace) -> int:
    site = load(args.config)
    caller = await asyncio.to_thread(_caller, site, args.user, args.key)
    async with _opened(site) as context:
        with context.database.reading() as connection:
            if args.store is None:
                chosen = unexpired_stores(connection, caller.user, time.time())
            else:
                chosen = memory_stores(connection, caller.user, [args.store])
        if not chosen:
            what = (
                "no store, or all are expired"
                if args.store is None
                else f"no store {args.store!r}, or it is expired"
            )
            raise UsageError(f"{caller.user} has {what}; `appliance memory status` lists all stores")
        sync = context.shared(QdrantSync)
        try:
            await asyncio.to_thread(sync.adopt, chosen)
            found = await context.shared(StoreSearch).search(
                caller, chosen, [args.query], limit=args.limit, max_stores=len(chosen)
            )
        finally:
            sync.close()
    if args.json:
        print(json.dumps(_outcome_json(found), ensure_ascii=False, indent=2))
        return 0
    if found.degraded is not None:
        print(f"notice: {found.degraded}", file=sys.stderr)
    if found.abstention is not None:
        print(f"nothing found: {found.abstention.message}")
        return 0
    table = Table("score", "source", "date", "passage")
    for one in found.passages:
        date, text = one.passage.date, " ".join(one.passage.text.split())
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
        day = "" if date is None else f"{date:%Y-%m-%d}"
        table.add_row(f"{one.score:.2f}", escape(one.passage.source), day, escape(shown))
    Console().print(table)
    return 0


def _outcome_json(found: StoreSearchOutcome) -> dict[str, Any]:
    abstention, reason = found.abstention, None
    if abstention is not None:
        reason = {"reason": abstention.reason.value, "message": abstention.message}
    return {
        "data": [search_hit(one) | {"evidence": one.evidence} for one in found.passages],
        "ranking": found.ranking,
        "degraded": found.degraded,
        "abstention": reason,
    }


def _calibrate(args: argparse.Namespace) -> int:
    return asyncio.run(_calibrate_embedder(args))


async def _calibrate_embedder(args: argparse.Namespace) -> int:
    site = load(args.config)
    caller = await asyncio.to_thread(_caller, site, args.user, args.key)
    async with _opened(site) as context:
        found = await calibrate(context, caller)
        if found.rule is not None and not args.dry_run:
            context.shared(SiteRules).put(found.fingerprint, found.rule)
    scores, name = found.held_out, found.fingerprint.model
    if args.json:
        held_out = None if scores is None else dataclasses.asdict(scores)
        rule = None if found.rule is None else dataclasses.asdict(found.rule)
        print(json.dumps({"model": name, "rule": rule, "held_out": held_out}))
    elif found.rule is None or scores is None:
        print(f"{name} does not separate answerable requests from others, so words decide; nothing is changed")
    else:
        table = Table("embedder", "threshold", "recall@5", "abstain precision", "abstain recall", "missed")
        values = (scores.recall_at_5, scores.abstain_precision, scores.abstain_recall, scores.false_abstain)
        table.add_row(escape(name), f"{found.rule.min_evidence:.3f}", *(f"{value:.2f}" for value in values))
        Console().print(table)
        stored = "nothing is changed" if args.dry_run else "the rule is stored and in use"
        print(f"scores of {scores.requests} requests that the fit did not use; {stored}")
    return 1 if found.rule is None else 0


def _reindex(args: argparse.Namespace) -> int:
    return _rebuild(args) if args.index else asyncio.run(_reindex_stores(args))


def _rebuild(args: argparse.Namespace) -> int:
    """Remove the points of one store or of all, and make them again."""
    context = open_context(load(args.config), Path.cwd())
    sync = context.shared(QdrantSync)
    try:
        if sync.client is None:
            raise UsageError("this site has no assistant.qdrant_url; every store is searched in memory")
        with context.database.reading() as connection:
            _chosen(read_summaries(connection), args.store)
        sync.forget(args.store)
        sync.step(progress=_points)
        print("the points of all large stores are complete")
    finally:
        sync.close()
        context.database.close()
    return 0


def _points(store: LargeStore, done: int) -> None:
    print(f"{store.id}: {done} of {store.passages}", file=sys.stderr, flush=True)


async def _reindex_stores(args: argparse.Namespace) -> int:
    async with _opened(load(args.config)) as context:
        with context.database.reading() as connection:
            chosen = _chosen(read_summaries(connection), args.store)
        for one in chosen:
            done = await reindex(context, one, progress=partial(_progress, one))
            print(f"{one.id}: {done} passages embedded")
    return 0


def _chosen(stores: list[StoreSummary], store_id: str | None) -> list[StoreSummary]:
    """Return the store with ``store_id``, or all; raise :class:`UsageError` if there is none."""
    chosen = [one for one in stores if store_id in (None, one.id)]
    if not chosen and store_id is not None:
        raise UsageError(f"store {store_id!r} does not exist; `appliance memory status` lists them")
    return chosen


def _progress(store: StoreSummary, done: int, total: int) -> None:
    print(f"{store.id}: {done} of {total}", file=sys.stderr, flush=True)
