"""``/ready``: every model has a replica that generated a token within the last seconds."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from appliance.engines.health import CANARY_TIMEOUT_S, canary, canary_passed
from appliance.errors import RequestError
from appliance.gateway.metrics import Metrics
from appliance.gateway.route import Target


@dataclass(frozen=True, slots=True)
class Readiness:
    """What the canaries said: per replica ``ready`` or what went wrong."""

    ready: bool
    engines: dict[str, str]
    checked_at: float


class ReadyCheck:
    """Asks each replica for a token, at most once per ``cache_s`` however many callers ask."""

    def __init__(self, targets: list[Target], cache_s: float, metrics: Metrics) -> None:
        self._targets = targets
        self._cache_s = cache_s
        self._metrics = metrics
        self._last: Readiness | None = None
        self._lock = asyncio.Lock()

    async def check(self) -> Readiness:
        """The last result while it is fresh, else a new one."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._last.checked_at > self._cache_s:
                said = await asyncio.gather(*(self._ask(target) for target in self._targets))
                engines = {target.name: word for target, word in zip(self._targets, said, strict=True)}
                up = {target.model for target in self._targets if engines[target.name] == "ready"}
                ready = all(target.model in up for target in self._targets)
                self._last = Readiness(ready, engines, time.monotonic())
            return self._last

    async def _ask(self, target: Target) -> str:
        path, body = canary(target.model, target.task)
        try:
            status, answer = await target.pool.probe(path.encode(), body, CANARY_TIMEOUT_S)
            word = "ready" if canary_passed(status, answer) else f"answered {status} without a token"
        except RequestError as error:
            word = str(error)
        self._metrics.engine_up.labels(target.name).set(word == "ready")
        return word
