"""`make up`: the whole service on one machine without Nix. Model, engine, gateway, smoke test, then it serves.

Whatever happens, a failed step, Ctrl-C, a closed terminal, every child is stopped before this returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from appliance.config import Site
from appliance.configfile import load, parse, read
from appliance.engines.argv import Replica, replicas
from appliance.engines.control import ChildProcesses, Unit
from appliance.engines.health import CANARY_TIMEOUT_S, canary, canary_passed
from appliance.errors import ConfigError, EngineUnavailableError, RequestError, StartError
from appliance.gateway.outbox import Outbox
from appliance.gateway.serve import bind
from appliance.gateway.upstream import Pool
from appliance.models.prepare import Prepared, prepare
from appliance.ops import smoke
from appliance.screen import console as lasting_console
from appliance.stopping import Stop, stop_signals
from appliance.store.keys import KeyStore
from loadtests.report import Report

POLL_S = 0.5
REMIND_S = 20.0
GATEWAY_START_S = 30.0
INTERRUPTED = 130
"""The shell's exit code of a command that Ctrl-C ended before it was done."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for. ``base`` is where relative paths begin."""

    config: Path
    engine: str
    model: str
    port: int | None
    once: bool
    engine_python: Path
    base: Path


def up(options: Options) -> int:
    """Run the service; the exit code of the smoke test, 0 after Ctrl-C while serving, 130 after Ctrl-C before."""
    return asyncio.run(_guarded(options))


async def _guarded(options: Options) -> int:
    """Turn signals into a cancellation, and a cancellation into an orderly end."""
    console = lasting_console()
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(_run(options, console))
    for number in stop_signals():
        loop.add_signal_handler(number, work.cancel)
    try:
        code = await work
    except asyncio.CancelledError:
        code = INTERRUPTED
    if code == INTERRUPTED or not options.once:
        console.print("stopped; nothing is left running")
    return code


async def _run(options: Options, console: Console) -> int:
    table = parse(options.config, read(options.config))
    port = options.port or table.get("gateway", {}).get("port", 8000)
    other = f"`make up PORT={port + 1}`, or another gateway.port in {options.config}"
    bind(table.get("gateway", {}).get("host", "127.0.0.1"), port, other).close()
    data = options.base / table.get("gateway", {}).get("data_dir", "var")

    prepared: Prepared | None = None
    if options.engine == "fake":
        console.print("[bold yellow]FAKE ENGINE[/]: no model runs here; tokens come by the clock (ENGINE=fake)")
    else:
        async with _step(console, "preparing the model") as say:
            prepared = await prepare(options.model, options.engine_python, data, say)
        console.print(prepared.notice, style="bold yellow" if "TINY" in prepared.notice else "")

    config = write_site(table, options, prepared, port, data)
    site = load(config)
    died: dict[str, int] = {}
    children = ChildProcesses(on_exit=died.__setitem__)
    try:
        return await _serve(options, console, site, config, children, died)
    finally:
        await _stopped(children)


async def _stopped(children: ChildProcesses) -> None:
    """Wait until every child is stopped. A further signal kills them, and never leaves one behind."""
    stopping, again = asyncio.ensure_future(children.stop_all()), False
    while not stopping.done():
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            again = True
            children.kill_all()
    if again:
        raise asyncio.CancelledError


