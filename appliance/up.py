"""`make up`: the whole service on one machine without Nix. Model, engine, gateway, smoke test, then it serves.

Every child is stopped before this returns, also after a failed step, Ctrl-C or a closed terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from appliance.contract.load import parse, read, validate
from appliance.contract.model import Site
from appliance.engines.argv import EngineReplica, command, started_replicas
from appliance.engines.cpu_dtype import read_cpuinfo
from appliance.engines.gguf_examination import require_loadable
from appliance.engines.load_format import weights_store
from appliance.engines.probe import probe_token
from appliance.engines.processes import ChildProcesses, ProcessSpec
from appliance.errors import ConfigError, StartError
from appliance.models.prepare import Prepared, prepare
from appliance.render.terminal import long_run_console
from appliance.smoketest.load import default_model, run_load, show
from appliance.store.keys import KeyStore
from appliance.system import files, lock_file, text_file
from appliance.system.http_request import NO_RESPONSE, send_request
from appliance.system.listener import bind
from appliance.system.lock_file import IN_USE
from appliance.system.stopping import Stop, stop_signals
from loadtests.report import Report

POLL_S = 0.5
REMIND_S = 20.0
GATEWAY_START_S = 30.0
ASSISTANT_START_S = 60.0
ASSISTANT_STOP_S = 40.0
"""Seconds that the assistant gets for running responses when it stops, and for its own end."""
BOT_START_S = 120.0
"""Seconds for which the start waits for the bot's first contact with Telegram, or for its first failure."""
BOT_FILE = "telegram-token"
"""The file in the data folder with the token of a Telegram bot; with it, `make up` also runs the bot."""
LOCK = ".lock"
"""The file in the data folder that the service locks for as long as it runs."""
SITE = "site.json"
RUNNING = "running.json"
"""The configuration that the gateway of this service reads, also after a crash."""
INTERRUPTED = 130
"""The shell's exit code of a command that Ctrl-C ended before it was done."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command line. Relative paths begin at ``base``.

    ``engine_port`` is the port of the first engine replica; the other replicas use the ports after it.
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
    """Events of the children: exit codes of ended ones, reasons of those that cannot be restarted."""

    died: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def up(options: Options) -> int:
    """Run the service and return the exit code.

    It is the smoke test's with ``once``, else 0 after Ctrl-C while it serves and 130 after Ctrl-C before that.
    """
    return asyncio.run(_guarded(options))


async def _guarded(options: Options) -> int:
    """Cancel the service when a signal arrives; return after an orderly end."""
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
    """Check the configuration, lock the data folder, check the ports; write only after that."""
    table = parse(options.config, read(options.config))
    given = validate(str(options.config), table)
    table = on_ports(table, given, options)
    given = validate(str(options.config), table)
    if len({engine.model for engine in given.engines.values() if engine.kind != "embedder"}) != 1:
        raise ConfigError(
            f"{options.config}: `make up` serves one model, and embeddings from engines of kind embedder; give all "
            "other engines the same `model`"
        )
    data = given.data_path(options.base)
    with _alone(data, given, options) as lock:
        await _free_ports(console, given, options, lock)
        return await _prepared(options, console, table, given.gateway.port, data)


async def _prepared(options: Options, console: Console, table: dict[str, Any], port: int, data: Path) -> int:
    prepared: Prepared | None = None
    if options.engine == "fake":
        console.print(
            "[bold yellow]FAKE ENGINE[/]: no model runs here; tokens are generated by a timer (ENGINE=fake)"
        )
    else:
        async with _step(console, "preparing the model") as report_progress:
            prepared = await prepare(options.model, options.engine_python, data, report_progress)
        console.print(prepared.notice, style="bold yellow" if "TINY" in prepared.notice else "")

    site, config = write_site(table, options, prepared, port, data)
    events = Events()
    children = ChildProcesses(events.died.__setitem__, events.failed.__setitem__)
    try:
        return await _serve(options, console, site, config, children, events)
    finally:
        await _stopped(children)


async def _stopped(children: ChildProcesses) -> None:
    """Wait until every child is stopped. A further signal kills them all."""
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
            f"a service already runs in {data} (pid {pid}, {there}); it was not changed: stop it with Ctrl-C or "
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
                    raise StartError(
                        f"an installation changes {folder}; run this again when it has ended"
                    ) from None
                if number is not None:
                    used.callback(os.close, number)
            yield lock
    finally:
        lock.release()


async def _free_ports(console: Console, site: Site, options: Options, lock: lock_file.Lock) -> None:
    """Check that all ports are free: requests to our engine must not reach another program on its port.

    Raises :class:`StartError` with the taken port and the option for another one. After a run that was killed, wait
    for its children first: the kernel has signalled them to end.
    """
    _require_loopback()
    gateway, engines = site.gateway, started_replicas(site)
    wanted = [(gateway.host, gateway.port, f"gateway.port in {options.config}", gateway.drain_timeout_s)]
    for replica in engines:
        key = f"`port` of engines.{replica.name} in {options.config}"
        wanted.append(("127.0.0.1", replica.port, key, replica.engine.shutdown_timeout_s))
    if lock.left:
        console.print(f"an earlier run here was killed (pid {lock.left.get('pid', 'unknown')})")
    began = time.monotonic()
    for host, number, key, patience_s in wanted:
        while not _free(host, number):
            if not lock.left or time.monotonic() > began + patience_s + 10.0:
                # Raise the cause, which is not always another program.
                bind(host, number, f"`{on_free_ports(site, _free)}`, or another {key}").close()
            await asyncio.sleep(POLL_S)


def _require_loopback() -> None:
    """Raise :class:`StartError` if no client can reach a server on 127.0.0.1.

    In a new network namespace the loopback interface is down: servers can listen there, and each connection fails.
    """
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        try:
            client.connect(server.getsockname())
        except OSError as error:
            raise StartError(
                f"127.0.0.1 cannot be reached ({error.strerror}); bring the loopback interface up: as root, "
                "`ip link set lo up`"
            ) from None


def _free(host: str, port: int) -> bool:
    try:
        bind(host, port).close()
    except StartError:
        return False
    return True


def on_free_ports(site: Site, free: Callable[[str, int], bool]) -> str:
    """Return the `make up` that serves ``site`` on free ports: one command for all taken ports.

    ``free`` is called with a host and a port; it returns whether a server could listen there.
    """
    gateway, engines = site.gateway, [replica.port for replica in started_replicas(site)]
    words, port = ["make up"], gateway.port
    if not free(gateway.host, port):
        port = next((one for one in _after(port) if one not in engines and free(gateway.host, one)), port)
        words.append(f"PORT={port}")
    if not all(free("127.0.0.1", one) for one in engines):
        blocks = (range(first, first + len(engines)) for first in _after(max(engines)))
        usable = (block for block in blocks if port not in block and all(free("127.0.0.1", one) for one in block))
        words.append(f"ENGINE_PORT={next(usable, range(engines[0], 0)).start}")
    return " ".join(words)


def _after(port: int) -> list[int]:
    """Return the ports that may replace a taken one: those after it that need no root, then those after 8000."""
    first = max(port + 1, 1024)
    return [*range(first, min(first + 1000, 65000)), *range(8000, 9000)]


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
    waiting: list[tuple[EngineReplica, Path]] = []
    # The embedder loads while the other engine does.
    for replica in sorted(started_replicas(site), key=lambda one: one.engine.kind != "embedder"):
        # Its command is built once, from the site in memory: after a crash the same engine starts again, even if
        # the file has changed.
        built = command(site, replica, options.base, read_cpuinfo())
        require_loadable(site, replica, options.base, weights_store())
        if built.notice:
            console.print(built.notice, style="yellow", markup=False, soft_wrap=True)
        unit = ProcessSpec(
            f"engine-{replica.name}",
            built.argv,
            logs / f"engine-{replica.name}.log",
            built.environment,
            stop_timeout_s=replica.engine.shutdown_timeout_s + 10.0,
            fix=f"name the engine's Python or binary in engines.{replica.name}.command of {options.config}",
        )
        await children.start(unit)
        if replica.engine.kind == "embedder":
            waiting.append((replica, unit.log))
        else:
            await _until_it_works(console, site, replica, unit.log, events)
    for replica, log in waiting:
        await _until_it_works(console, site, replica, log, events)

    # Before the gateway starts, so that it accepts both keys from its first request.
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
            log = logs / "gateway.log"
            await _until_it_serves("gateway", url, "/ready", log, events.died, start_s=GATEWAY_START_S)
        if site.assistant is not None:
            log = logs / "assistant.log"
            argv = (*own, "assistant", "--config", str(config))
            await children.start(ProcessSpec("assistant", argv, log, stop_timeout_s=ASSISTANT_STOP_S))
            async with _step(console, "starting the assistant"):
                await _until_it_serves(
                    "assistant", url, "/v1/conversations", log, events.died, start_s=ASSISTANT_START_S, key=own_key
                )
        bot = (
            await _start_bot(console, options, site, config, children, events) if _has_token(site, options) else ""
        )
        async with _step(console, f"smoke test: {effort}"):
            report = await _smoke(site, url, key, model, folder)
    finally:
        keys.revoke(key)
    subject = f"{model} (fake engine)" if options.engine == "fake" else model
    show(report, console, subject=subject)
    if options.once:
        return report.exit_code
    embedders = [name for name, entry in site.models.items() if entry.task == "embed"]
    _invite(console, url, model, key=own_key, logs=logs, embedders=embedders, memory=_memory_roles(site))
    _invite_bot(console, site, options, folder, bot)
    console.print("Ctrl-C stops everything.")
    events.died.clear()
    try:
        await _watch(console, events, logs)
    except asyncio.CancelledError:
        # The ordinary end of a running service: the caller stops the children and reports no failure.
        return 0


async def _until_it_works(console: Console, site: Site, replica: EngineReplica, log: Path, events: Events) -> None:
    """Wait for the first token of ``replica``, then for its self-test; raises :class:`StartError` if it fails."""
    async with _step(console, f"starting {_describe(replica)} on 127.0.0.1:{replica.port}"):
        await first_token(site, replica, log, events.died)
        # Imported late: it needs numpy, which an error before the start of an engine need not wait for.
        from appliance.engines import golden_pairs  # noqa: PLC0415

        reason = await asyncio.to_thread(golden_pairs.check, replica.url, replica.engine, site)
    if reason:
        raise StartError(f"engine {replica.name}: {reason}; its log is {log}")
    task = site.models[replica.engine.model].task
    done = {"embed": "its vectors match the golden pairs", "rerank": "its scores match the golden pairs"}
    console.print(f"engine {replica.name}: {done.get(task, 'generated its first token')}")


async def _smoke(site: Site, url: str, key: str, model: str, folder: Path) -> Report:
    """Run the smoke test in a thread, because the event loop watches the children.

    Its load has ended when this returns, also after a cancellation.
    """
    stop = Stop()
    load = partial(run_load, site.smoke, url=url, key=key, model=model, folder=folder, stop=stop)
    running = asyncio.ensure_future(asyncio.to_thread(load))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.request("a signal")
        await asyncio.wait([running])
        # The error of a stopped test is of no interest.
        running.exception()
        raise


async def _watch(console: Console, events: Events, logs: Path) -> NoReturn:
    """Serve until cancelled; report each child that ended by itself, and each restart that failed."""
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
    """Write the configuration that runs: the given one with the prepared model.

    ``table`` is a valid site of one model, and of embedders, which do not change. The files and sockets of the
    assistant and of the bot are in the data folder unless the table has paths. A token in the data folder adds
    the bot. Returns the result with the file that the gateway reads.

    The model gets its real name everywhere: no client takes a tiny random model, or a fake engine, for Qwen.
    Raises :class:`ConfigError` before anything is written.
    """
    table = json.loads(json.dumps(table))
    table.setdefault("gateway", {}).update(port=port, data_dir=str(data.absolute()))
    engines: list[dict[str, Any]] = [e for e in table["engines"].values() if e.get("kind") != "embedder"]
    packaged = {e["model"] for e in table["engines"].values() if e.get("kind") == "embedder"}
    old = engines[0]["model"]
    new = "fake" if prepared is None else prepared.name
    source = str(data.absolute()) if prepared is None else str(prepared.folder.absolute())
    model = dict(table.get("models", {}).get(old, {}))
    model.pop("revision", None)
    model["source"] = source
    if prepared is not None:
        model["max_context"] = prepared.context
    table["models"] = {new: model} | {name: table["models"][name] for name in sorted(packaged)}
    for engine in engines:
        engine.update(model=new, command=sys.executable if prepared is None else str(options.engine_python))
        if prepared is None:
            engine.update(kind="mock", options={})
    for role in table.get("roles", {}).values():
        if role.get("model") == old:
            role["model"] = new
    if (assistant := table.get("assistant")) is not None:
        for own_model in ("title_model", "extract_model"):
            if assistant.get(own_model) == old:
                assistant[own_model] = new
        folder = data.absolute()
        assistant.setdefault("data_dir", str(folder / "assistant"))
        assistant.setdefault("socket", str(folder / "assistant" / "assistant.sock"))
        assistant.setdefault("acting_socket", str(folder / "acting.sock"))
        if "telegram" in table or (folder / BOT_FILE).is_file():
            bot = table.setdefault("telegram", {})
            if bot.get("model") == old:
                bot["model"] = new
            bot.setdefault("data_dir", str(folder / "telegram"))
            bot.setdefault("token_file", str(folder / BOT_FILE))
            bot.setdefault("acting_socket", str(folder / "telegram-acting.sock"))
    site = validate(str(data / SITE), table)
    text = json.dumps(table, indent=2)
    # Two files: people and other programs may edit the first one. A gateway that crashes must restart with the
    # configuration that it was started with.
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


async def _until_it_serves(
    name: str, url: str, path: str, log: Path, died: dict[str, int], *, start_s: float, key: str = ""
) -> None:
    """Wait until ``path`` of the gateway at ``url`` has the status 200, which needs the child ``name``.

    Raises :class:`StartError` if the child ends, or takes longer than ``start_s`` seconds.
    """
    request = partial(send_request, url, path, key=key, timeout_s=start_s)
    deadline, status = time.monotonic() + start_s, 0
    while time.monotonic() < deadline:
        if name in died:
            raise StartError(f"the {name} ended with code {died[name]}: {tail(log)}; its log is {log}")
        with contextlib.suppress(*NO_RESPONSE):
            status = (await asyncio.to_thread(request)).status
            if status == 200:
                return
        await asyncio.sleep(POLL_S / 5)
    last = f" (status {status})" if status else ""
    raise StartError(f"the {name} was not ready within {start_s:.0f} s{last}; its log is {log}")


def _shown(path: Path) -> Path:
    """Return ``path`` from the working directory, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _memory_roles(site: Site) -> list[str]:
    return [name for name, role in site.roles.items() if role.memory] if site.assistant is not None else []


