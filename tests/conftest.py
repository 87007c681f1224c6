"""Fixtures: real processes on loopback, started here and stopped here."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from appliance.store.keys import KeyStore
from tests.ports import free_port
from tests.preloaded import ChildProcess, start_program
from tests.smalldisk import SmallDisk, mounted

# A busy machine stops a process for seconds, which is not a property of the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent
MOCK_ENGINE = (sys.executable, "-m", "appliance.engines.mock")
"""The command that runs the mock engine."""


START_S = 100.0
"""Seconds within which a server listens, also on a machine whose cores are busy."""

TOGETHER = {name: name for name in ("vllm", "network", "assistant_clients", "page", "telegram")}
"""Folders whose tests run in one worker: they share a real engine, the bridge of a network, or a whole service."""

LONGEST = ("vllm", "network", "clients", "tools", "smoketest", "loadtests", "up", "upgrade", "nix")
"""Folders in the order in which workers begin with them; the others follow. The longest begin first."""


class _FileScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each file, or each folder of :data:`TOGETHER`, to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return TOGETHER.get(path.split("/")[1], path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _FileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest folders."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.relative_to(ROOT / "tests").parts[0], len(order)))


# A garbage collection that visits the thousands of collected items takes half a second of CPU.
gc.disable()


def pytest_collection_finish() -> None:
    """Exempt what the collection made from garbage collections, which begin now."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect garbage after each file, so that a resource that a test left open is reported in its own file."""
    yield
    gc.collect()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 15.0) -> float:
    """Poll ``condition`` until it holds; the seconds it took."""
    began = time.monotonic()
    while time.monotonic() < began + timeout_s:
        if condition():
            return time.monotonic() - began
        time.sleep(0.01)
    pytest.fail(f"{what} did not happen within {timeout_s} s")


@dataclass
class Response:
    """A whole HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def http(
    url: str, *, body: object = None, key: str | None = None, method: str | None = None, timeout: float = 30
) -> Response:
    """Send one request; error statuses are responses, not exceptions."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method or ("POST" if data is not None else "GET"))
    request.add_header("Content-Type", "application/json")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            headers = {k.lower(): v for k, v in response.headers.items()}
            return Response(response.status, headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def opens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class StartedProcess:
    """A child with a port and a log."""

    port: int
    process: ChildProcess
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def start(argv: list[str], port: int, log: Path, **environment: str) -> StartedProcess:
    """Start ``argv`` and wait until it listens on ``port``."""
    with log.open("ab") as output:
        process = start_program(argv, output, {**os.environ, "PYTHONPATH": str(ROOT), **environment})
    started = StartedProcess(port, process, log)

    def listening() -> bool:
        if process.poll() is not None:
            pytest.fail(f"{argv[:4]} ended with {process.returncode}: {log.read_text()[-2000:]}")
        return opens(port)

    try:
        wait_until(listening, f"{argv[:4]} on port {port}", START_S)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return started


def start_mock(log: Path, *options: str, port: int | None = None) -> StartedProcess:
    """Start the mock engine with these options and wait until it listens."""
    port = port or free_port()
    return start([*MOCK_ENGINE, "--port", str(port), *options], port, log)


def a_site(port: int, engine_port: int, data: Path, **more: Any) -> dict[str, Any]:
    """A small site on mock engines: model ``fake``, role ``writer``; also ``more_engines`` and ``more_models``."""
    site: dict[str, Any] = {
        "version": 1,
        "hosts": {"here": {"memory_gib": 8}},
        "models": {"fake": {"source": "./fake"}},
        "engines": {
            "chat": {
                "kind": "mock",
                "host": "here",
                "model": "fake",
                "device": "cpu",
                "context": 4096,
                "concurrency": 64,
                "port": engine_port,
            }
        },
        "gateway": {"port": port, "data_dir": str(data), "ready_cache_s": 0.2, "canary_interval_s": 600},
    }
    for part in ("engines", "models"):
        site[part] |= more.pop(f"more_{part}", {})
    site["gateway"] |= more.pop("gateway", {})
    return site | more


def usage_rows(data: Path) -> list[dict[str, Any]]:
    """The usage rows of the gateway with this data folder, oldest first."""
    db = sqlite3.connect(data / "appliance.sqlite")
    try:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM usage ORDER BY rowid")]
    finally:
        db.close()


def usage_row(data: Path, request_id: str, timeout_s: float = 5) -> dict[str, Any]:
    """The usage row of a request, once it is written; ``data`` is the gateway's data folder."""
    wait_until(lambda: any(row["request_id"] == request_id for row in usage_rows(data)), "the usage row", timeout_s)
    return next(row for row in usage_rows(data) if row["request_id"] == request_id)


@dataclass
class RunningService:
    """A gateway in front of engines, with a key of user ``ada``."""

    gateway: StartedProcess
    engine: StartedProcess
    data: Path
    key: str
    config: Path

    @property
    def url(self) -> str:
        return self.gateway.url

    def post(self, path: str, body: object, key: str | None = None) -> Response:
        return http(self.url + path, body=body, key=key or self.key)

    def get(self, path: str, key: str | None = None) -> Response:
        return http(self.url + path, key=key)

    def stats(self) -> dict[str, int]:
        counters: dict[str, int] = http(self.engine.url + "/stats").json
        return counters

    def last(self) -> dict[str, str]:
        seen: dict[str, str] = http(self.engine.url + "/last").json
        return seen

    def rows(self) -> list[dict[str, Any]]:
        """The usage rows, oldest first."""
        return usage_rows(self.data)

    def row(self, response: Response) -> dict[str, Any]:
        """The usage record of ``response``."""
        return usage_row(self.data, response.headers["x-request-id"])

    def wait_rows(self, count: int) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.rows()) >= count, f"{count} usage rows", 5)
        return self.rows()


