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
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from appliance.contract.load import parse, read, validate
from appliance.contract.model import Site
from appliance.engines.argv import EngineReplica, command, replicas
from appliance.engines.probe import probe_token
from appliance.engines.processes import ChildProcesses, ProcessSpec
from appliance.errors import ConfigError, StartError
from appliance.gateway.main import bind
from appliance.models.prepare import Prepared, prepare
from appliance.render.terminal import long_run_console
from appliance.smoketest.load import default_model, run_load, show
from appliance.store.keys import KeyStore
from appliance.system import files, lock_file, text_file
from appliance.system.http_request import NO_RESPONSE, send_request
from appliance.system.lock_file import IN_USE
from appliance.system.stopping import Stop, stop_signals
from loadtests.report import Report

POLL_S = 0.5
REMIND_S = 20.0
GATEWAY_START_S = 30.0
LOCK = ".lock"
"""The file in the data folder that the service locks for as long as it runs."""
SITE = "site.json"
RUNNING = "running.json"
"""The configuration that the gateway of this service reads, also after a crash."""
INTERRUPTED = 130
"""The shell's exit code of a command that Ctrl-C ended before it was done."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for. ``base`` is where relative paths begin.

    ``engine_port`` is the port of the first replica; the others follow it.
    """

    config: Path
    engine: str
    model: str
    port: int | None
    once: bool
    engine_python: Path
    base: Path
    engine_port: int | None = None


@dataclass(frozen=True, slots=True)
class Events:
    """What happened to the children: exit codes of those that ended, reasons of those that cannot be restarted."""

    died: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def up(options: Options) -> int:
    """Run the service; the exit code of the smoke test, 0 after Ctrl-C while serving, 130 after Ctrl-C before."""
    return asyncio.run(_guarded(options))


async def _guarded(options: Options) -> int:
    """Turn signals into a cancellation, and a cancellation into an orderly end."""
    console = long_run_console()
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
    """Check what the person wrote, take the data folder, check the ports; write only then."""
    table = parse(options.config, read(options.config))
    given = validate(str(options.config), table)
    table = on_ports(table, given, options)
    given = validate(str(options.config), table)
    if len({engine.model for engine in given.engines.values()}) != 1:
        raise ConfigError(f"{options.config}: `make up` serves one model; give all engines the same `model`")
    data = given.data_path(options.base)
    with _alone(data, given, options) as lock:
        await _free_ports(console, given, options, lock)
        return await _prepared(options, console, table, given.gateway.port, data)


async def _prepared(options: Options, console: Console, table: dict[str, Any], port: int, data: Path) -> int:
    prepared: Prepared | None = None
    if options.engine == "fake":
        console.print("[bold yellow]FAKE ENGINE[/]: no model runs here; tokens come by the clock (ENGINE=fake)")
    else:
        async with _step(console, "preparing the model") as say:
            prepared = await prepare(options.model, options.engine_python, data, say)
        console.print(prepared.notice, style="bold yellow" if "TINY" in prepared.notice else "")

    site, config = write_site(table, options, prepared, port, data)
    events = Events()
    children = ChildProcesses(events.died.__setitem__, events.failed.__setitem__)
    try:
        return await _serve(options, console, site, config, children, events)
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


@contextlib.contextmanager
def _alone(data: Path, site: Site, options: Options) -> Iterator[lock_file.Lock]:
    """Hold the lock of the data folder and use the environments that the service runs from.

    Raises :class:`StartError` if a service runs in the folder, or an installation changes an environment.
    """
    files.make_folder(data)
    url = f"http://{site.gateway.host}:{site.gateway.port}"
    try:
        lock = lock_file.take(data / LOCK)
    except lock_file.HeldError as held:
        pid, there = held.note.get("pid", "unknown"), held.note.get("url", "not yet serving")
        raise StartError(
            f"a service already runs in {data} (pid {pid}, {there}); it is left as it is: stop it with Ctrl-C or "
            f"`kill {pid}`, or choose another gateway.data_dir in {options.config}"
        ) from None
    try:
        lock.note(url=url)
        with contextlib.ExitStack() as used:
            engine = [options.engine_python.parent.parent] if options.engine == "vllm" else []
            for folder in (Path(sys.prefix), *engine):
                try:
                    number = lock_file.share(folder / IN_USE)
                except lock_file.HeldError:
                    raise StartError(f"an installation changes {folder}; run again when it has ended") from None
                if number is not None:
                    used.callback(os.close, number)
            yield lock
    finally:
        lock.release()