def tail(log: Path) -> str:
    """Return the last line of ``log`` that looks like the cause of a failure."""
    text = (files.read(log) or b"").decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # A failed engine core is reported by its own process first, then by the processes that waited for it.
    causes = [line for line in lines if re.search(r"Error|error: ", line) and "root cause above" not in line]
    return (causes or lines or ["its log is empty"])[-1][-300:]


def _own_key(keys: KeyStore, folder: Path) -> str:
    """Return the user's own key. It is created at the first run, in a file that only this user can read."""
    path = folder / "key"
    found = files.read(path)
    if found is not None and (known := text_file.key(text_file.decode(found, str(path)), str(path))):
        return known
    key = keys.create("me")
    files.replace(path, key + "\n", mode=0o600)
    return key


def _invite(
    console: Console,
    url: str,
    model: str,
    *,
    key: str,
    logs: Path,
    embedders: Iterable[str],
    memory: Iterable[str],
) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    console.print(f"\n[bold]Serving[/] on {url}/v1, model [bold]{model}[/], logs in {logs}")
    console.print(f"Your API key: {key}\n\nTry it from another terminal:\n")
    console.print(f"  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\", soft_wrap=True)
    console.print(f"    -H 'Content-Type: application/json' -d '{body}'\n", soft_wrap=True, markup=False)
    for name in embedders:
        console.print(f"Embeddings: {url}/v1/embeddings, model [bold]{name}[/]")
    for name in memory:
        console.print(
            f"Memory: model [bold]{name}[/] finds your files and past chats; "
            f".venv/bin/appliance memory add FILE --config {_shown(logs.parent / SITE)}",
            soft_wrap=True,
        )


def _has_token(site: Site, options: Options) -> bool:
    return site.telegram is not None and site.telegram.token_path(options.base).is_file()


async def _start_bot(
    console: Console, options: Options, site: Site, config: Path, children: ChildProcesses, events: Events
) -> str:
    """Start the Telegram bot and return the words for its state; raises :class:`StartError` if it ends.

    The bot reads its token from the file; neither its command nor its environment has it.
    """
    log = site.data_path(options.base) / "log" / "telegram.log"
    earlier = len(files.read(log) or b"")
    argv = (sys.executable, "-m", "appliance", "telegram", "serve", "--config", str(config))
    await children.start(ProcessSpec("telegram", argv, log))
    async with _step(console, "starting the Telegram bot"):
        deadline = time.monotonic() + BOT_START_S
        while time.monotonic() < deadline:
            if "telegram" in events.died:
                reason = f"ended with code {events.died['telegram']}: {tail(log)}"
                raise StartError(f"the Telegram bot {reason}; its log is {log}")
            text = (files.read(log) or b"")[earlier:].decode("utf-8", "replace")
            if found := re.search(r"the bot (\S+) receives messages", text):
                return f"{found.group(1)} receives messages"
            if "no updates from Telegram" in text:
                break
            await asyncio.sleep(POLL_S)
    return f"no response from Telegram yet; the bot tries again, see {log}"


def _invite_bot(console: Console, site: Site, options: Options, folder: Path, bot: str) -> None:
    """Show the state of the bot and the command for a link, or the file for a token."""
    if bot:
        command = f".venv/bin/appliance telegram link me --config {_shown(folder / SITE)}"
        console.print(f"Telegram: {bot}. `{command}` links you to it.", soft_wrap=True, markup=False)
    elif site.assistant is not None:
        path = folder / BOT_FILE if site.telegram is None else site.telegram.token_path(options.base)
        console.print(
            f"Telegram: write the token of a bot, which @BotFather shows, into {_shown(path)} and start again.",
            soft_wrap=True,
            markup=False,
        )


def _describe(replica: EngineReplica) -> str:
    names = {
        "vllm": "vLLM",
        "llamacpp": "llama.cpp",
        "embedder": "the small embedder",
        "mock": "the fake engine",
    }
    kind = names[replica.engine.kind]
    return f"{kind} on the CPU" if replica.engine.device == "cpu" and replica.engine.kind != "mock" else kind


@contextlib.asynccontextmanager
async def _step(console: Console, what: str) -> AsyncIterator[Callable[[str], None]]:
    """Show that a long step runs: a spinner with seconds on a terminal, else a line from time to time."""
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