async def _serve(
    options: Options,
    console: Console,
    site: Site,
    config: Path,
    children: ChildProcesses,
    died: dict[str, int],
) -> int:
    folder = site.data_path(options.base)
    logs = folder / "log"
    own = [sys.executable, "-m", "appliance"]
    for replica in replicas(site):
        # Somebody else's engine on our port would answer in the place of ours.
        bind("127.0.0.1", replica.port, f"another `port` of engines.{replica.name} in {options.config}").close()
        argv = (*own, "engine", "exec", replica.name, "--config", str(config))
        log = logs / f"engine-{replica.name}.log"
        stop_s = replica.engine.shutdown_timeout_s + 10.0
        await children.start(Unit(f"engine-{replica.name}", argv, log, stop_timeout_s=stop_s))
        async with _step(console, f"starting {_describe(replica)} on 127.0.0.1:{replica.port}"):
            await first_token(site, replica, log, died)
        console.print(f"engine {replica.name} generated its first token")

    # Before the gateway starts, so that it knows both keys from its first request.
    keys = KeyStore(folder)
    own_key, key = _own_key(keys, folder), keys.create("smoke")
    url = f"http://{site.gateway.host}:{site.gateway.port}"
    stop_s = site.gateway.drain_timeout_s + 10.0
    gateway = Unit(
        "gateway", (*own, "gateway", "--config", str(config)), logs / "gateway.log", stop_timeout_s=stop_s
    )
    model = smoke.default_model(site)
    load = f"{site.smoke.users} users, {site.smoke.requests_per_user} requests each"
    try:
        await children.start(gateway)
        async with _step(console, f"starting the gateway on {url}"):
            await _until_ready(site, logs / "gateway.log", died)
        async with _step(console, f"smoke test: {load}"):
            report = await _smoke(site, url, key, model, folder)
    finally:
        keys.revoke(key)
    subject = f"{model} (fake engine)" if options.engine == "fake" else model
    smoke.show(report, console, subject=subject)
    if options.once:
        return report.exit_code
    _invite(console, url, model, own_key, logs)
    died.clear()
    try:
        await _watch(console, died, logs)
    except asyncio.CancelledError:
        # The ordinary end of a service that came up: the caller stops the children and reports no failure.
        return 0


async def _smoke(site: Site, url: str, key: str, model: str, folder: Path) -> Report:
    """The smoke test, in a thread beside the loop that keeps the children; cancelled, its load has ended."""
    stop = Stop()
    load = partial(smoke.run, site.smoke, url=url, key=key, model=model, folder=folder, stop=stop)
    running = asyncio.ensure_future(asyncio.to_thread(load))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.request("a signal")
        await asyncio.wait([running])
        # The end of a test that was stopped is of no interest, however it came.
        running.exception()
        raise


async def _watch(console: Console, died: dict[str, int], logs: Path) -> NoReturn:
    """Serve until cancelled; say when a part ended by itself and was restarted."""
    while True:
        await asyncio.sleep(POLL_S)
        for name, code in [*died.items()]:
            del died[name]
            console.print(f"[red]{name} ended with code {code}[/]; starting it again, see {logs / name}.log")


def write_site(table: dict[str, Any], options: Options, prepared: Prepared | None, port: int, data: Path) -> Path:
    """The configuration that really runs: the given one with the model that is here; the file it is in.

    The model is renamed to what it is, everywhere: nobody shall take a tiny random model, or a fake engine,
    for Qwen.
    """
    table = json.loads(json.dumps(table))
    table.setdefault("gateway", {}).update(port=port, data_dir=str(data.absolute()))
    engines: dict[str, dict[str, Any]] = table.get("engines", {})
    if len({engine.get("model") for engine in engines.values()}) != 1:
        raise ConfigError(f"{options.config}: `make up` serves one model; give all engines the same `model`")
    old = next(iter(engines.values()))["model"]
    new = "fake" if prepared is None else prepared.name
    source = str(data.absolute()) if prepared is None else str(prepared.folder.absolute())
    model = dict(table.get("models", {}).get(old, {}))
    model.pop("revision", None)
    model["source"] = source
    if prepared is not None:
        model["max_context"] = prepared.context
    table["models"] = {new: model}
    for engine in engines.values():
        engine.update(model=new, command=sys.executable if prepared is None else str(options.engine_python))
        if prepared is None:
            engine.update(kind="fake", options={})
    for role in table.get("roles", {}).values():
        if role.get("model") == old:
            role["model"] = new
    data.mkdir(parents=True, exist_ok=True)
    path = data / "site.json"
    path.write_text(json.dumps(table, indent=2))
    return path