@contextmanager
def serving(folder: Path, *engine_options: str, **more: Any) -> Iterator[RunningService]:
    """A gateway process before one mock engine; ``more`` replaces top-level parts of the site."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = start_mock(folder / "engine.log", *engine_options)
    port = free_port()
    config = folder / "site.json"
    config.write_text(json.dumps(a_site(port, engine.port, folder, **more)))
    store = KeyStore(folder)
    key = store.create("ada")
    store.close()
    argv = [sys.executable, "-m", "appliance", "gateway", "--config", str(config)]
    try:
        gateway = start(argv, port, folder / "gateway.log")
    except BaseException:
        engine.stop()
        raise
    service = RunningService(gateway, engine, folder, key, config)
    try:
        yield service
    finally:
        try:
            code = service.gateway.stop()
        finally:
            service.engine.stop()
        log = (folder / "gateway.log").read_text()
        assert code == 0, log
        assert "Traceback" not in log, log


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of one megabyte; needs root."""
    with mounted(tmp_path / "small") as disk:
        yield disk


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with serving(tmp_path_factory.mktemp("service")) as running:
        yield running


def exchange(service: RunningService, *pieces: bytes, timeout: float = 8, to_the_end: bool = False) -> bytes:
    """Send ``pieces``; read until the gateway closes the connection or has sent a whole response."""
    with socket.create_connection(("127.0.0.1", service.gateway.port), timeout=timeout) as connection:
        for piece in pieces:
            connection.sendall(piece)
        seen = b""
        while piece := connection.recv(65536):
            seen += piece
            head, _, body = seen.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            if not to_the_end and length and len(body) >= int(length.group(1)) and b"connection: close" not in head:
                break
        return seen


def head(service: RunningService, *lines: str, path: str = "/v1/chat/completions") -> bytes:
    """The head of a POST, written by hand, with the service's key and ``lines``."""
    first = [f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {service.key}", *lines]
    return "\r\n".join([*first, "", ""]).encode("latin1")


def resident_mib(service: RunningService) -> int:
    """Memory that the gateway holds, in MiB."""
    text = Path(f"/proc/{service.gateway.process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) // 1024


def chat(text: str = "hi", **more: Any) -> dict[str, Any]:
    """A chat request's body; directives for the mock engine go into ``text``."""
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **more}


async def open_stream(service: RunningService, body: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request by hand, so that the test decides when to leave."""
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", service.gateway.port)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {service.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode()
        + data
    )
    await writer.drain()
    return reader, writer