async def _free_ports(console: Console, site: Site, options: Options, lock: lock_file.Lock) -> None:
    """Check that all ports are free: another program's engine on our port would answer in the place of ours.

    Raises :class:`StartError` that names the taken port and how to choose another. After a run that was killed,
    wait for its children first: the kernel has asked them to end.
    """
    port = site.gateway.port
    other = f"`make up PORT={port + 1 if port < 65535 else 8000}`, or another gateway.port in {options.config}"
    wanted = [(site.gateway.host, port, other, site.gateway.drain_timeout_s)]
    for replica in replicas(site):
        other = f"another `port` of engines.{replica.name} in {options.config}, or `make up ENGINE_PORT=…`"
        wanted.append(("127.0.0.1", replica.port, other, replica.engine.shutdown_timeout_s))
    if lock.left:
        console.print(f"an earlier run here was killed (pid {lock.left.get('pid', 'unknown')})")
    began = time.monotonic()
    for host, number, instead, patience_s in wanted:
        while True:
            try:
                bind(host, number, instead).close()
                break
            except StartError:
                if not lock.left or time.monotonic() > began + patience_s + 10.0:
                    raise
            await asyncio.sleep(POLL_S)


async def _serve(
    options: Options,
    console: Console,
    site: Site,
    config: Path,
    children: ChildProcesses,
    events: Events,
) -> int:
    folder = site.data_path(options.base)
    logs = folder / "log"
    for replica in replicas(site):
        # Its command is built once, from the site in memory: after a crash the same engine starts again, whatever
        # has become of the file.
        built = command(site, replica, options.base)
        unit = ProcessSpec(
            f"engine-{replica.name}",
            built.argv,
            logs / f"engine-{replica.name}.log",
            built.environment,
            stop_timeout_s=replica.engine.shutdown_timeout_s + 10.0,
            fix=f"name the engine's Python or binary in engines.{replica.name}.command of {options.config}",
        )
        await children.start(unit)
        async with _step(console, f"starting {_describe(replica)} on 127.0.0.1:{replica.port}"):
            await first_token(site, replica, unit.log, events.died)
        console.print(f"engine {replica.name} generated its first token")

    # Before the gateway starts, so that it knows both keys from its first request.
    keys = KeyStore(folder)
    own_key, key = _own_key(keys, folder), keys.create("smoke")
    url = f"http://{site.gateway.host}:{site.gateway.port}"
    own = [sys.executable, "-m", "appliance"]
    stop_s = site.gateway.drain_timeout_s + 10.0
    gateway = ProcessSpec(
        "gateway", (*own, "gateway", "--config", str(config)), logs / "gateway.log", stop_timeout_s=stop_s
    )
    model = default_model(site)
    effort = f"{site.smoke.users} users, {site.smoke.requests_per_user} requests each"
    try:
        await children.start(gateway)
        async with _step(console, f"starting the gateway on {url}"):
            await _until_ready(url, logs / "gateway.log", events.died)
        async with _step(console, f"smoke test: {effort}"):
            report = await _smoke(site, url, key, model, folder)
    finally:
        keys.revoke(key)
    subject = f"{model} (fake engine)" if options.engine == "fake" else model
    show(report, console, subject=subject)
    if options.once:
        return report.exit_code
    _invite(console, url, model, own_key, logs)
    events.died.clear()
    try:
        await _watch(console, events, logs)
    except asyncio.CancelledError:
        # The ordinary end of a service that came up: the caller stops the children and reports no failure.
        return 0


async def _smoke(site: Site, url: str, key: str, model: str, folder: Path) -> Report:
    """The smoke test, in a thread beside the loop that keeps the children; cancelled, its load has ended."""
    stop = Stop()
    load = partial(run_load, site.smoke, url=url, key=key, model=model, folder=folder, stop=stop)
    running = asyncio.ensure_future(asyncio.to_thread(load))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.request("a signal")
        await asyncio.wait([running])
        # The end of a test that was stopped is of no interest, however it came.
        running.exception()
        raise


async def _watch(console: Console, events: Events, logs: Path) -> NoReturn:
    """Serve until cancelled; report each part that ended by itself, and each restart that failed."""
    while True:
        await asyncio.sleep(POLL_S)
        for name in [*events.died]:
            code = events.died.pop(name)
            console.print(f"[red]{name} ended with code {code}[/]; starting it again, see {logs / name}.log")
        for name in [*events.failed]:
            reason = events.failed.pop(name)
            console.print(f"{name} cannot be restarted: {reason}", style="red", markup=False, soft_wrap=True)


def on_ports(table: dict[str, Any], site: Site, options: Options) -> dict[str, Any]:
    """Return ``table``, which describes ``site``, with the ports of ``options``."""
    table = json.loads(json.dumps(table))
    if options.port is not None:
        table.setdefault("gateway", {})["port"] = options.port
    following = options.engine_port
    for name, engine in site.engines.items():
        if following is not None:
            table["engines"][name]["port"] = following
            following += engine.replicas
    return table


