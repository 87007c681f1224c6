"""`appliance memory`, on a database of the assistant, with the embedder behind a stand-in of the gateway."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from appliance import cli
from appliance.assistant.calibration.site_rules import FILE
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.main import open_context
from appliance.assistant.memory.ingestion import ingesting
from appliance.assistant.memory.qdrant_sync import QdrantSync
from appliance.assistant.memory.search import MAX_STORES
from appliance.assistant.store.schema import VECTOR_STORES
from appliance.contract.load import load
from appliance.store.keys import KeyStore
from tests.assistant.gateway_stand_in import GatewayStandIn, serve_stand_in
from tests.assistant.memory.conftest import memory_site
from tests.assistant.memory.test_qdrant import options
from tests.assistant.memory.test_search_api import TEXTS, fill
from tests.assistant.qdrant_stand_in import qdrant_stand_in
from tests.conftest import wait_until

Run = Callable[..., int]


class MemorySite:
    """A site with a key of ada, and the command line."""

    def __init__(self, folder: Path, acting: Path, **assistant: Any) -> None:
        site = memory_site(folder, acting_socket=str(acting), **assistant)
        self.config = folder / "site.json"
        self.config.write_text(site.model_dump_json(exclude_defaults=True))
        self.keys = KeyStore(site.data_path(Path.cwd()), None)
        self.key_id = self.keys.create("ada").split("-")[1]
        self.folder = folder

    def run(self, *words: str) -> int:
        return cli.main(["memory", *words, "--config", str(self.config)])

    def context(self) -> AssistantContext:
        return open_context(load(self.config), Path.cwd())

    def fill(self, *stores: tuple[str, dict[str, str]], points: bool = False) -> None:
        """Make stores of ada with one passage a text; with ``points``, Qdrant gets those of large stores."""
        context = self.context()
        caller = Caller(user="ada", key_id=self.key_id, request_id="r1")

        async def make() -> None:
            for store_id, texts in stores:
                await fill(context, store_id, texts, caller=caller)
            await context.inference.close()

        asyncio.run(make())
        sync = context.shared(QdrantSync)
        if points:
            sync.step()
        if sync.client is not None:
            sync.client.close()
        context.database.close()

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


@pytest.fixture
def acting() -> Iterator[GatewayStandIn]:
    # The path of a Unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="acting"))
    yield from serve_stand_in(folder)
    shutil.rmtree(folder)


@pytest.fixture
def site(
    tmp_path: Path,
    acting: GatewayStandIn,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MemorySite]:
    monkeypatch.setenv("COLUMNS", "220")
    found = MemorySite(tmp_path, acting.path)
    yield found
    found.keys.close()


@pytest.fixture
def reading(site: MemorySite) -> Iterator[None]:
    """Process files in this process, as a running assistant does."""
    stop, started = threading.Event(), threading.Event()

    async def read() -> None:
        context = site.context()
        async with ingesting(context):
            started.set()
            await asyncio.to_thread(stop.wait)
        await context.inference.close()
        context.database.close()

    thread = threading.Thread(target=lambda: asyncio.run(read()))
    thread.start()
    wait_until(started.is_set, "the start of the ingestion", 60)
    yield
    stop.set()
    thread.join()


def test_a_file_is_added_read_and_found(
    site: MemorySite,
    reading: None,
    acting: GatewayStandIn,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tea = site.file("tea [x].md", "Зелёный чай заваривают водой при 80 градусах две минуты.")
    assert site.run("add", tea, "--store", "kitchen", "--json", "--wait", "300s") == 0
    added = json.loads(capsys.readouterr().out)
    assert added["user"] == "ada"
    assert [(one["filename"], one["status"]) for one in added["files"]] == [("tea [x].md", "completed")]
    rent = site.file("rent.txt", "The rent of the office is paid on the fifth day of each month.")
    assert site.run("add", rent, "--store", "kitchen", "--user", "ada", "--wait", "300s") == 0
    assert "rent.txt" in capsys.readouterr().out
    assert site.run("search", "how hot is the water for green tea?", "--store", "kitchen", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"][0]["filename"] == "tea [x].md"
    assert (found["ranking"], found["abstention"]) == ("fused", None)
    assert site.run("search", "зелёный чай", "--store", added["store"]) == 0
    table = capsys.readouterr().out
    assert "tea [x].md" in table
    assert "80 градусах" in table
    assert site.run("search", "lyrics of the national anthem of Brazil") == 0
    assert "nothing found" in capsys.readouterr().out
    assert all(one.headers["x-appliance-key"] == site.key_id for one in acting.requests)
    assert site.run("status", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["passages"], one["rule"]) for one in status["stores"]] == [("kitchen", 2, "shipped")]
    assert status["uncalibrated_embedders"] == []


def test_a_file_that_nothing_reads_stays_in_progress(site: MemorySite, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.run("add", site.file("a.txt", "text"), "--wait", "0") == 0
    out = capsys.readouterr().out
    assert "in_progress" in out
    assert "read by the running assistant" in out


def test_a_file_that_cannot_be_read_fails_the_command(
    site: MemorySite, reading: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.run("add", site.file("empty.txt", ""), "--wait", "300s", "--json") == 1
    (one,) = json.loads(capsys.readouterr().out)["files"]
    assert (one["status"], one["error"]) == ("failed", "invalid_file")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "MISSING"], "MISSING: No such file"),
        (["add", "HERE", "--user", "eve"], "'eve' has no active key"),
        (["add", "HERE", "--user", "ada/guest"], "no active key with end users"),
        (["add", "HERE", "--store", "chats"], "not a store of files"),
        (["add", "HERE", "--store", "vs_0123"], "not a store of files"),
        (["add", "HERE", "--wait", "soon"], "--wait"),
        (["search", "tea", "--key", "0123456789ab"], "--key needs --user"),
        (["search", "tea", "--user", "ada", "--key", "sk-0123"], "--key needs --user USER and the 12 digits"),
        (["search", "tea"], "ada has no store"),
        (["search", "tea", "--store", "none"], "no store 'none'"),
        (["reindex", "vs_nil"], "store 'vs_nil' does not exist"),
    ],
)
def test_invalid_commands_name_the_cause(
    site: MemorySite, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    here = site.file("here.txt", "text")
    assert site.run(*(here if word == "HERE" else word for word in words)) == 2
    assert message in capsys.readouterr().err


def test_several_users_need_a_name(site: MemorySite, capsys: pytest.CaptureFixture[str]) -> None:
    site.keys.create("bob")
    assert site.run("search", "tea") == 2
    assert "add --user USER (ada, bob)" in capsys.readouterr().err


def test_a_user_does_not_search_the_stores_of_another_one(
    site: MemorySite, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.run("add", site.file("a.txt", "text"), "--wait", "0", "--json") == 0
    store = json.loads(capsys.readouterr().out)["store"]
    site.keys.create("bob")
    assert site.run("search", "text", "--user", "bob", "--store", store) == 2
    assert "no store" in capsys.readouterr().err


def test_all_stores_of_a_user_are_searched_and_expired_ones_are_omitted(
    site: MemorySite, acting: GatewayStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [(f"vs_{number}", {f"file-{number}": f"Letter {number}."}) for number in range(MAX_STORES)]
    gone = {"file-gone": "The dog needs a vaccination against rabies in May, as in each year."}
    site.fill(*more, ("vs_texts", TEXTS), ("vs_gone", gone))
    context = site.context()
    with context.database.writing() as connection:
        expired = update(VECTOR_STORES).where(VECTOR_STORES.c.id == "vs_gone")
        connection.execute(expired.values(expires_days=1, last_active_at=time.time() - 90_000))
    context.database.close()
    before = len(acting.requests)
    assert site.run("search", "when does the dog need the vaccination against rabies?", "--json") == 0
    groups = [one["file_id"] for one in json.loads(capsys.readouterr().out)["data"]]
    assert groups[0] == "file-dog"
    assert "file-gone" not in groups
    assert len(acting.requests) == before + 1, "the query is embedded once"
    assert site.run("search", "rabies", "--store", "vs_gone") == 2
    assert "no store 'vs_gone', or it is expired" in capsys.readouterr().err


def test_a_large_store_is_searched_by_the_points_of_the_running_assistant(
    tmp_path: Path, acting: GatewayStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    with qdrant_stand_in() as server:
        site = MemorySite(tmp_path, acting.path, **options(tmp_path, server))
        site.fill(("vs_1", TEXTS))
        search = ("search", "when is the rent due?", "--json")
        assert site.run(*search) == 1
        assert "not complete" in capsys.readouterr().err
        assert server.collections == {}, "a search changed the server"
        site.fill(points=True)
        assert site.run(*search) == 0
        assert json.loads(capsys.readouterr().out)["data"][0]["file_id"] == "file-rent"
        assert server.of("/points/query")
        del server.only.points[max(server.only.points)]
        assert site.run(*search) == 1
        assert "not complete" in capsys.readouterr().err
        assert len(server.only.points) == len(TEXTS) - 1, "a search changed the points"
        site.fill(("vs_small", {"file-key": "The key of the cellar is under the mat."}))
    small = ("search", "where is the key of the cellar?", "--store", "vs_small")
    assert site.run(*small) == 0, "a small store needs no server"
    assert site.run(*search) == 1
    assert "Qdrant cannot be reached" in capsys.readouterr().err
    site.keys.close()


def test_with_the_id_of_a_key_the_key_store_is_not_read(
    site: MemorySite, acting: GatewayStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    site.fill(("vs_texts", TEXTS))
    site.keys.close()
    before = set(site.folder.glob("*.sqlite*"))
    assert before, "the key store"
    for file in before:
        file.unlink()
    search = ("search", "when is the rent due?", "--user", "ada", "--key", site.key_id, "--json")
    assert site.run(*search) == 0
    assert json.loads(capsys.readouterr().out)["data"][0]["file_id"] == "file-rent"
    assert acting.requests[-1].headers["x-appliance-key"] == site.key_id
    assert not set(site.folder.glob("*.sqlite*"))
    acting.errors["/v1/embeddings"] = (403, "permission_denied")
    assert site.run(*search) == 1, "the gateway refuses the key of another user"


def test_an_uncalibrated_embedder_is_announced_and_calibrate_stores_its_rule(
    site: MemorySite, capsys: pytest.CaptureFixture[str]
) -> None:
    context = site.context()
    other: dict[str, Any] = {
        "model": "other/embedder",
        "revision": "r",
        "pooling": "last",
        "instruction": "",
        "dimensions": 8,
        "dtype": "bfloat16",
    }
    with context.database.writing() as connection:
        connection.execute(
            VECTOR_STORES.insert().values(
                id="vs_1", tenant="ada", kind="files", created_at=time.time(), last_active_at=time.time()
            )
        )
        connection.execute(update(VECTOR_STORES).values(fingerprint=json.dumps(other)))
    context.database.close()
    assert site.run("status") == 0
    out = capsys.readouterr().out
    assert "not calibrated: words" in out
    assert "other/embedder is not calibrated" in out
    assert "appliance memory calibrate" in out
    stored = site.folder / "assistant" / FILE
    assert site.run("calibrate", "--dry-run") == 0
    assert "nothing is changed" in capsys.readouterr().out
    assert not stored.exists()
    assert site.run("calibrate", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"]["abstain_precision"] >= 0.95
    assert json.loads(stored.read_text()) == {next(iter(json.loads(stored.read_text()))): found["rule"]}