async def first_token(site: Site, replica: Replica, log: Path, died: dict[str, int]) -> None:
    """Wait until ``replica`` generated a token; raises :class:`StartError` when it ends or takes too long."""
    unit, said = f"engine-{replica.name}", ["it did not open its port"]
    asking = asyncio.create_task(_ask_for_token(site, replica, said))
    try:
        async with asyncio.timeout(replica.engine.start_timeout_s):
            while not asking.done():
                if unit in died:
                    reason = f"ended with code {died[unit]}: {tail(log)}"
                    raise StartError(f"engine {replica.name} {reason}; its log is {log}")
                await asyncio.wait([asking], timeout=POLL_S)
    except TimeoutError:
        reason = f"generated no token within {replica.engine.start_timeout_s} s ({said[-1]})"
        raise StartError(f"engine {replica.name} {reason}; its log is {log}") from None
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _ask_for_token(site: Site, replica: Replica, said: list[str]) -> None:
    """Ask until a token comes; what came instead is appended to ``said``."""
    path, body = canary(replica.engine.model, site.models[replica.engine.model].task)
    timeout_s = CANARY_TIMEOUT_S
    outbox = Outbox(asyncio.get_running_loop())
    pool = Pool(
        replica.port, outbox, connect_timeout_s=2, first_byte_timeout_s=timeout_s, stall_timeout_s=timeout_s
    )
    while True:
        try:
            status, answer = await pool.probe(path.encode(), body, timeout_s)
        except EngineUnavailableError:
            pass
        except RequestError as error:
            said.append(str(error))
        else:
            if canary_passed(status, answer):
                return
            said.append(f"it answered {status}: {answer[:200].decode('utf-8', 'replace')}")
        await asyncio.sleep(POLL_S)


async def _until_ready(site: Site, log: Path, died: dict[str, int]) -> None:
    deadline = time.monotonic() + GATEWAY_START_S
    while time.monotonic() < deadline:
        if "gateway" in died:
            raise StartError(f"the gateway ended with code {died['gateway']}: {tail(log)}; its log is {log}")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if await _status(site.gateway.host, site.gateway.port, "/ready") == 200:
                return
        await asyncio.sleep(POLL_S / 5)
    raise StartError(f"the gateway was not ready within {GATEWAY_START_S:.0f} s; its log is {log}")


async def _status(host: str, port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        line = await reader.readline()
        return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
    finally:
        writer.close()


def tail(log: Path) -> str:
    """The last line of ``log`` that looks like the cause."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # An engine core that fails is reported by its own process first, then by those that waited for it.
    causes = [line for line in lines if re.search(r"Error|error: ", line) and "root cause above" not in line]
    return (causes or lines or ["it said nothing"])[-1][-300:]


def _own_key(keys: KeyStore, folder: Path) -> str:
    """The person's own key: made at the first run, kept readable for him alone."""
    path = folder / "key"
    if path.exists():
        return path.read_text().strip()
    key = keys.create("me")
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key + "\n")
    return key


def _invite(console: Console, url: str, model: str, key: str, logs: Path) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    console.print(f"\n[bold]Serving[/] on {url}/v1, model [bold]{model}[/], logs in {logs}")
    console.print(f"Your API key: {key}\n\nTry it from another terminal:\n")
    console.print(f"  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\", soft_wrap=True)
    console.print(f"    -H 'Content-Type: application/json' -d '{body}'\n", soft_wrap=True, markup=False)
    console.print("Ctrl-C stops everything.")


def _describe(replica: Replica) -> str:
    kind = {"vllm": "vLLM", "llamacpp": "llama.cpp", "fake": "the fake engine"}[replica.engine.kind]
    return f"{kind} on the CPU" if replica.engine.device == "cpu" and replica.engine.kind != "fake" else kind


@contextlib.asynccontextmanager
async def _step(console: Console, what: str) -> AsyncIterator[Callable[[str], None]]:
    """Show that a long step is going on: a spinner with seconds on a terminal, a line now and then else."""
    began = time.monotonic()

    async def remind(show: Callable[[str], object], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            show(f"{what} ... {time.monotonic() - began:.0f} s")

    if console.is_terminal:
        with console.status(f"{what} ...") as status:
            ticker = asyncio.create_task(remind(status.update, 1.0))
            try:
                yield console.print
            finally:
                ticker.cancel()
    else:
        console.print(f"{what} ...")
        ticker = asyncio.create_task(remind(console.print, REMIND_S))
        try:
            yield console.print
        finally:
            ticker.cancel()
    console.print(f"{what}: {time.monotonic() - began:.0f} s")