def write_site(
    table: dict[str, Any], options: Options, prepared: Prepared | None, port: int, data: Path
) -> tuple[Site, Path]:
    """Write the configuration that really runs: the given one with the model that is here.

    ``table`` is a valid site of one model. Returns the result with the file that the gateway reads. The model is
    renamed to what it is, everywhere, so that no client takes a tiny random model, or a fake engine, for Qwen.
    Raises :class:`ConfigError` before anything is written.
    """
    table = json.loads(json.dumps(table))
    table.setdefault("gateway", {}).update(port=port, data_dir=str(data.absolute()))
    engines: dict[str, dict[str, Any]] = table["engines"]
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
            engine.update(kind="mock", options={})
    for role in table.get("roles", {}).values():
        if role.get("model") == old:
            role["model"] = new
    site = validate(str(data / SITE), table)
    text = json.dumps(table, indent=2)
    # Two files: people and other programs may edit the first one, and a gateway that crashes must come back with
    # the configuration that it was started with.
    for name in (SITE, RUNNING):
        files.replace(data / name, text)
    return site, data / RUNNING


async def first_token(site: Site, replica: EngineReplica, log: Path, died: dict[str, int]) -> None:
    """Wait until ``replica`` generates a token.

    ``died`` maps units that ended to their exit codes. Raises :class:`StartError` if the engine ends, or if it
    generates no token within its ``start_timeout_s``.
    """
    unit, reasons = f"engine-{replica.name}", ["no response"]
    probing = asyncio.create_task(_probe_until_token(site, replica, reasons))
    try:
        async with asyncio.timeout(replica.engine.start_timeout_s):
            while not probing.done():
                if unit in died:
                    reason = f"ended with code {died[unit]}: {tail(log)}"
                    raise StartError(f"engine {replica.name} {reason}; its log is {log}")
                await asyncio.wait([probing], timeout=POLL_S)
            # Raise an error of the probe itself: it must not count as a token.
            probing.result()
    except TimeoutError:
        reason = f"generated no token within {replica.engine.start_timeout_s} s ({reasons[-1]})"
        raise StartError(f"engine {replica.name} {reason}; its log is {log}") from None
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)


async def _probe_until_token(site: Site, replica: EngineReplica, reasons: list[str]) -> None:
    """Probe ``replica`` until it generates a token; append the reason of each failed probe to ``reasons``."""
    model = replica.engine.model
    # The thread of a cancelled probe ends with its engine, which the caller then stops.
    while reason := await asyncio.to_thread(probe_token, replica.url, model, site.models[model].task):
        reasons.append(reason)
        await asyncio.sleep(POLL_S)


async def _until_ready(url: str, log: Path, died: dict[str, int]) -> None:
    """Wait until the gateway at ``url`` is ready; raises :class:`StartError` if it ends, or takes too long."""
    ready = partial(send_request, url, "/ready", timeout_s=GATEWAY_START_S)
    deadline = time.monotonic() + GATEWAY_START_S
    while time.monotonic() < deadline:
        if "gateway" in died:
            raise StartError(f"the gateway ended with code {died['gateway']}: {tail(log)}; its log is {log}")
        with contextlib.suppress(*NO_RESPONSE):
            if (await asyncio.to_thread(ready)).status == 200:
                return
        await asyncio.sleep(POLL_S / 5)
    raise StartError(f"the gateway was not ready within {GATEWAY_START_S:.0f} s; its log is {log}")


def tail(log: Path) -> str:
    """The last line of ``log`` that looks like the cause."""
    text = (files.read(log) or b"").decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # An engine core that fails is reported by its own process first, then by those that waited for it.
    causes = [line for line in lines if re.search(r"Error|error: ", line) and "root cause above" not in line]
    return (causes or lines or ["it said nothing"])[-1][-300:]


def _own_key(keys: KeyStore, folder: Path) -> str:
    """The person's own key: made at the first run, kept readable for him alone."""
    path = folder / "key"
    found = files.read(path)
    if found is not None and (known := text_file.key(text_file.decode(found, str(path)), str(path))):
        return known
    key = keys.create("me")
    files.replace(path, key + "\n", mode=0o600)
    return key


def _invite(console: Console, url: str, model: str, key: str, logs: Path) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    console.print(f"\n[bold]Serving[/] on {url}/v1, model [bold]{model}[/], logs in {logs}")
    console.print(f"Your API key: {key}\n\nTry it from another terminal:\n")
    console.print(f"  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\", soft_wrap=True)
    console.print(f"    -H 'Content-Type: application/json' -d '{body}'\n", soft_wrap=True, markup=False)
    console.print("Ctrl-C stops everything.")


def _describe(replica: EngineReplica) -> str:
    kind = {"vllm": "vLLM", "llamacpp": "llama.cpp", "mock": "the fake engine"}[replica.engine.kind]
    return f"{kind} on the CPU" if replica.engine.device == "cpu" and replica.engine.kind != "mock" else kind


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
