"""Carries out the decisions of :mod:`~appliance.gateway.swap_policy`: drain, unload, load, canary token, open.

One transition at a time. If a load fails, the engines that were unloaded for it are restored, and the waiting
requests are rejected with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.contract.model import Site
from appliance.engines.argv import replicas
from appliance.engines.lifecycle import EngineControl
from appliance.errors import (
    ConflictError,
    EngineFailedError,
    EngineUnavailableError,
    RequestError,
    StartError,
)
from appliance.gateway.background import keep_going
from appliance.gateway.card_room import DriverMemory, FreeMemoryReader, room_shortage
from appliance.gateway.greedy_check import greedy_request, greedy_text, served_names
from appliance.gateway.greedy_record import GreedyRecord
from appliance.gateway.health import HealthMonitor
from appliance.gateway.routing import Replica, Router, Service
from appliance.gateway.swap_policy import RETRY_S, EngineState, LoadEngine, Memory, State, UnloadEngine, decide
from appliance.system.nvidia_smi import NvidiaSmiError

LOG = logging.getLogger(__name__)

POLL_S = 0.1
"""Seconds between two canaries of a loading engine."""

CHAT_PATH = b"/v1/chat/completions"

CONTROL_TIMEOUT_S = 120.0
"""Seconds that sleeping and waking may take: weights of 100 GB cross PCIe in about ten seconds."""

ROOM_WITHIN_S = 3.0
"""Seconds within which the driver reports memory as free after a process has released it."""

STOP_MARGIN_S = 15.0
"""Seconds after ``shutdown_timeout_s`` within which a stopping replica is killed (modules/engines.nix)."""


@dataclass(slots=True)
class Managed:
    """One on-demand engine, its replicas and its state."""

    name: str
    service: Service
    replicas: list[Replica]
    awake: Memory
    asleep: Memory
    sleeps: bool
    load_timeout_s: float
    state: State = "stopped"
    since: float = 0.0
    started: bool = False
    """Whether its processes run, awake or asleep."""
    error: str = ""
    """The reason of its last failed load; empty after a successful one."""
    greedy: tuple[str | None, ...] = ()
    """Its texts without sampling after its last load, by replica and name; empty if it never sleeps."""
    expected: bool = False
    """Whether a user of it has appeared since it was unloaded."""
    begun_at: int = 0
    """Requests of its model that had begun when its batch was last reset."""

    @property
    def drained(self) -> bool:
        """Whether every replica is drained: the engine serves no request and is not loaded."""
        return all(replica.drained is not None for replica in self.replicas)

    @property
    def drain_reason(self) -> str:
        """The reasons for which its replicas are drained."""
        return "; ".join(dict.fromkeys(r.drained for r in self.replicas if r.drained is not None))


@dataclass(frozen=True, slots=True)
class SwapResult:
    """The result of the last swap."""

    engine: str
    """The engine that was to be loaded."""
    unloaded: tuple[str, ...]
    """The engines that were unloaded for it; a failed load restores them."""
    ok: bool
    seconds: float
    """Seconds from the decision until the engine generated a token, or until the failure was reported."""
    error: str
    """The reason of a failure; empty after a success."""
    ended: float
    """Time of its end by the controller's clock."""


@dataclass(slots=True)
class SwapController:
    """The on-demand engines, and the task that loads those with requests."""

    site: Site
    router: Router
    control: EngineControl
    health: HealthMonitor
    clock: Callable[[], float]
    cards: FreeMemoryReader = field(default_factory=DriverMemory)
    greedy_record: GreedyRecord = field(default_factory=lambda: GreedyRecord(None))
    engines: dict[str, Managed] = field(default_factory=dict)
    swaps: int = 0
    failures: int = 0
    last_swap_s: float = 0.0
    last_result: SwapResult | None = None
    _budget: dict[str, float] = field(default_factory=dict)
    _always: list[EngineState] = field(default_factory=list)
    _event: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None
    _wanted: str | None = None
    _unread: str = ""
    """Why the memory of the cards could not be read last; empty if it could."""

    def __post_init__(self) -> None:
        mine = {replica.name: replica for replica in self.router.replicas}
        for name, engine in self.site.engines.items():
            if not engine.is_started:
                # Its memory is that of another machine.
                continue
            members = [mine[one.name] for one in replicas(self.site) if one.engine is engine]
            awake, asleep = _memory(self.site, name)
            for place in awake:
                self._budget[place] = 1.0
            if engine.residency == "always":
                self._always.append(EngineState(name, "ready", since=0.0, awake=awake, on_demand=False))
                continue
            service = self.router.services[engine.model]
            self.engines[name] = Managed(
                name=name,
                service=service,
                replicas=members,
                awake=awake,
                asleep=asleep,
                sleeps=engine.sleep,
                load_timeout_s=engine.start_timeout_s,
                since=self.clock(),
            )

    def start(self) -> None:
        """Start the task: take over the running engines, then decide repeatedly."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End the task and the control of the engines."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.control.close()

    def notice(self) -> None:
        """Wake the task, because a request waits or ended."""
        self._event.set()

    def request(self, model: str) -> None:
        """Load ``model`` once the engines in its place are drained.

        Raises :class:`ConflictError` if it is loaded, or if every engine of it is drained.
        """
        engines = [engine for engine in self.engines.values() if engine.service.model == model]
        if not engines:
            raise ConflictError(f"{model} is always loaded; there is nothing to swap", code="always_loaded")
        engine = next((engine for engine in engines if not engine.drained), None)
        if engine is None:
            names = " ".join(replica.name for replica in engines[0].replicas)
            message = f"{model} is not loaded, because {engines[0].name} is drained: {engines[0].drain_reason}"
            raise ConflictError(f"{message}; `appliance models undrain {names}` ends that", code="draining")
        if engine.state == "ready":
            raise ConflictError(f"{model} is loaded already", code="already_loaded")
        self._wanted = engine.name
        self.notice()

    def expect(self, model: str) -> None:
        """Load ``model`` as soon as that disturbs no request, because a user of it has appeared."""
        for engine in self.engines.values():
            if engine.service.model == model and engine.state in ("stopped", "asleep") and not engine.drained:
                engine.expected = True
                self.notice()
                return

    def status(self) -> dict[str, object]:
        """Return the state of every on-demand engine, for JSON."""
        now = self.clock()
        return {
            engine.name: {
                "model": engine.service.model,
                "state": engine.state,
                "for_s": round(now - engine.since, 1),
                "waiting": engine.service.queue.waiting,
                "in_flight": sum(replica.in_flight for replica in engine.replicas),
                "error": engine.error,
            }
            for engine in self.engines.values()
        }

    def last_swap(self) -> dict[str, object] | None:
        """Return the result of the last swap and the seconds since its end, for JSON; ``None`` before the first."""
        last = self.last_result
        if last is None:
            return None
        return {
            "engine": last.engine,
            "unloaded": list(last.unloaded),
            "ok": last.ok,
            "seconds": round(last.seconds, 1),
            "error": last.error,
            "ago_s": round(self.clock() - last.ended, 1),
        }

    async def _run(self) -> None:
        await self._take_over_all()
        await keep_going("swapping models", self._step)

    async def _step(self) -> None:
        self._event.clear()
        self._watch()
        if self._wanted is not None and self.engines[self._wanted].drained:
            # Drained after the request: it must not be loaded hours later, when the drain ends.
            LOG.warning("%s was requested and is drained now; it is not loaded", self._wanted)
            self._wanted = None
        step = decide(
            self._states(), self._budget, rules=self.site.gateway.swap, now=self.clock(), wanted=self._wanted
        )
        if isinstance(step, LoadEngine):
            if step.name == self._wanted:
                self._wanted = None
            await self._swap(self.engines[step.name], [self.engines[name] for name in step.victims])
        elif isinstance(step, UnloadEngine):
            await self._unload_idle(self.engines[step.name])
        else:
            await self._await_notice(1.0 if step.until is None else step.until - self.clock())

    async def _await_notice(self, within_s: float) -> None:
        """Wait for :meth:`notice` for ``within_s`` seconds, 1 s at most: not every change causes a notice."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(1.0, within_s))):
                await self._event.wait()

    async def _unload_idle(self, engine: Managed) -> None:
        LOG.info("unloading %s, which is unused", engine.name)
        await self._drain(engine)
        try:
            await self._unload(engine)
        except (RequestError, StartError) as error:
            self.failures += 1
            await self._fail(engine, f"it could not be unloaded: {error}")

    async def _take_over_all(self) -> None:
        """Take over engines that an earlier gateway left, asleep or generating tokens; stop the others."""
        for engine in self.engines.values():
            try:
                await self._take_over(engine)
            except StartError as error:
                await self._fail(engine, str(error))

    async def _take_over(self, engine: Managed) -> None:
        alive = [await self.control.alive(replica.name) for replica in engine.replicas]
        if not any(alive):
            return
        engine.started = True
        if all(alive) and engine.sleeps and await self._is_asleep(engine):
            engine.greedy = self.greedy_record.get(engine.name)
            self._set(engine, "asleep")
        elif all(alive) and await self._generates(engine):
            self._keep_greedy(engine, await self._greedy_texts(engine))
            self._open(engine)
        else:
            await self._stop(engine)

    async def _is_asleep(self, engine: Managed) -> bool:
        """Return whether every replica reports that it sleeps; one that is still loading does not respond."""
        within_s = self.site.gateway.canary_timeout_s
        for replica in engine.replicas:
            try:
                status, body = await replica.pool.probe(b"/is_sleeping", b"", within_s, method=b"GET")
                asleep = status == 200 and json.loads(body)["is_sleeping"] is True
            except (RequestError, ValueError, LookupError, TypeError):
                return False
            if not asleep:
                return False
        return True

    def _keep_greedy(self, engine: Managed, texts: tuple[str | None, ...]) -> None:
        engine.greedy = texts
        if engine.sleeps:
            self.greedy_record.put(engine.name, texts)

    async def _generates(self, engine: Managed) -> bool:
        try:
            each = self.site.engines[engine.name].canary_within_s(self.site.gateway.canary_timeout_s)
            await self._await_tokens(engine, within_s=each)
        except (RequestError, StartError):
            return False
        return True

    def _watch(self) -> None:
        """Reject requests that wait for a loaded engine that is down; systemd or the engine control restarts it."""
        for engine in self.engines.values():
            # Another engine of the model may be loaded instead of a drained one.
            loaded = engine.state == "ready" and not engine.drained
            if loaded and not engine.service.served and engine.service.queue.waiting:
                engine.service.refuse(engine.service.down())

    def _states(self) -> list[EngineState]:
        return self._always + [
            EngineState(
                name=engine.name,
                state=engine.state,
                since=engine.since,
                awake=engine.awake,
                asleep=engine.asleep if engine.sleeps else {},
                waiting=engine.service.queue.waiting,
                oldest=engine.service.oldest_wait,
                in_flight=sum(replica.in_flight for replica in engine.replicas),
                last_used=max(replica.last_used for replica in engine.replicas),
                begun=engine.service.begun - engine.begun_at if self._others_wait(engine) else 0,
                priority=self.site.engines[engine.name].priority,
                default=engine.service.model == self.site.gateway.swap.default,
                expected=engine.expected,
                drained=engine.drained,
            )
            for engine in self.engines.values()
        ]

    def _others_wait(self, engine: Managed) -> bool:
        """Return whether requests for another engine wait; the batch counts from the beginning of that wait."""
        waits = any(other.service.queue.waiting for other in self.engines.values() if other is not engine)
        if not waits:
            engine.begun_at = engine.service.begun
        return waits

    async def _swap(self, target: Managed, victims: list[Managed]) -> None:
        began = self.clock()
        if reason := await self._refusal(target):
            self.failures += 1
            await self._fail(target, reason)
            self.last_result = SwapResult(target.name, (), ok=False, seconds=0.0, error=reason, ended=self.clock())
            return
        LOG.info("loading %s%s", target.name, f", unloading {_names(victims)}" if victims else "")
        within_s = sum(self._leaves_within_s(victim) for victim in victims) + self._loads_within_s(target)
        with target.service.swapping(self.clock, within_s):
            loaded = await self._replace(target, victims)
        now = self.clock()
        self.last_result = SwapResult(
            engine=target.name,
            unloaded=tuple(victim.name for victim in victims),
            ok=loaded,
            seconds=now - began,
            error=target.error,
            ended=now,
        )
        if not loaded:
            for victim in victims:
                await self._restore(victim)
            return
        self.swaps += 1
        self.last_swap_s = now - began
        LOG.info("%s is loaded after %.1f s", target.name, self.last_swap_s)

    async def _refusal(self, target: Managed) -> str:
        """Return why the server of ``target`` cannot load its files, before any engine is unloaded; else empty."""
        if target.started:
            return ""
        try:
            for replica in target.replicas:
                await self.control.examine(replica.name)
        except StartError as error:
            return str(error)
        return ""

    async def _replace(self, target: Managed, victims: list[Managed]) -> bool:
        """Drain and unload ``victims``, then load ``target``; return whether that succeeded."""
        for victim in victims:
            await self._drain(victim)
        try:
            for victim in victims:
                await self._unload(victim)
            await self._make_room(target)
            await self._load(target)
        except (RequestError, StartError) as error:
            why = str(error)
        except Exception:
            # The victims are unloaded already: the swap fails like any other, and its caller restores them.
            LOG.exception("loading %s failed inside the gateway", target.name)
            why = "an error inside the gateway; its log has the reason"
        else:
            return True
        self.failures += 1
        await self._fail(target, why)
        return False

    def _leaves_within_s(self, engine: Managed) -> float:
        """Return the seconds that draining and unloading ``engine`` take at most."""
        return self.site.gateway.swap.drain_timeout_s + self._stops_within_s(engine)

    def _loads_within_s(self, engine: Managed) -> float:
        """Return the seconds at most until ``engine`` has generated a token, or its failure is reported."""
        waking = CONTROL_TIMEOUT_S * len(engine.replicas) if engine.sleeps else 0.0
        return waking + engine.load_timeout_s + self._stops_within_s(engine)

    def _stops_within_s(self, engine: Managed) -> float:
        """Return the seconds at most for putting ``engine`` to sleep, and for stopping it if that fails."""
        each = self.site.engines[engine.name].shutdown_timeout_s + STOP_MARGIN_S
        return (each + (CONTROL_TIMEOUT_S if engine.sleeps else 0.0)) * len(engine.replicas)

    async def _drain(self, engine: Managed) -> None:
        """Stop new requests to ``engine``; wait for the running ones, and abort them at the deadline."""
        self._set(engine, "draining")
        for replica in engine.replicas:
            replica.resident = False
        deadline = self.clock() + self.site.gateway.swap.drain_timeout_s
        while any(replica.in_flight for replica in engine.replicas):
            left = deadline - self.clock()
            if left <= 0:
                LOG.warning("%s still runs requests at the drain's deadline; they are aborted", engine.name)
                error = EngineFailedError(f"{engine.service.model} was unloaded for another model; try again")
                for replica in engine.replicas:
                    replica.pool.fail_calls(error)
                return
            self._event.clear()
            await self._await_notice(left)

    async def _unload(self, engine: Managed) -> None:
        if engine.sleeps:
            try:
                for replica in engine.replicas:
                    await self._post(replica, b"/sleep?level=1")
            except (RequestError, StartError) as error:
                # Sleep failed midway: state unknown, memory still held; stop the engine.
                LOG.warning("%s did not sleep and is stopped instead: %s", engine.name, error)
            else:
                self._set(engine, "asleep")
                return
        await self._stop(engine)

    async def _make_room(self, target: Managed) -> None:
        """Compare the free memory of the cards with the need of ``target``, if it or an engine in its place sleeps.

        Engines that keep too much of the cards in their sleep are stopped. Raises :class:`StartError` if ``target``
        does not fit even then.
        """
        sleepers = [
            engine
            for engine in self.engines.values()
            if engine is not target and engine.state == "asleep" and engine.awake.keys() & target.awake.keys()
        ]
        if self.site.engines[target.name].device != "cuda" or not (sleepers or target.started):
            return
        lacking = await self._lacking(target)
        if lacking and sleepers:
            LOG.error("%s: %s; %s sleeps and is stopped instead", target.name, lacking, _names(sleepers))
            self.failures += 1
            for engine in sleepers:
                await self._stop(engine)
            lacking = await self._lacking(target)
        if lacking:
            raise StartError(f"{lacking}; `nvidia-smi` shows the processes that hold the rest")

    async def _lacking(self, target: Managed) -> str:
        """Return why ``target`` does not fit its cards; empty if it fits, or if their memory cannot be read."""
        held = target.asleep if target.started else {}
        needed = {
            index: target.awake[place] - held.get(place, 0.0)
            for index in self.site.engines[target.name].gpus
            for place in (f"{self.site.engines[target.name].host}/{index}",)
        }
        deadline = self.clock() + ROOM_WITHIN_S
        while True:
            try:
                memory = await self.cards.read()
            except NvidiaSmiError as error:
                if str(error) != self._unread:
                    LOG.warning("the memory of the cards is not compared after a sleep: %s", error)
                self._unread = str(error)
                return ""
            self._unread = ""
            lacking = room_shortage(needed, memory)
            if not lacking or self.clock() >= deadline:
                return lacking
            await asyncio.sleep(POLL_S)

    async def _load(self, engine: Managed) -> None:
        """Wake or start ``engine``; an engine that differs from itself after a wake is started anew."""
        woken = engine.started
        await self._begin(engine)
        texts = await self._greedy_texts(engine)
        if woken and engine.greedy and texts != engine.greedy:
            LOG.error("%s generates other text after its wake than after its load; it is started anew", engine.name)
            self.failures += 1
            await self._stop(engine)
            await self._begin(engine)
            texts = await self._greedy_texts(engine)
        self._keep_greedy(engine, texts)
        self._open(engine)

    async def _greedy_texts(self, engine: Managed) -> tuple[str | None, ...]:
        """Return the texts of an engine that sleeps and generates, by replica and served name; else none."""
        model = self.site.models[engine.service.model]
        if not engine.sleeps or model.task != "generate":
            return ()
        texts: list[str | None] = []
        for replica in engine.replicas:
            if replica.drained is not None and not engine.drained:
                continue
            for name in served_names(engine.service.model, model):
                try:
                    reply = await replica.pool.probe(CHAT_PATH, greedy_request(name), CONTROL_TIMEOUT_S)
                except RequestError as error:
                    LOG.warning("%s returned no text for the comparison: %s", replica.name, error)
                    texts.append(None)
                else:
                    texts.append(greedy_text(*reply))
        return tuple(texts)

    async def _begin(self, engine: Managed) -> None:
        """Wake or start the replicas of ``engine``, and wait until each has generated a token."""
        self._set(engine, "loading")
        for replica in engine.replicas:
            try:
                if engine.started:
                    await self._post(replica, b"/wake_up")
                else:
                    await self.control.start(replica.name)
            except (RequestError, StartError) as error:
                if replica.drained is None:
                    raise
                LOG.warning("%s is drained and could not be loaded: %s", replica.name, error)
        engine.started = True
        await self._await_tokens(engine, engine.load_timeout_s)

    def _open(self, engine: Managed) -> None:
        self._set(engine, "ready")
        if self._wanted == engine.name:
            # Requested while it was loading already: the request must not reload it after another engine's turn.
            self._wanted = None
        engine.error = ""
        engine.expected = False
        engine.begun_at = engine.service.begun
        engine.service.blocked = None
        for replica in engine.replicas:
            if replica.drained is None or engine.drained:
                replica.breaker.succeeded()
                replica.last_token = self.clock()
            replica.resident = True
        engine.service.pump()

    async def _await_tokens(self, engine: Managed, within_s: float) -> None:
        """Wait until every replica generated a token; raises :class:`StartError` with the last failure.

        A drained replica is not awaited if another one is open: that one serves without it.
        """
        result = "no connection"
        try:
            async with asyncio.timeout(within_s):
                for replica in engine.replicas:
                    while (result := await self._probe(engine, replica)) != "ready":
                        if not await self.control.alive(replica.name):
                            raise StartError(f"{engine.name} ended while it was loading; see its log")
                        await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise StartError(f"{engine.name} generated no token within {within_s:g} s ({result})") from None

    async def _probe(self, engine: Managed, replica: Replica) -> str:
        if replica.drained is not None and not engine.drained:
            return "ready"
        return await self.health.probe(replica)

    async def _fail(self, engine: Managed, why: str) -> None:
        """Stop ``engine``, and report ``why`` to the waiting requests, in the log and in the status."""
        LOG.error("%s could not be loaded: %s", engine.name, why)
        try:
            await self._stop(engine)
        except StartError as error:
            LOG.error("%s could not be stopped either: %s", engine.name, error)  # noqa: TRY400 - one line suffices
        self._set(engine, "failed")
        engine.error = why
        message = f"{engine.service.model} could not be loaded: {why}"
        engine.service.blocked = (self.clock() + RETRY_S, message)
        engine.service.refuse(EngineUnavailableError(message, retry_after=RETRY_S))

    async def _restore(self, engine: Managed) -> None:
        """Load ``engine`` again, which was unloaded for an engine that failed."""
        if engine.state == "draining" and await self._generates(engine):
            self._open(engine)
            return
        with engine.service.swapping(self.clock, self._stops_within_s(engine) + self._loads_within_s(engine)):
            try:
                if engine.state == "draining":
                    await self._stop(engine)
                if engine.drained:
                    LOG.warning("%s is drained and is not loaded again: %s", engine.name, engine.drain_reason)
                    return
                await self._load(engine)
            except (RequestError, StartError) as error:
                why = str(error)
            except Exception:
                LOG.exception("loading %s again failed inside the gateway", engine.name)
                why = "an error inside the gateway; its log has the reason"
            else:
                return
            self.failures += 1
            await self._fail(engine, f"it could not be restored: {why}")

    async def _stop(self, engine: Managed) -> None:
        for replica in engine.replicas:
            replica.resident = False
            await self.control.stop(replica.name)
        engine.started = False
        self._set(engine, "stopped")

    async def _post(self, replica: Replica, path: bytes) -> None:
        status, _ = await replica.pool.probe(path, b"", CONTROL_TIMEOUT_S)
        if status != 200:
            raise StartError(f"{replica.name} returned {status} for {path.decode()}")

    def _set(self, engine: Managed, state: State) -> None:
        engine.state = state
        engine.since = self.clock()


def _memory(site: Site, name: str) -> tuple[Memory, Memory]:
    """Return the shares of its cards that an engine occupies awake and asleep; on the CPU, of its host's RAM."""
    engine = site.engines[name]
    if engine.on_cards:
        places = [f"{host}/{index}" for host in engine.hosts for index in engine.cards_on(host)]
        return dict.fromkeys(places, engine.gpu_memory_utilization), dict.fromkeys(places, engine.asleep_share)
    weights = site.models[engine.model].weights_gib or 0.0
    share = (weights + engine.kv_cache_gib) * engine.replicas / site.hosts[engine.host].memory_gib
    return {f"{engine.host}/ram": share}, {}


def _names(engines: list[Managed]) -> str:
    return ", ".join(engine.name for engine in engines)
